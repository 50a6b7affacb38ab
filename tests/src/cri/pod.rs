//! A pod that runs and its containers, as tests speak of them.

use std::{fs, time::Duration};

use super::{
    messages::{
        ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, CreateContainerRequest, ImageSpec,
        LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
        PodSandboxConfig, PodSandboxState, PodSandboxStatus, ProfileType, SecurityProfile,
    },
    node::{PodNode, eventually},
};
use crate::{Error, Report, Result, image, wait};

/// Timeout for a command in a container.
const EXEC: Duration = Duration::from_secs(60);

/// The security context of a container that [`Pod::container`] made, to be changed.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// The limits of a container that [`Pod::container`] made, to be changed.
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

pub struct Pod<'a> {
    node: &'a PodNode,
    pub id: String,
    pub config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    pub(super) fn new(node: &'a PodNode, id: String, config: PodSandboxConfig) -> Self {
        Self { node, id, config }
    }

    /// The configuration of a container that asks for nothing, as the kubelet writes it: no seccomp, and a pid namespace
    /// of its own unless the pod shares one.
    pub fn container(&self, name: &str, args: &[&str]) -> ContainerConfig {
        let shared = self
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref());
        let namespaces = shared
            .and_then(|context| context.namespace_options.clone())
            .unwrap_or(NamespaceOption {
                pid: NamespaceMode::Container.into(),
                ..NamespaceOption::default()
            });
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image::NAME.to_owned(),
            }),
            command: args.iter().map(|arg| (*arg).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    seccomp: Some(SecurityProfile {
                        profile_type: ProfileType::Unconfined.into(),
                        localhost_ref: String::new(),
                    }),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        }
    }

    /// A container whose shell runs a script.
    pub fn script(&self, name: &str, script: &str) -> ContainerConfig {
        self.container(name, &["sh", "-c", script])
    }

    pub fn create(&self, config: &ContainerConfig) -> Result<Container<'a>> {
        let id = self.node.cri().create_container(CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        })?;
        Ok(Container {
            node: self.node,
            id,
            log_path: format!("{}/{}", self.config.log_directory, config.log_path),
        })
    }

    pub fn start(&self, config: &ContainerConfig) -> Result<Container<'a>> {
        let container = self.create(config)?;
        container.start()?;
        Ok(container)
    }

    /// Runs the probe in a container of its own and gives its report.
    pub fn report(&self, config: &ContainerConfig) -> Result<Report> {
        self.start(config)?.report()
    }

    pub fn status(&self) -> Result<PodSandboxStatus> {
        self.node.cri().pod_status(&self.id)
    }

    /// Waits until CRI says that the sandbox runs no more.
    pub fn await_not_ready(&self) -> Result<PodSandboxStatus> {
        eventually("the sandbox is not ready", || {
            let status = self.status()?;
            Ok((status.state() == PodSandboxState::NotReady).then_some(status))
        })
    }

    /// Stops it and all of its containers.
    pub fn stop(&self) -> Result<()> {
        self.node.cri().stop_pod(&self.id)
    }

    /// Stops and removes it, as the kubelet does at a pod's end.
    pub fn remove(&self) -> Result<()> {
        self.stop()?;
        self.node.cri().remove_pod(&self.id)
    }

    /// The pid on the host that containerd knows for its sandbox.
    pub fn pid(&self) -> Result<u32> {
        let info = self.node.cri().pod_info(&self.id)?;
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.filter(|pid| *pid != 0)
            .ok_or_else(|| Error::unexpected(format!("no pid in {info}")))
    }
}

/// A container of a pod.
pub struct Container<'a> {
    node: &'a PodNode,
    pub id: String,
    log_path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    pub text: String,
}

impl Container<'_> {
    pub fn start(&self) -> Result<()> {
        self.node.cri().start_container(&self.id)
    }

    pub fn status(&self) -> Result<ContainerStatus> {
        self.node.cri().container_status(&self.id)
    }

    pub fn await_exit(&self) -> Result<ContainerStatus> {
        eventually("the container has exited", || {
            let status = self.status()?;
            Ok((status.state() == ContainerState::Exited).then_some(status))
        })
    }

    /// Runs a command in it, which must succeed, and gives its standard output.
    pub fn exec(&self, cmd: &[&str]) -> Result<String> {
        let limit = wait::patience(EXEC).as_secs();
        let output = self
            .node
            .cri()
            .exec_sync(&self.id, cmd, i64::try_from(limit).unwrap_or(0))?;
        if output.exit_code == 0 {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            command: format!("{cmd:?} in {}", self.id),
            code: Some(output.exit_code),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a script in it, which must succeed, and gives its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec(&["sh", "-c", script])
    }

    /// Stops it: by its stop signal, and after so many seconds by force.
    pub fn stop(&self, timeout: i64) -> Result<()> {
        self.node.cri().stop_container(&self.id, timeout)
    }

    pub fn remove(&self) -> Result<()> {
        self.node.cri().remove_container(&self.id)
    }

    /// Where its log is on the host.
    pub fn log_path(&self) -> &str {
        &self.log_path
    }

    /// Its log so far. A line of the log is a time, a stream, a tag (P for a part, F for a full line) and the text, as
    /// the kubelet expects it.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        let text = fs::read(&self.log_path).map_err(Error::io(format!("reading {}", self.log_path)))?;
        parse_log(&String::from_utf8_lossy(&text))
    }

    /// Waits until a line of its log is `text`.
    pub fn await_line(&self, text: &str) -> Result<()> {
        eventually(&format!("the container prints {text:?}"), || {
            let found = self.log()?.iter().any(|line| line.text == text);
            Ok(found.then_some(()))
        })
    }

    /// The report that its program, the probe, has printed before its end.
    pub fn report(&self) -> Result<Report> {
        self.await_exit()?;
        let text: String = self.log()?.into_iter().map(|line| line.text).collect();
        Report::parse_text(&text)
    }
}

fn parse_log(text: &str) -> Result<Vec<LogLine>> {
    let mut lines: Vec<LogLine> = Vec::new();
    let mut partial = [None::<String>, None];
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let (_, Some(stream), Some(tag), Some(text)) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err(Error::unexpected(format!("a line of the log is {line:?}")));
        };
        let pending = &mut partial[usize::from(stream == "stderr")];
        let text = pending.take().unwrap_or_default() + text;
        match tag {
            "P" => *pending = Some(text),
            _ => lines.push(LogLine {
                stream: stream.to_owned(),
                text,
            }),
        }
    }
    // What has no end of line yet.
    for (stream, text) in ["stdout", "stderr"].into_iter().zip(partial) {
        lines.extend(text.map(|text| LogLine {
            stream: stream.to_owned(),
            text,
        }));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_line_are_joined_per_stream() -> Result<()> {
        let log = "t stdout P ab\nt stderr F e\nt stdout F c d\nt stderr P x\n";
        let line = |stream: &str, text: &str| LogLine {
            stream: stream.to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(
            parse_log(log)?,
            [line("stderr", "e"), line("stdout", "abc d"), line("stderr", "x")]
        );
        assert!(parse_log("rubbish").is_err());
        Ok(())
    }
}
