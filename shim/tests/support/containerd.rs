//! containerd's side: it takes events.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::watch;
use ttrpc::r#async::{Server, TtrpcContext};

pub(crate) struct Containerd {
    address: String,
    taken: Arc<watch::Sender<Vec<Envelope>>>,
    _server: Server,
}

struct Taker(Arc<watch::Sender<Vec<Envelope>>>);

#[async_trait]
impl Events for Taker {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0
            .send_modify(|taken| taken.push(request.envelope.unwrap_or_default()));
        Ok(Empty::new())
    }
}

impl Containerd {
    pub(super) async fn listen(socket: &Path) -> Self {
        let address = format!("unix://{}", socket.display());
        let taken = Arc::new(watch::Sender::new(Vec::new()));
        let taker = Arc::new(Taker(Arc::clone(&taken)));
        let server = Server::new().bind(&address).unwrap();
        let mut server = server.register_service(create_events(taker));
        server.start().await.unwrap();
        Self {
            address,
            taken,
            _server: server,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The topics in the order in which they came, once there are that many.
    pub(crate) async fn topics(&self, count: usize) -> Vec<String> {
        let mut taken = self.taken.subscribe();
        let taken = taken.wait_for(|taken| taken.len() >= count).await.unwrap();
        taken.iter().map(|envelope| envelope.topic.clone()).collect()
    }

    /// The exit event of a process: of the container's first one, or of an exec.
    pub(crate) async fn exit(&self, process: &str) -> TaskExit {
        let mut taken = self.taken.subscribe();
        let find = |taken: &Vec<Envelope>| taken.iter().filter_map(exit_of).find(|exit| exit.id == process);
        let taken = taken.wait_for(|taken| find(taken).is_some()).await.unwrap();
        find(&taken).unwrap()
    }

    /// How many exit events there were for a process up to now.
    pub(crate) fn exits(&self, process: &str) -> usize {
        let taken = self.taken.borrow();
        taken
            .iter()
            .filter_map(exit_of)
            .filter(|exit| exit.id == process)
            .count()
    }
}

fn exit_of(envelope: &Envelope) -> Option<TaskExit> {
    (envelope.topic == "/tasks/exit").then(|| TaskExit::parse_from_bytes(&envelope.event.value).unwrap())
}
