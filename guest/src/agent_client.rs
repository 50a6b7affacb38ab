//! The shim's calls to the guest's agent. Each call has a time limit.
//!
//! It knows the protocol, but not the states of containers. A call may be dropped at any moment: the connection and the
//! other calls are not affected ([`write_queue`]).

mod error;
mod write_queue;

use std::time::{Duration, Instant};

use base::scale::Scale;
use protocol::agent::{
    CloseStdinRequest, ContainerCreated, ContainerId, CreateContainerRequest, DeleteResponse, Empty, ExecRequest,
    GrowStorageRequest, GuestMetricsResponse, HostChanges, MemlockReport, MemlockRequest, NameServer, Network,
    ProcessId, ProcessStarted, ResizeRequest, ResizeTerminalRequest, SignalRequest, StatsResponse, StorageName,
    StorageStatsResponse, UpdateRequest, UpdateStorageRequest,
};
use protocol::agent_ttrpc::AgentClient as Generated;
use scrape::durations::Durations;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

pub use self::error::{AgentError, Refusal};
use self::write_queue::{Room, WriteQueue};
use crate::vm::Connection;

/// Timeout for a call that only has to ask the guest's kernel for something.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Timeout for the guest's own shutdown: what does not answer by then is stopped by force.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Timeout for a file system to grow: the kernel writes to every group of blocks that is new.
const GROW_TIMEOUT: Duration = Duration::from_secs(120);

/// Timeout for figures that diagnostics and metrics ask for. It does not depend on the node's factor: who asks has a limit of its own.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a message from the guest that are passed on.
const LONGEST_MESSAGE: usize = 8 << 10;

/// The client of one VM's agent. Clones share its connection.
#[derive(Clone)]
pub struct AgentClient {
    client: Generated,
    room: Room,
    create_timeout: Duration,
    scale: Scale,
    durations: Durations,
}

macro_rules! call {
    ($(#[$doc:meta])* $name:ident($request:ty) -> $answer:ty) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The agent refuses or does not answer in time.
        pub async fn $name(&self, request: &$request) -> Result<$answer, AgentError> {
            let limit = self.scale.of(CALL_TIMEOUT);
            let call = self.client.$name(request_context(limit), request);
            self.bounded(stringify!($name), limit, call).await
        }
    };
}

impl AgentClient {
    /// Speaks on a connection that opened as AGENT. `create_timeout` bounds the creation and start of a process, `scale` is for all other time-outs.
    #[must_use]
    pub fn new(connection: Connection, create_timeout: Duration, scale: Scale) -> Self {
        let (connection, room) = WriteQueue::new(connection);
        Self {
            client: Generated::new(Client::new(Socket::new(connection))),
            room,
            create_timeout,
            scale,
            durations: Durations::default(),
        }
    }

    /// How long its calls have taken, under Kata's names.
    #[must_use]
    pub fn durations(&self) -> Durations {
        self.durations.clone()
    }

    /// Makes a container up to the gate.
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn create_container(&self, request: &CreateContainerRequest) -> Result<ContainerCreated, AgentError> {
        let context = request_context(self.create_timeout);
        self.bounded(
            "create_container",
            self.create_timeout,
            self.client.create_container(context, request),
        )
        .await
    }

    /// Opens the gate.
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn start_container(&self, request: &ContainerId) -> Result<Empty, AgentError> {
        let context = request_context(self.create_timeout);
        self.bounded(
            "start_container",
            self.create_timeout,
            self.client.start_container(context, request),
        )
        .await
    }

    /// Adds and starts a process.
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ProcessStarted, AgentError> {
        let context = request_context(self.create_timeout);
        self.bounded("exec", self.create_timeout, self.client.exec(context, request))
            .await
    }

    call!(
        /// Sends a signal.
        signal(SignalRequest) -> Empty
    );
    call!(
        /// Tells that the VM has another size.
        resize(ResizeRequest) -> Empty
    );
    call!(
        /// Tells a terminal its size.
        resize_terminal(ResizeTerminalRequest) -> Empty
    );
    call!(
        /// Says how long stdin is.
        close_stdin(CloseStdinRequest) -> Empty
    );
    call!(
        /// Tells what the host has changed.
        report_changes(HostChanges) -> Empty
    );
    call!(
        /// A container's figures.
        stats(ContainerId) -> StatsResponse
    );
    call!(
        /// What a process may lock.
        memlock(MemlockRequest) -> MemlockReport
    );
    call!(
        /// Freezes a container.
        pause(ContainerId) -> Empty
    );
    call!(
        /// Thaws a container.
        resume(ContainerId) -> Empty
    );
    call!(
        /// Changes a container's limits.
        update(UpdateRequest) -> Empty
    );
    call!(
        /// Forgets a container or an exec.
        delete(ProcessId) -> DeleteResponse
    );

    /// What the guest as a whole uses. It has less time than the rest: whoever looks at a guest that hangs must not hang.
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn guest_metrics(&self) -> Result<GuestMetricsResponse, AgentError> {
        let request = Empty::new();
        let call = self.client.guest_metrics(request_context(SAMPLE_TIMEOUT), &request);
        self.bounded("guest_metrics", SAMPLE_TIMEOUT, call).await
    }

    /// [`AgentClient::stats`] for who asks for the figures of all containers, with as little time as [`AgentClient::guest_metrics`].
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn sample(&self, request: &ContainerId) -> Result<StatsResponse, AgentError> {
        let call = self.client.stats(request_context(SAMPLE_TIMEOUT), request);
        self.bounded("stats", SAMPLE_TIMEOUT, call).await
    }

    call!(
        /// Makes the guest's network what the host's is.
        update_network(Network) -> Empty
    );

    call!(
        /// Makes a storage's files what the host's are.
        update_storage(UpdateStorageRequest) -> Empty
    );

    call!(
        /// Says where Docker's name server is asked.
        serve_names(NameServer) -> Empty
    );

    call!(
        /// How full a storage is.
        storage_stats(StorageName) -> StorageStatsResponse
    );

    /// Makes a storage as large as its disk.
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn grow_storage(&self, request: &GrowStorageRequest) -> Result<StorageStatsResponse, AgentError> {
        let limit = self.scale.of(GROW_TIMEOUT);
        let call = self.client.grow_storage(request_context(limit), request);
        self.bounded("grow_storage", limit, call).await
    }

    /// Powers the guest off.
    ///
    /// # Errors
    /// The agent refuses or does not answer in time.
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        let request = Empty::new();
        let limit = self.scale.of(SHUTDOWN_TIMEOUT);
        let call = self.client.shutdown(request_context(limit), &request);
        self.bounded("shutdown", limit, call).await.map(drop)
    }

    /// Makes the call once there is room for it.
    async fn bounded<T>(
        &self,
        action: &'static str,
        bound: Duration,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        let began = Instant::now();
        let call = async {
            self.room.clone().wait().await;
            let answer = call.await;
            self.durations.record(&kata_name(action), began.elapsed());
            answer
        };
        // The client has the same bound, but it only counts the wait for the answer, not the one for room in its queue.
        match tokio::time::timeout(bound + Duration::from_millis(200), call).await {
            Err(_) => Err(AgentError::TimedOut(bound)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(AgentError::Refused {
                refusal: Refusal::of(status.code()),
                message: printable(status.message(), LONGEST_MESSAGE),
            }),
            // ttrpc has no variant of its own for its deadline.
            Ok(Err(ttrpc::Error::Others(text))) if text.contains("deadline elapsed") => {
                Err(AgentError::TimedOut(bound))
            }
            // Nor for an answer that cannot be decoded. The connection goes on.
            Ok(Err(ttrpc::Error::Others(text))) if text.starts_with("Unpack") => Err(AgentError::Refused {
                refusal: Refusal::Failed,
                message: printable(&text, LONGEST_MESSAGE),
            }),
            Ok(Err(error)) => Err(AgentError::Broken(error.to_string())),
        }
    }
}

/// A call's time limit, and its place in a trace if it has one.
fn request_context(limit: Duration) -> Context {
    let mut context = context::with_duration(limit);
    if let Some(traceparent) = trace::current().and_then(|place| place.traceparent()) {
        context.add(trace::TRACEPARENT.to_owned(), traceparent);
    }
    context
}

/// The label that Kata's dashboard has for a call: its agent's request.
fn kata_name(action: &str) -> String {
    let name = match action {
        "guest_metrics" => "get_metrics",
        "exec" => "exec_process",
        "signal" => "signal_process",
        "stats" => "stats_container",
        "update" => "update_container",
        other => other,
    };
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    format!("grpc.{}Request", words.collect::<String>())
}

/// Text from the guest made fit for a log or a terminal: no control characters, bounded in length.
#[must_use]
pub fn printable(text: &str, longest: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(longest));
    for character in text.chars() {
        if clean.len() + character.len_utf8() > longest {
            clean.push('…');
            break;
        }
        clean.push(if character.is_control() && character != '\n' {
            ' '
        } else {
            character
        });
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_of_the_guest_is_bounded_and_has_no_control_characters(text: String, longest in 0usize..64) {
            let clean = printable(&text, longest);
            prop_assert!(clean.len() <= longest + '…'.len_utf8());
            prop_assert!(clean.chars().all(|character| !character.is_control() || character == '\n'));
        }
    }

    /// What ttrpc's header says of a frame: its length and its stream.
    async fn frame(guest: &mut (impl tokio::io::AsyncRead + Unpin)) -> u32 {
        use tokio::io::AsyncReadExt as _;
        let length = guest.read_u32().await.unwrap();
        let stream = guest.read_u32().await.unwrap();
        let mut rest = vec![0; 2 + length as usize];
        guest.read_exact(&mut rest).await.unwrap();
        stream
    }

    /// An exec whose request takes many writes.
    fn large() -> ExecRequest {
        ExecRequest {
            process: vec![7; 1 << 20],
            ..ExecRequest::default()
        }
    }

    /// A number as protobuf has it, and bytes after their length.
    fn varint(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        bytes.push(number.to_le_bytes()[0]);
        bytes
    }

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [vec![number << 3 | 2], varint(content.len()), content.to_vec()].concat()
    }

    #[tokio::test]
    async fn what_the_agent_says_of_an_error_is_cut_off_and_has_no_control_characters() {
        use tokio::io::AsyncWriteExt as _;
        let (mut guest, host) = tokio::io::duplex(1 << 20);
        let agent = AgentClient::new(Box::new(host), Duration::from_secs(30), Scale::default());
        let asked = tokio::spawn(async move { agent.signal(&SignalRequest::new()).await });
        let stream = frame(&mut guest).await;
        let text = "\u{1b}[2J\u{7}cleared".repeat(5_000);
        // ttrpc's Response has a Status as its first field, and that a code (INTERNAL) and a message.
        let status = [vec![8, 13], field(2, text.as_bytes())].concat();
        let response = field(1, &status);
        let length = u32::try_from(response.len()).unwrap();
        let header = [length.to_be_bytes(), stream.to_be_bytes()].concat();
        guest.write_all(&[header, vec![2, 0], response].concat()).await.unwrap();
        let Err(AgentError::Refused { message, .. }) = asked.await.unwrap() else {
            panic!("it was not refused");
        };
        assert!(
            message.contains("cleared") && message.len() <= LONGEST_MESSAGE + '…'.len_utf8(),
            "{}",
            message.len()
        );
        assert!(!message.contains(char::is_control), "{message:?}");
    }

    /// Whether the agent can still be asked.
    async fn is_alive(agent: AgentClient, mut guest: tokio::io::DuplexStream) {
        assert_eq!(frame(&mut guest).await, 1, "the frame that was begun comes whole");
        let asked = tokio::spawn(async move { agent.signal(&SignalRequest::new()).await });
        assert_eq!(frame(&mut guest).await, 3);
        assert!(!asked.is_finished(), "the connection has ended");
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_in_the_middle_of_its_frame_leaves_the_connection_whole() {
        use tokio::io::AsyncReadExt as _;
        let (mut guest, host) = tokio::io::duplex(64);
        let agent = AgentClient::new(Box::new(host), Duration::from_secs(30), Scale::default());
        let calling = tokio::spawn({
            let agent = agent.clone();
            async move { agent.exec(&large()).await }
        });
        // Some of it has been written, and the rest cannot be yet.
        let mut begun = [0; 4];
        guest.read_exact(&mut begun).await.unwrap();
        calling.abort();
        assert!(calling.await.unwrap_err().is_cancelled());
        let (rest, mut back) = tokio::io::duplex(4 << 20);
        tokio::io::AsyncWriteExt::write_all(&mut back, &begun).await.unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut guest, &mut back).await });
        is_alive(agent, rest).await;
    }

    #[tokio::test]
    async fn a_call_that_times_out_in_the_middle_of_its_frame_leaves_the_connection_whole() {
        let (guest, host) = tokio::io::duplex(64);
        let agent = AgentClient::new(Box::new(host), Duration::from_millis(20), Scale::default());
        let said = agent.exec(&large()).await;
        assert!(matches!(said, Err(AgentError::TimedOut(_))), "{said:?}");
        is_alive(agent, guest).await;
    }
}
