//! How the guest comes up: it says hello, then it serves the agent or gives up.

use std::sync::Arc;

use protocol::agent::event::What;
use protocol::agent_ttrpc::create_agent;
use protocol::preamble::Preamble;
use tokio::net::UnixStream;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use super::agent::FakeAgent;
use super::fake_guest::Guest;
use super::liar;

impl Guest {
    /// Says hello, tells what it cannot do, and powers off when the host has taken that.
    pub(super) async fn give_up(self: Arc<Self>) {
        Arc::clone(&self).hello().await;
        let reason = "the kernel has no module \"e1000e\"".to_owned();
        self.publish(What::Fatal(reason)).await.unwrap();
        self.die("QEMU exited with status 0", false);
    }

    /// Says hello, and serves the agent until the VM ends.
    pub(super) async fn boot(self: Arc<Self>) {
        let setup = Arc::clone(&self).hello().await;
        assert!(setup.clock_ns > 0, "the guest is told the time");
        let connection = self.dial(Preamble::Agent).await.unwrap();
        let (agents, liars) = UnixStream::pair().unwrap();
        tokio::spawn(liar::carry(liars, connection, Arc::clone(&self.liar)));
        let only = futures::stream::once(std::future::ready(Ok(agents)));
        let only = futures::StreamExt::chain(only, futures::stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(only))
            .register_service(create_agent(Arc::new(FakeAgent(Arc::clone(&self)))));
        server.start().await.unwrap();
        let mut ended = self.ended();
        ended.wait_for(Option::is_some).await.unwrap();
    }
}
