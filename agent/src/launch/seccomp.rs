//! The seccomp filter of a specification (config-linux.md "Seccomp"; seccomp(2)).
//!
//! libseccomp generates the program. It is loaded here and not by the library, because another program precedes it
//! ([`newer_calls`]).

use std::{
    fs::File,
    io::{self, Read, Seek},
};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, error::SeccompError,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use rustix::fs::MemfdFlags;

use super::{
    fault::{Context, Fault, Result},
    filter::Filter,
    newer_calls, sys,
};

impl Filter {
    /// Puts it in force for the calling process.
    pub(super) fn load(&self) -> Result<()> {
        self.put_in_force().or_refuse(|| "seccomp: cannot load the filter")
    }

    /// Installs the filter. Allocates no memory.
    pub(super) fn put_in_force(&self) -> io::Result<()> {
        sys::set_seccomp_filter(self)
    }
}

/// The filter that a specification asks for.
pub(super) fn build(wanted: &LinuxSeccomp) -> Result<Filter> {
    let default = action(wanted.default_action(), wanted.default_errno_ret())?;
    let failed = |why: SeccompError| Fault::refused("seccomp: cannot build the filter", why);
    let mut filter = ScmpFilterContext::new(default).map_err(failed)?;
    let mut architectures = vec![ScmpArch::native()];
    for arch in wanted.architectures().as_deref().unwrap_or_default() {
        let arch = architecture(*arch)?;
        filter.add_arch(arch).map_err(failed)?;
        architectures.push(arch);
    }
    architectures.dedup();
    // Not even an empty list: the default of runc.
    let mut flags = match wanted.flags() {
        None => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Some(_) => 0,
    };
    for flag in wanted.flags().as_deref().unwrap_or_default() {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags |= libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags |= libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // There is one thread, and without a listener nobody to wait for.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {}
        }
    }
    for rule in wanted.syscalls().as_deref().unwrap_or_default() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses a rule that changes nothing.
        if action == default {
            continue;
        }
        // A name that this library or architecture does not know cannot be called by it either; runc skips it, too.
        for syscall in rule.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()) {
            add(&mut filter, action, syscall, rule.args().as_deref().unwrap_or_default()).map_err(failed)?;
        }
    }
    let mut program = if matches!(default, ScmpAction::Allow | ScmpAction::Log) {
        // What is not named is allowed, new calls among it.
        Vec::new()
    } else {
        let rules = wanted.syscalls().as_deref().unwrap_or_default();
        let names: Vec<_> = rules.iter().flat_map(|rule| rule.names()).map(String::as_str).collect();
        newer_calls::stub(&architectures, &names)
    };
    program.extend(export(&filter)?);
    Ok(Filter { program, flags })
}

/// The program as the library would load it.
fn export(filter: &ScmpFilterContext) -> Result<Vec<libc::sock_filter>> {
    let mut bytes = Vec::new();
    let mut read = || -> io::Result<()> {
        let mut file = File::from(rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC)?);
        filter.export_bpf(&file).map_err(io::Error::other)?;
        file.rewind()?;
        file.read_to_end(&mut bytes).map(drop)
    };
    read().or_fail(|| "seccomp: cannot write the filter")?;
    let (steps, _) = bytes.as_chunks::<8>();
    Ok(steps
        .iter()
        .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
            code: u16::from_ne_bytes([*c0, *c1]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes([*k0, *k1, *k2, *k3]),
        })
        .collect())
}

/// Conditions on different arguments hold together; several on the same one are alternatives, as runc has them.
fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    args: &[LinuxSeccompArg],
) -> std::result::Result<(), SeccompError> {
    let alternatives = args
        .iter()
        .enumerate()
        .any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    let conditions: Vec<_> = args.iter().map(condition).collect();
    if alternatives {
        for condition in conditions {
            filter.add_rule_conditional(action, syscall, &[condition])?;
        }
    } else if conditions.is_empty() {
        filter.add_rule(action, syscall)?;
    } else {
        filter.add_rule_conditional(action, syscall, &conditions)?;
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // The first value is the mask, the second what is compared with.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(u32::try_from(arg.index()).unwrap_or(u32::MAX), operator, value)
}

fn action(wanted: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
    let number =
        u16::try_from(number).map_err(|why| Fault::refused(format_args!("seccomp: errnoRet {number}"), why))?;
    Ok(match wanted {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::from(number)),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Fault::Refused(
                "seccomp: SCMP_ACT_NOTIFY needs a listener, which is not supported: its socket is on the host, the process in the \
                 guest"
                    .to_owned(),
            ));
        }
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch> {
    let name = arch.to_string();
    name.parse()
        .map_err(|why: SeccompError| Fault::refused(format_args!("seccomp: architecture {name}"), why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder};

    fn filter(rule: &str, args: Vec<LinuxSeccompArg>) -> LinuxSeccomp {
        let rule = LinuxSyscallBuilder::default()
            .names(vec![rule.to_owned(), "no_such_call".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .args(args)
            .build()
            .unwrap();
        LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActAllow)
            .architectures(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86])
            .syscalls(vec![rule])
            .build()
            .unwrap()
    }

    #[test]
    fn unknown_calls_are_skipped_and_conditions_accepted() {
        let arg = LinuxSeccompArgBuilder::default()
            .index(0_usize)
            .value(8_u64)
            .op(LinuxSeccompOperator::ScmpCmpEq);
        let arg = arg.build().unwrap();
        build(&filter("personality", vec![arg, arg])).unwrap();
        build(&filter("mkdir", Vec::new())).unwrap();
    }

    #[test]
    fn without_a_list_of_flags_speculation_is_allowed() {
        let mut wanted = filter("mkdir", Vec::new());
        assert_eq!(build(&wanted).unwrap().flags, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
        wanted.set_flags(Some(Vec::new()));
        assert_eq!(build(&wanted).unwrap().flags, 0);
    }

    #[test]
    fn what_notifies_is_refused_with_its_reason_and_a_path_that_nobody_uses_is_not() {
        let mut wanted = filter("mkdir", Vec::new());
        wanted.set_listener_path(Some("/run/listener".into()));
        build(&wanted).unwrap();
        wanted.set_default_action(LinuxSeccompAction::ScmpActNotify);
        assert!(build(&wanted).unwrap_err().to_string().contains("listener"));
    }
}
