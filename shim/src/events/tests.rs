//! Tests of the events that a restarted containerd receives.

use async_trait::async_trait;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::topics::{TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC};
use tokio::sync::mpsc;
use ttrpc::r#async::{Server, TtrpcContext};

use super::*;

struct Taker(mpsc::UnboundedSender<String>);

#[async_trait]
impl Events for Taker {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let _ = self.0.send(request.envelope.unwrap_or_default().topic);
        Ok(Empty::new())
    }
}

/// Refuses the first events with these codes, and takes all that follow.
struct Refuser(Mutex<Vec<Code>>, mpsc::UnboundedSender<String>);

#[async_trait]
impl Events for Refuser {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        if let Some(code) = self.0.lock().unwrap().pop() {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "not now")));
        }
        let _ = self.1.send(request.envelope.unwrap_or_default().topic);
        Ok(Empty::new())
    }
}

#[tokio::test]
async fn an_exit_arrives_whatever_status_containerd_answers_first() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", directory.path().join("containerd.sock").display());
    let (taken, mut topics) = mpsc::unbounded_channel();
    let codes = vec![Code::INVALID_ARGUMENT, Code::UNKNOWN, Code::UNAVAILABLE];
    let refuser = Refuser(Mutex::new(codes), taken);
    let server = Server::new().bind(&address).unwrap();
    let mut server = server.register_service(create_events(Arc::new(refuser)));
    server.start().await.unwrap();
    let events = Publisher::start(&address, "default");
    events.publish(TASK_EXIT_EVENT_TOPIC, &TaskExit::default());
    events.flush(Duration::from_secs(60)).await;
    assert_eq!(topics.try_recv().ok().as_deref(), Some(TASK_EXIT_EVENT_TOPIC));
}

#[tokio::test]
async fn a_guest_that_reports_ooms_without_end_pushes_no_exit_out() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", directory.path().join("containerd.sock").display());
    let events = Publisher::start(&address, "default");
    events.publish(TASK_EXIT_EVENT_TOPIC, &TaskExit::default());
    let oom = TaskOOM {
        container_id: "c".to_owned(),
        ..Default::default()
    };
    for _ in 0..3 * backlog::OTHERS {
        events.publish(TASK_OOM_EVENT_TOPIC, &oom);
    }
    // It is back.
    let (taken, mut topics) = mpsc::unbounded_channel();
    let server = Server::new().bind(&address).unwrap();
    let mut server = server.register_service(create_events(Arc::new(Taker(taken))));
    server.start().await.unwrap();
    assert_eq!(topics.recv().await.as_deref(), Some(TASK_EXIT_EVENT_TOPIC));
    events.flush(Duration::from_secs(60)).await;
    let mut ooms = 0;
    while let Ok(topic) = topics.try_recv() {
        assert_eq!(topic, TASK_OOM_EVENT_TOPIC);
        ooms += 1;
    }
    assert_eq!(ooms, backlog::MANY, "thousands of the same are of no use to anybody");
}
