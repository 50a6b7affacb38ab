//! A booted VM that no sandbox uses yet: how it is made, and what is passed on to the sandbox that takes it.
//!
//! The VM is driven by a thread of its own, with a runtime of its own and a mount namespace of its own, for the process's whole life. The
//! sandbox that adopts it has another mount namespace, which is made at that moment and contains what the host has mounted meanwhile. The shared
//! directory is a mount in both, and the two are peers (mount_namespaces(7)): what the sandbox mounts below it reaches virtiofsd.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use base::chain;
use base::scale::Scale;
use base::spawn::Score;
use config::{Config, Hypervisor};
use hypervisor::{GuestListener, GuestStream, NetworkNamespace, Vm, VmRequest, vm_time};
use node::boot_queue::BootQueue;
use node::host_cgroup::{Allowance, HostCgroup};
use node::host_ns;
use node::run_dir::{self, RunDir};
use node::share;
use node::sizing::HostLimits;

use super::place::PoolError;
use crate::qemu::debug_image::DebugImage;
use crate::qemu::parked::Parked;
use crate::qemu::saved::{Saved, first_call};

/// Of the 1024 that a cgroup has without a limit (cgroup-v1/sched-design, `cpu.shares`): a VM that nobody waits for gets half of what one has
/// that somebody waits for. With much less it would never boot on a node that is always busy.
const SHARES: u64 = 512;

/// The first whom the host's kernel kills for want of memory (proc_pid_oom_score_adj(5)).
pub(super) const FIRST_TO_GO: i32 = 1000;

/// What the thread tells: the VM, or why there is none. `alive` has a byte when there is a VM, and ends when there is none any more.
pub(super) struct Booting {
    pub(super) result: mpsc::Receiver<Result<Parked, PoolError>>,
    pub(super) alive: OwnedFd,
}

/// Begins to boot a VM whose files are in this directory, or as a copy of the saved one. `config` has its size.
///
/// # Errors
/// A thread or a pipe cannot be had.
pub(super) fn boot(
    config: Config,
    run_dir: RunDir,
    cgroup: HostCgroup,
    saved: Option<Saved>,
) -> Result<Booting, PoolError> {
    let failed = |source| PoolError::Start("thread for the VM", source);
    let (alive, dead) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let (tell, result) = mpsc::channel();
    let drive = move || {
        let runtime = host_ns::leave()
            .map_err(|error| PoolError::Boot(chain(&error)))
            .and_then(|()| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(failed)
            });
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        runtime.block_on(async {
            let parked = Box::pin(park(&config, &run_dir, cgroup, saved)).await;
            let ended = parked.as_ref().ok().map(|parked| parked.vm.ended());
            // The receiver waits for it, or the process is about to end.
            let _ = tell.send(parked);
            if let Some(ended) = ended {
                // The pipe is empty: it takes a byte.
                let _ = rustix::io::write(&dead, &[0]);
                ended.await;
            }
            drop(dead);
            // It drives what the VM's descriptors need until the process ends.
            std::future::pending::<()>().await;
        });
    };
    thread::Builder::new()
        .name("vm".to_owned())
        .spawn(drive)
        .map_err(failed)?;
    Ok(Booting { result, alive })
}

/// Gives the VM in this cgroup less of the CPUs than those have that somebody waits for.
pub(super) async fn yield_to_sandboxes(cgroup: &HostCgroup) {
    let limits = HostLimits {
        shares: Some(SHARES),
        ..HostLimits::default()
    };
    Allowance::new(cgroup.clone()).limit(limits).await;
}

/// The image with the debug console's programs, if it is wanted and can be had.
pub(super) fn debug_image(config: &Config, directory: &Path) -> Option<DebugImage> {
    let wanted = config.agent.debug_console_enabled;
    wanted
        .then(|| DebugImage::make(&config.hypervisor, directory).ok())
        .flatten()
}

/// What is asked for of a VM that is nobody's.
pub(super) fn request(config: &Config, run_dir: PathBuf, shared_dir: PathBuf, cgroup: &HostCgroup) -> VmRequest {
    let id = run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    VmRequest {
        id,
        run_dir,
        shared_dir,
        share_tag: protocol::SHARE_TAG.to_owned(),
        netns: NetworkNamespace::Empty,
        nics: Vec::new(),
        cgroup_procs: cgroup.procs_files(),
        score: Score::Of(FIRST_TO_GO),
        start_timeout: config.agent.dial_timeout,
        scale: Scale::new(config.runtime.timeout_factor.get()),
        kernel_params: Vec::new(),
        host_port: protocol::DEFAULT_HOST_PORT,
        port_parameter: protocol::PORT_PARAMETER.to_owned(),
    }
}

async fn park(
    config: &Config,
    run_dir: &RunDir,
    cgroup: HostCgroup,
    saved: Option<Saved>,
) -> Result<Parked, PoolError> {
    let failed = |error: &dyn std::error::Error| PoolError::Boot(chain(error));
    let shared = share::prepare(run_dir).map_err(|error| failed(&error))?;
    yield_to_sandboxes(&cgroup).await;
    let queue = BootQueue::in_advance(Path::new(run_dir::ROOT));
    let place = queue.enter().await.map_err(|error| failed(&error))?;
    let image = debug_image(config, run_dir.path());
    let hypervisor = image.as_ref().map_or(&config.hypervisor, |image| &image.config);
    let request = request(config, run_dir.path().to_owned(), run_dir.shared(), &cgroup);
    let copied = match saved {
        Some(saved) => saved.copy(hypervisor, request.clone()).await,
        None => None,
    };
    let (vm, listener, first) = match copied {
        Some(copied) => copied,
        None => boot_and_wait(config, hypervisor, request).await?,
    };
    drop(place);
    Ok(Parked {
        vm,
        listener,
        first,
        shared,
        cgroup,
    })
}

/// Boots a VM, and waits until its agent has rehearsed and calls.
async fn boot_and_wait(
    config: &Config,
    hypervisor: &Hypervisor,
    mut request: VmRequest,
) -> Result<(Vm, GuestListener, GuestStream), PoolError> {
    let failed = |error: &dyn std::error::Error| PoolError::Boot(chain(error));
    request.kernel_params.push(protocol::REHEARSAL_PARAMETER.to_owned());
    let booted = Box::pin(hypervisor::boot(hypervisor, request)).await;
    let (vm, mut listener) = booted.map_err(|error| failed(&error))?;
    let pids: Vec<u32> = vm.pids().collect();
    let first = tokio::select! {
        first = first_call(&mut listener) => first.map_err(|error| failed(&error))?,
        ended = vm.ended() => return Err(PoolError::Boot(ended.to_string())),
        () = vm_time::has_passed(config.agent.dial_timeout, || pids.clone()) => {
            return Err(PoolError::Boot(format!("the guest's agent did not call; its console ends with: {}", vm.console_tail())));
        }
    };
    Ok((vm, listener, first))
}
