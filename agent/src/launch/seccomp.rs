//! The seccomp filter of a specification (config-linux.md "Seccomp"; seccomp(2)).

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, error::SeccompError,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use super::fault::{Fault, Result};

/// The filter, ready to be loaded by [`load`] as the last thing before the program.
pub(super) fn build(wanted: &LinuxSeccomp) -> Result<ScmpFilterContext> {
    if wanted.listener_path().is_some() {
        return Err(Fault::Refused(
            "seccomp: a listener is not supported: its socket is on the host, the process in the guest".to_owned(),
        ));
    }
    let default = action(wanted.default_action(), wanted.default_errno_ret())?;
    let failed = |why: SeccompError| Fault::refused("seccomp: cannot build the filter", why);
    let mut filter = ScmpFilterContext::new(default).map_err(failed)?;
    // no_new_privs is the specification's own decision.
    filter.set_ctl_nnp(false).map_err(failed)?;
    for arch in wanted.architectures().as_deref().unwrap_or_default() {
        filter.add_arch(architecture(*arch)?).map_err(failed)?;
    }
    for flag in wanted.flags().as_deref().unwrap_or_default() {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => filter.set_ctl_log(true).map_err(failed)?,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => filter.set_ctl_ssb(true).map_err(failed)?,
            // There is one thread, and without a listener nobody to wait for.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => &mut filter,
        };
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
    Ok(filter)
}

/// Puts the filter in force for the calling process.
pub(super) fn load(filter: &ScmpFilterContext) -> Result<()> {
    filter
        .load()
        .map_err(|why| Fault::refused("seccomp: cannot load the filter", why))
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
                "seccomp: SCMP_ACT_NOTIFY needs a listener, which is not supported".to_owned(),
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
    fn a_listener_is_refused_with_its_reason() {
        let mut wanted = filter("mkdir", Vec::new());
        wanted.set_listener_path(Some("/run/listener".into()));
        assert!(build(&wanted).unwrap_err().to_string().contains("listener"));
    }
}
