//! The parameters of a sandbox's network, from the specification's namespace and the configuration. Pure.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use config::{HostNetwork, InterNetworking};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

/// Most pairs of queues of a device, unless the configuration says how many: more than this many CPUs do not send at once, and each costs descriptors and memory.
const MAX_QUEUES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Which network namespace the specification asks for (OCI runtime spec, config-linux.md, "Namespaces").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// None of its own.
    Host,
    /// The one that a file stands for.
    At(PathBuf),
    /// A namespace that the shim makes.
    New {
        /// Somebody is about to put a network there: hooks, as Docker's before 28.0, or Docker itself, which since then does it
        /// between the task's creation and its start.
        filled_later: bool,
    },
}

impl Place {
    /// Where the sandbox's first container is to be; `docker` if dockerd is the one who asks.
    #[must_use]
    pub fn of(spec: &Spec, docker: bool) -> Self {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces
            .into_iter()
            .flatten()
            .find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
        match network.map(|namespace| namespace.path().clone().filter(|path| !path.as_os_str().is_empty())) {
            None => Self::Host,
            Some(Some(path)) => Self::At(path),
            Some(None) => Self::New {
                filled_later: docker || has_hooks(spec),
            },
        }
    }
}

// The OCI spec deprecates prestart, but Docker's network arrives by it.
#[allow(deprecated)]
fn has_hooks(spec: &Spec) -> bool {
    let hooks = spec.hooks().as_ref();
    let lists = hooks.map(|hooks| [hooks.prestart(), hooks.create_runtime()]);
    lists
        .into_iter()
        .flatten()
        .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

/// What a device of the VM may receive and send, in bits per second; 0: any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// From the pod's network to the guest.
    pub received: u64,
    /// From the guest.
    pub sent: u64,
}

/// What a sandbox's network is made by.
#[derive(Debug, Clone)]
pub struct NetworkPlan {
    /// The network namespace that the specification asks for.
    pub place: Place,
    /// Kata's `internetworking_model`.
    pub model: InterNetworking,
    /// What becomes of a container that asks for the host's network.
    pub host_network: HostNetwork,
    /// Pairs of queues of each device: what is configured, or one for each vCPU, within bounds.
    pub queues: NonZeroUsize,
    /// Whether the host's kernel may move the frames.
    pub vhost: bool,
    /// Bits per second that each device receives and sends; 0: any.
    pub rates: Rates,
}

impl NetworkPlan {
    /// A plan with the settings of the configuration.
    #[must_use]
    pub fn new(place: Place, config: &config::Config) -> Self {
        let pairs = |number: u32| usize::try_from(number).ok().and_then(NonZeroUsize::new);
        let per_vcpu = || {
            let vcpus = pairs(hypervisor::vcpus(&config.hypervisor).get());
            vcpus.unwrap_or(NonZeroUsize::MIN).min(MAX_QUEUES)
        };
        Self {
            place,
            model: config.runtime.internetworking_model,
            host_network: config.runtime.host_network,
            queues: pairs(config.hypervisor.network_queues).unwrap_or_else(per_vcpu),
            vhost: !config.hypervisor.disable_vhost_net,
            rates: Rates {
                received: config.hypervisor.rx_rate_limiter_max_rate,
                sent: config.hypervisor.tx_rate_limiter_max_rate,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(namespaces: &Value, hooks: &Value) -> Spec {
        let spec = json!({ "ociVersion": "1.0.2", "linux": { "namespaces": namespaces }, "hooks": hooks });
        serde_json::from_value(spec).unwrap()
    }

    fn place(namespaces: &Value, hooks: &Value) -> Place {
        Place::of(&spec(namespaces, hooks), false)
    }

    #[test]
    fn a_network_namespace_is_the_hosts_a_given_one_or_a_new_one() {
        let place = |namespaces: Value| place(&namespaces, &json!({}));
        let pid = json!({ "type": "pid" });
        assert_eq!(place(json!([pid])), Place::Host);
        let given = json!([{ "type": "network", "path": "/run/netns/a" }]);
        assert_eq!(place(given), Place::At("/run/netns/a".into()));
        let new = json!([pid, { "type": "network", "path": "" }]);
        assert_eq!(place(new), Place::New { filled_later: false });
    }

    #[test]
    fn a_new_one_is_filled_by_the_hooks_that_run_before_the_container_does() {
        let new = json!([{ "type": "network" }]);
        let hook = json!([{ "path": "/bin/true" }]);
        for (name, filled_later) in [
            ("prestart", true),
            ("createRuntime", true),
            ("poststart", false),
            ("createContainer", false),
        ] {
            assert_eq!(
                place(&new, &json!({ name: hook })),
                Place::New { filled_later },
                "{name}"
            );
        }
    }

    #[test]
    fn a_device_has_as_many_pairs_of_queues_as_is_configured_or_one_for_each_vcpu() {
        let mut config = config::Config::default();
        let queues = |config: &config::Config| NetworkPlan::new(Place::Host, config).queues.get();
        assert_eq!(queues(&config), 1);
        config.hypervisor.network_queues = 12;
        assert_eq!(queues(&config), 12);
    }

    #[test]
    fn docker_fills_a_new_one_without_a_hook() {
        let new = spec(&json!([{ "type": "network" }]), &json!({}));
        assert_eq!(Place::of(&new, true), Place::New { filled_later: true });
    }
}
