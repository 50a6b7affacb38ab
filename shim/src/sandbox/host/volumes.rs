//! Direct-assigned volumes while containers use them: usage statistics, and resize.

use std::path::Path;

use guest::agent_client::AgentError;
use node::volumes::DirectVolume;
use protocol::agent::{GrowStorageRequest, StorageName, StorageStatsResponse};

use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;

impl Sandbox {
    /// The volume of this path, or on this device: Kata's clients ask by the device.
    fn direct_volume(&self, path: &Path) -> Result<DirectVolume, Error> {
        let volumes = self.direct_volumes();
        let on = || volumes.values().find(|volume| volume.disk.path == path);
        let found = volumes.get(path).or_else(on).cloned();
        found.ok_or_else(|| not_found(path))
    }

    /// How full a volume is.
    ///
    /// # Errors
    /// The sandbox has no such volume, or the guest does not answer.
    pub async fn volume_stats(&self, path: &Path) -> Result<StorageStatsResponse, Error> {
        let (volume, subject) = (self.direct_volume(path)?, subject(path));
        let agent = self.agent("ask for the use of", &subject)?;
        let request = StorageName {
            name: volume.storage,
            ..StorageName::default()
        };
        let stats = agent.storage_stats(&request).await;
        stats.map_err(failed("ask for the use of", subject))
    }

    /// Makes a volume `bytes` bytes large, or as large as its device is, with the file system on it.
    ///
    /// # Errors
    /// The sandbox has no such volume, its device is too small or its image too large, or its file system cannot grow.
    pub async fn resize_volume(&self, path: &Path, bytes: u64) -> Result<StorageStatsResponse, Error> {
        let (volume, subject) = (self.direct_volume(path)?, subject(path));
        let agent = self.agent("resize", &subject)?;
        let vm = self.running_vm().ok_or_else(|| not_found(path))?;
        let grown = self.disks.grow(vm.as_ref(), &volume.disk, bytes).await;
        let grown = grown.map_err(|source| Error::Disk {
            operation: "resize",
            subject: subject.clone(),
            source: Box::new(source),
        })?;
        let request = GrowStorageRequest {
            name: volume.storage,
            bytes: grown.ok_or_else(|| not_found(path))?,
            ..GrowStorageRequest::default()
        };
        agent.grow_storage(&request).await.map_err(failed("resize", subject))
    }
}

fn subject(path: &Path) -> String {
    format!("volume {}", path.display())
}

fn not_found(path: &Path) -> Error {
    Error::NotFound { subject: subject(path) }
}

fn failed(operation: &'static str, subject: String) -> impl FnOnce(AgentError) -> Error {
    move |source| Error::Agent {
        operation,
        subject,
        source,
    }
}
