//! The shim called as CRI-O does for a runtime of type `vm` (its internal/oci/runtime_vm.go): without containerd, and so without a
//! place for events, by its own annotations.

use framework::{Error, Node, Result};

mod kata_only {
    use std::{
        fs,
        io::Read as _,
        os::unix::fs::OpenOptionsExt as _,
        path::{Path, PathBuf},
        process::{Command, Stdio},
        thread,
    };

    use containerd_shim_protos::{
        api::{CreateTaskRequest, DeleteRequest, KillRequest, ShutdownRequest, StartRequest, WaitRequest},
        shim_async::{Client, TaskClient},
    };
    use framework::{Spec, locate};
    use nix::{sys::stat::Mode, unistd::mkfifo};
    use ttrpc::context::{self, Context};

    use super::*;

    fn long() -> Context {
        context::with_timeout(120_000_000_000)
    }

    fn failed(what: &str) -> impl Fn(ttrpc::Error) -> Error + '_ {
        move |error| Error::unexpected(format!("{what}: {error}"))
    }

    /// A bundle as CRI-O makes it: the root is mounted already, and named by its path.
    fn bundle(node: &Node, id: &str, spec: Spec) -> Result<PathBuf> {
        let directory = node.dir().join("crio").join(id);
        fs::create_dir_all(&directory)?;
        let spec = spec.set("/linux/cgroupsPath", format!("/{id}"))?;
        fs::write(directory.join("config.json"), spec.get("").to_string())?;
        mkfifo(&directory.join("log"), Mode::S_IRWXU).map_err(|errno| Error::io("making a FIFO")(errno.into()))?;
        Ok(directory)
    }

    /// Runs `start`, and keeps the shim's log from filling its pipe. The answer is the address.
    fn start(node: &Node, id: &str, bundle: &Path) -> Result<String> {
        let log = fs::File::options()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(bundle.join("log"))?;
        let output = Command::new(locate::built("bin/containerd-shim-kata-v2", "build")?)
            .args([
                "-namespace",
                "default",
                "-address",
                "",
                "-publish-binary",
                "/usr/bin/crio",
            ])
            .args(["-id", id, "start"])
            .current_dir(bundle)
            .env("TTRPC_ADDRESS", "")
            .env("GRPC_ADDRESS", "")
            .env("KATA_CONF_FILE", node.configuration())
            .stdin(Stdio::null())
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            return Err(Error::unexpected(text(&output.stderr)));
        }
        thread::spawn(move || {
            use std::os::fd::AsFd as _;
            // It ends with the shim, or with the test.
            let mut log = log;
            let mut buffer = vec![0; 4096];
            loop {
                let mut wait = [nix::poll::PollFd::new(log.as_fd(), nix::poll::PollFlags::POLLIN)];
                let _ = nix::poll::poll(&mut wait, nix::poll::PollTimeout::NONE);
                if !matches!(log.read(&mut buffer), Ok(1..)) {
                    return;
                }
            }
        });
        Ok(text(&output.stdout))
    }

    async fn connect(address: &str) -> Result<TaskClient> {
        Ok(TaskClient::new(
            Client::connect(address).await.map_err(failed("connect"))?,
        ))
    }

    fn of_pod(spec: Spec, kind: &str, pod: &str) -> Result<Spec> {
        spec.annotation("io.kubernetes.cri-o.ContainerType", kind)?
            .annotation("io.kubernetes.cri-o.SandboxID", pod)
    }

    async fn remove(tasks: &TaskClient, id: &str) -> Result<u32> {
        let wait = WaitRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let status = tasks.wait(long(), &wait).await.map_err(failed("wait"))?.exit_status;
        let delete = DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        tasks.delete(long(), &delete).await.map_err(failed("delete"))?;
        Ok(status)
    }

    async fn lives(node: &Node) -> Result<()> {
        let (pod, container) = (node.id("pod"), node.id("container"));
        let sandbox = of_pod(node.spec("pod", &["/pause"])?, "sandbox", &pod)?;
        let sandbox = bundle(node, &pod, sandbox)?;
        let address = start(node, &pod, &sandbox)?;
        let tasks = connect(&address).await?;
        let create = CreateTaskRequest {
            id: pod.clone(),
            bundle: sandbox.display().to_string(),
            ..Default::default()
        };
        tasks
            .create(long(), &create)
            .await
            .map_err(failed("create the sandbox"))?;
        let begin = StartRequest {
            id: pod.clone(),
            ..Default::default()
        };
        tasks.start(long(), &begin).await.map_err(failed("start the sandbox"))?;

        let spec = node.spec("container", &["sh", "-c", "echo hello; exit 7"])?;
        let inner = bundle(node, &container, of_pod(spec, "container", &pod)?)?;
        // The pod's shim is there already.
        assert_eq!(start(node, &container, &inner)?, address);
        let stdout = inner.join("stdout");
        mkfifo(&stdout, Mode::S_IRWXU).map_err(|errno| Error::io("making a FIFO")(errno.into()))?;
        let path = stdout.clone();
        let reading = thread::spawn(move || fs::read_to_string(path));
        let create = CreateTaskRequest {
            id: container.clone(),
            bundle: inner.display().to_string(),
            stdout: stdout.display().to_string(),
            ..Default::default()
        };
        tasks
            .create(long(), &create)
            .await
            .map_err(failed("create the container"))?;
        let begin = StartRequest {
            id: container.clone(),
            ..Default::default()
        };
        tasks
            .start(long(), &begin)
            .await
            .map_err(failed("start the container"))?;
        assert_eq!(remove(&tasks, &container).await?, 7);
        let said = reading
            .join()
            .map_err(|_| Error::unexpected("the reader has panicked"))??;
        assert_eq!(said, "hello\n");

        let kill = KillRequest {
            id: pod.clone(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        tasks.kill(long(), &kill).await.map_err(failed("kill the sandbox"))?;
        assert_eq!(remove(&tasks, &pod).await?, 137);
        let shutdown = ShutdownRequest {
            id: pod,
            ..Default::default()
        };
        // The answer may be the connection's end.
        let _ = tasks.shutdown(long(), &shutdown).await;
        Ok(())
    }

    #[test]
    fn a_pod_lives_and_ends_without_containerd() -> Result<()> {
        let node = Node::start_configured("")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(lives(&node))?;
        node.nothing_left()
    }
}
