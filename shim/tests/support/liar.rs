//! Between the fake agent and the shim: rewrites the answers of one call, as an agent that has been taken over could.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protobuf::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex as AsyncMutex;

/// Bytes of a frame's header (ttrpc's PROTOCOL.md): the length of what follows, the stream's number, the kind, flags.
const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Lie {
    /// It is a byte longer than an answer may be.
    TooLong,
    /// It comes twice.
    Twice,
    /// It is to a call that nobody has made.
    OfAnother,
    /// It is a request.
    Asks,
    /// It is a piece of a stream.
    WrongKind,
    /// Its header says another length.
    HeaderLies(u32),
    /// It comes byte by byte, with this pause after each.
    Trickle(Duration),
    /// It comes when this has passed. Other answers overtake it.
    Late(Duration),
    /// It does not come.
    Never,
    /// It is a list of so many empty messages, in the field of this number.
    EmptyList(u8, usize),
}

/// Whose answers are rewritten, and how.
#[derive(Default)]
pub(crate) struct Liar(Mutex<Option<Rule>>);

#[derive(Clone, Copy)]
struct Rule {
    method: &'static str,
    container: &'static str,
    lie: Lie,
}

impl Liar {
    /// Rewrites the answers to a call for a container from now on; to those for any, where the container has no name.
    pub(crate) fn lie(&self, method: &'static str, container: &'static str, lie: Lie) {
        let rule = Rule { method, container, lie };
        self.0.lock().unwrap().replace(rule);
    }

    fn of(&self, request: &[u8]) -> Option<Lie> {
        let rule = (*self.0.lock().unwrap())?;
        let request = ttrpc::proto::Request::parse_from_bytes(request).ok()?;
        let name = rule.container.as_bytes();
        let is_for = name.is_empty() || request.payload.windows(name.len()).any(|part| part == name);
        (request.method == rule.method && is_for).then_some(rule.lie)
    }
}

#[derive(Clone)]
struct Frame {
    stream: u32,
    kind: u8,
    body: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut OwnedReadHalf) -> io::Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header).await?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(number(0)).unwrap()];
        from.read_exact(&mut body).await?;
        Ok(Self {
            stream: number(4),
            kind: header[8],
            body,
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_of_length(u32::try_from(self.body.len()).unwrap())
    }

    fn bytes_of_length(&self, length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([self.kind, 0]);
        bytes.extend(&self.body);
        bytes
    }
}

/// Carries calls and answers until one side hangs up.
pub(super) async fn carry(agent: UnixStream, shim: UnixStream, liar: Arc<Liar>) {
    let (mut from_agent, mut to_agent) = agent.into_split();
    let (mut from_shim, to_shim) = shim.into_split();
    let to_shim = Arc::new(AsyncMutex::new(to_shim));
    let lies = Mutex::new(HashMap::new());
    let calls = async {
        loop {
            let frame = Frame::read(&mut from_shim).await?;
            if let Some(lie) = liar.of(&frame.body) {
                lies.lock().unwrap().insert(frame.stream, lie);
            }
            to_agent.write_all(&frame.bytes()).await?;
        }
    };
    let answers = async {
        loop {
            let frame = Frame::read(&mut from_agent).await?;
            let lie = lies.lock().unwrap().remove(&frame.stream);
            match lie {
                None => to_shim.lock().await.write_all(&frame.bytes()).await?,
                Some(lie) => tell(lie, frame, &to_shim).await?,
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = calls => ended,
        ended = answers => ended,
    };
    // One of the two has hung up; the other hears of it by this end.
    drop(ended);
}

async fn tell(lie: Lie, frame: Frame, to_shim: &Arc<AsyncMutex<OwnedWriteHalf>>) -> io::Result<()> {
    let bytes = match lie {
        Lie::TooLong => Frame {
            body: vec![0; (64 << 10) + 1],
            ..frame
        }
        .bytes(),
        Lie::Twice => frame.bytes().repeat(2),
        Lie::OfAnother => Frame {
            stream: frame.stream + 1000,
            ..frame
        }
        .bytes(),
        Lie::Asks => Frame { kind: REQUEST, ..frame }.bytes(),
        Lie::WrongKind => Frame { kind: DATA, ..frame }.bytes(),
        Lie::HeaderLies(length) => frame.bytes_of_length(length),
        Lie::Never => return Ok(()),
        Lie::EmptyList(field, count) => {
            let answer = ttrpc::proto::Response {
                payload: [field << 3 | 2, 0].repeat(count),
                ..Default::default()
            };
            Frame {
                kind: RESPONSE,
                body: answer.write_to_bytes().unwrap(),
                ..frame
            }
            .bytes()
        }
        Lie::Late(delay) => {
            let to_shim = Arc::clone(to_shim);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                // The shim may have hung up by then.
                let _ = to_shim.lock().await.write_all(&frame.bytes()).await;
            });
            return Ok(());
        }
        Lie::Trickle(pause) => {
            let mut to_shim = to_shim.lock().await;
            for byte in frame.bytes() {
                to_shim.write_all(&[byte]).await?;
                tokio::time::sleep(pause).await;
            }
            return Ok(());
        }
    };
    to_shim.lock().await.write_all(&bytes).await
}
