//! A VM that is saved when it has booted, and VMs that begin as copies of it.
//!
//! ```text
//! save_booted: QEMU without share and vsock ── the guest waits ──► stopped ── `migrate` ──► file
//! boot_copy:   helpers; QEMU, stopped ── `migrate-incoming` ◄── file ── share, vsock, NICs plugged in ──► running
//! ```
//! vhost-user-vsock cannot be migrated (hw/virtio/vhost-user-vsock.c), and each copy needs a CID of its own anyway: so a saved VM has none of
//! the devices that lead out of it. A copy's memory is its own: it is read from the file (`mapped-ram`, QEMU 9.0), because the helpers need
//! memory that is shared with them. The module does not know what a guest does while it waits.

use std::os::fd::OwnedFd;

use config::Hypervisor;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Duration;

use super::{Inherited, Plan, PortChoice, command_line};
use crate::boot_error::BootError;
use crate::hotplug::Backend;
use crate::listener::GuestListener;
use crate::machine::request::VmRequest;
use crate::observe::ended::Cause;
use crate::process::vm_time;
use crate::qmp::{Event, Qmp};
use crate::vm::Vm;

/// The set of descriptors that has the file: `/dev/kvm` has the last one, disks count from the first.
const FILE_SET: i32 = i32::MAX - 1;

/// Pause between two looks at the console.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Boots a VM without share, vsock and network devices, waits until its guest prints `waits`, and writes its memory and state into the file, which
/// is open for writing. `word` stands on the guest's command line where the port is for others. The VM is gone when it returns. May be cancelled.
///
/// # Errors
/// The VM does not start, the guest does not get so far within `start_timeout`, or QEMU cannot write the file.
pub async fn save_booted(
    config: &Hypervisor,
    request: VmRequest,
    word: &str,
    waits: &str,
    file: OwnedFd,
) -> Result<(), BootError> {
    let plan = Plan::check(config)?;
    let root = super::describe_root(&plan, &request).await?;
    let limit = request.start_timeout;
    let inherited = Inherited {
        root,
        command_line: Some(command_line::build(config, &request, plan.accel, word)?),
        share: None,
        vsock: None,
        backend: super::backend(None),
        helpers: Vec::new(),
        files: Vec::new(),
    };
    let vm = super::start_qemu(plan, config, request, inherited).await?;
    super::wait_for_monitor(&vm, &config.kernel, limit).await?;
    let has_booted = async {
        while !vm.console_tail().lines().any(|line| line.trim_end() == waits) {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    };
    tokio::select! {
        () = has_booted => {}
        ended = vm.ended() => return Err(BootError::Ended { kernel: config.kernel.clone(), ended }),
        () = vm_time::has_passed(limit, || vm.pids().collect()) => {
            return Err(BootError::NotParked { console: vm.console_tail() });
        }
    }
    vm.pause().await?;
    // QEMU's default is 128 MiB a second, for other traffic on the network; 0 is no limit.
    vm.qmp()
        .execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }))
        .await?;
    transfer(&vm, "save", "migrate", file, limit).await?;
    vm.stop().await;
    Ok(())
}

/// Begins a VM with the memory and the state that [`save_booted`] has written into the file with the same configuration, and with a share and a vsock device of its own. Network devices
/// are the caller's to plug in.
/// Returns when the guest runs. May be cancelled: then nothing is left of it.
///
/// # Errors
/// As of a boot; or QEMU cannot use the file.
pub async fn boot_copy(
    config: &Hypervisor,
    mut request: VmRequest,
    file: OwnedFd,
) -> Result<(Vm, GuestListener), BootError> {
    let plan = Plan::check(config)?;
    let (share, guest, root) = tokio::try_join!(
        super::start_share(&plan, config, &request),
        super::start_vsock(config, &request, PortChoice::Cid),
        super::describe_root(&plan, &request)
    )?;
    let (share_child, share) = share.map(|share| (share.child, share.socket)).unzip();
    let inherited = Inherited {
        root,
        command_line: None,
        share: None,
        vsock: None,
        backend: super::backend(guest.cid),
        helpers: share_child.into_iter().chain(guest.daemon).collect(),
        files: guest.files,
    };
    let (limit, tag) = (request.start_timeout, request.share_tag.clone());
    // They come later: a network device of the kernel's belongs to the first QEMU that has it, and this one may fail.
    request.nics.clear();
    let vm = super::start_qemu(plan, config, request, inherited).await?;
    super::wait_for_monitor(&vm, &config.kernel, limit).await?;
    transfer(&vm, "load", "migrate-incoming", file, limit).await?;
    if let Some(socket) = share {
        let queue_size = config.virtio_fs_queue_size;
        vm.plug_backend(Backend::Share {
            socket,
            tag,
            queue_size,
        })
        .await?;
    }
    let device = guest.device;
    let vsock = match guest.cid {
        Some(cid) => Backend::Vhost { device, cid },
        None => Backend::VhostUser { socket: device },
    };
    vm.plug_backend(vsock).await?;
    vm.resume().await?;
    Ok((vm, guest.listener))
}

/// Has QEMU write the file or read it, with a fixed place for each page of the memory, and waits for the end.
async fn transfer(vm: &Vm, step: &'static str, command: &str, file: OwnedFd, limit: Duration) -> Result<(), BootError> {
    let failed = |reason: String| BootError::Saved { step, reason };
    let qmp = vm.qmp();
    let events = qmp.events();
    let set = json!({ "fdset-id": FILE_SET });
    qmp.execute_with("add-fd", set.clone(), file).await?;
    let wanted = ["mapped-ram", "events"].map(|name| json!({ "capability": name, "state": true }));
    let capabilities = json!({ "capabilities": wanted });
    qmp.execute("migrate-set-capabilities", capabilities).await?;
    qmp.execute(command, json!({ "uri": format!("file:/dev/fdset/{FILE_SET}") }))
        .await?;
    tokio::select! {
        end = completed(qmp, events) => end.map_err(failed)?,
        // One that cannot load ends.
        ended = vm.ended() => return Err(match &ended.cause {
            // Killed, as for want of memory: that says nothing of the file.
            Cause::ChildDied(death) if death.signal().is_some() => BootError::Interrupted(ended),
            _ => failed(ended.to_string()),
        }),
        () = vm_time::has_passed(limit, || vm.pids().collect()) => return Err(failed(format!("it takes more than {} s", limit.as_secs()))),
    }
    qmp.execute("remove-fd", set).await?;
    Ok(())
}

/// Waits for the end that QEMU reports (`MIGRATION`, qapi/migration.json).
async fn completed(qmp: &Qmp, mut events: broadcast::Receiver<Event>) -> Result<(), String> {
    loop {
        let status = match events.recv().await {
            Ok(event) if event.name == "MIGRATION" => event.data["status"].as_str().unwrap_or_default().to_owned(),
            Ok(_) | Err(RecvError::Lagged(_)) => continue,
            // It ends, and its end is the better answer.
            Err(RecvError::Closed) => std::future::pending().await,
        };
        match status.as_str() {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let report = qmp.execute("query-migrate", Value::Null).await;
                let report = report.map_err(|error| error.to_string())?;
                return Err(report["error-desc"].as_str().unwrap_or(&status).to_owned());
            }
            _ => {}
        }
    }
}
