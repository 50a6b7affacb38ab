//! Calls in the wrong order: one table of who gets which code.

use ttrpc::Code;

use crate::support::{Boot, Shim, refusal, soon};
use containerd_shim_protos::api::{CheckpointTaskRequest, PauseRequest, PidsRequest, ResumeRequest, StatsRequest};

#[derive(Debug, Clone, Copy)]
enum Call {
    Create,
    Start,
    Exec,
    Kill,
    Pause,
    Resume,
    Pids,
    Stats,
    State,
    Wait,
    Delete,
    Checkpoint,
}

/// The code of the answer; none for a success.
async fn code(shim: &Shim, id: &str, exec: &str, call: Call) -> Option<Code> {
    let own = || id.to_owned();
    let result = match call {
        Call::Create => shim.create(id, &["sleep"]).await.map(drop),
        Call::Start => shim.start(id, exec).await.map(drop),
        Call::Exec => shim.exec(id, exec, &["sleep"]).await,
        Call::Kill => shim.kill(id, exec, 0).await,
        Call::Pause => {
            let request = PauseRequest {
                id: own(),
                ..Default::default()
            };
            shim.tasks.pause(soon(), &request).await.map(drop)
        }
        Call::Resume => {
            let request = ResumeRequest {
                id: own(),
                ..Default::default()
            };
            shim.tasks.resume(soon(), &request).await.map(drop)
        }
        Call::Pids => {
            let request = PidsRequest {
                id: own(),
                ..Default::default()
            };
            shim.tasks.pids(soon(), &request).await.map(drop)
        }
        Call::Stats => {
            let request = StatsRequest {
                id: own(),
                ..Default::default()
            };
            shim.tasks.stats(soon(), &request).await.map(drop)
        }
        Call::State => shim.state(id, exec).await.map(drop),
        Call::Wait => shim.wait(id, exec).await.map(drop),
        Call::Delete => shim.delete(id, exec).await.map(drop),
        Call::Checkpoint => {
            let request = CheckpointTaskRequest {
                id: own(),
                ..Default::default()
            };
            shim.tasks.checkpoint(soon(), &request).await.map(drop)
        }
    };
    match result {
        Ok(()) => None,
        error => Some(refusal(error).0),
    }
}

#[tokio::test]
async fn every_call_that_comes_at_the_wrong_time_gets_its_code() {
    use Call::{Checkpoint, Create, Delete, Exec, Kill, Pause, Pids, Resume, Start, State, Stats, Wait};
    let shim = Shim::new(Boot::Works).await;
    shim.create("created", &["sleep"]).await.unwrap();
    shim.run("running", &["sleep"]).await;
    shim.run("stopped", &["exit", "0"]).await;
    shim.wait("stopped", "").await.unwrap();
    shim.run("paused", &["sleep"]).await;
    shim.exec("paused", "waiting", &["sleep"]).await.unwrap();
    assert_eq!(code(&shim, "paused", "", Pause).await, None);
    shim.exec("running", "added", &["sleep"]).await.unwrap();
    shim.exec("running", "started", &["sleep"]).await.unwrap();
    shim.start("running", "started").await.unwrap();

    let missing = Some(Code::NOT_FOUND);
    let state = Some(Code::FAILED_PRECONDITION);
    let invalid = Some(Code::INVALID_ARGUMENT);
    let table = [
        (
            "nobody",
            "",
            &[Start, Kill, Pause, Resume, Pids, Stats, State, Wait, Delete][..],
            missing,
        ),
        ("running", "nobody", &[Start, Kill, State, Wait, Delete], missing),
        ("../x", "", &[Create, Start, State, Delete], invalid),
        ("running", "a/b", &[Exec, Start, State], invalid),
        ("running", "", &[Exec], invalid),
        ("created", "", &[Create], Some(Code::ALREADY_EXISTS)),
        ("created", "", &[Pause, Resume], state),
        ("created", "", &[State, Pids, Stats], None),
        ("running", "", &[Create], Some(Code::ALREADY_EXISTS)),
        ("running", "", &[Start, Delete, Resume], state),
        ("running", "", &[Checkpoint], Some(Code::UNIMPLEMENTED)),
        ("running", "added", &[Exec], Some(Code::ALREADY_EXISTS)),
        ("running", "added", &[Kill], state),
        ("running", "started", &[Start, Delete], state),
        ("paused", "", &[Pause], state),
        ("paused", "waiting", &[Start], state),
        ("stopped", "", &[Start, Pause, Resume], state),
        ("stopped", "late", &[Exec], state),
        ("stopped", "", &[Kill, Stats], missing),
        ("stopped", "", &[Pids, State, Wait, Delete], None),
        ("stopped", "", &[Delete], missing),
    ];
    for (id, exec, calls, expected) in table {
        for call in calls {
            let answer = code(&shim, id, exec, *call).await;
            assert_eq!(answer, expected, "{call:?} of {id:?} {exec:?}");
        }
    }
}
