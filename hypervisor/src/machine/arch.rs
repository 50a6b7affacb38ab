//! Everything that depends on the guest's architecture, which is the host's.

use crate::machine::accel::Accel;
use crate::machine::cpuinfo::{cpuinfo, has_flag};

/// The properties of one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arch {
    /// What to add to `-machine TYPE`: devices that a microVM does not need are left out.
    pub(crate) machine_options: &'static str,
    /// The guest's name of its serial port.
    pub(crate) console: &'static str,
    /// Kernel parameters of the architecture.
    pub(crate) kernel_params: &'static str,
    /// Longest command line that the kernel takes, in bytes (`COMMAND_LINE_SIZE` without its final zero).
    pub(crate) max_command_line: usize,
    /// `-cpu` under KVM.
    cpu_kvm: &'static str,
    /// `-cpu` under TCG.
    cpu_tcg: &'static str,
}

/// PC. Without a keyboard controller a restart is a triple fault, which QEMU turns into its end (`-no-reboot`).
const X86_64: Arch = Arch {
    machine_options: "usb=off,vmport=off,smm=off,i8042=off,sata=off,smbus=off,hpet=off",
    console: "ttyS0",
    kernel_params: "reboot=t",
    max_command_line: 2047,
    cpu_kvm: "host",
    // TCG runs `rep stosb` and `rep movsb` byte by byte. A CPU that says it is fast at them (ERMS, FSRM) makes the
    // kernel and every C library clear and copy memory that way.
    cpu_tcg: "max,-erms,-fsrm",
};

#[cfg(target_arch = "x86_64")]
pub(crate) const HOST: Arch = X86_64;

impl Arch {
    /// `-cpu`
    pub(crate) fn cpu(&self, accel: Accel) -> &'static str {
        match accel {
            Accel::Kvm => self.cpu_kvm,
            Accel::Tcg => self.cpu_tcg,
        }
    }
}

/// The kernel parameters that a guest needs because its CPU is emulated; none under KVM.
///
/// - `tsc_early_khz`: spares it the calibration of its time stamp counter, which is the host's. Under KVM the guest is
///   told by paravirtualization.
/// - `tsc=reliable`: that counter is the kernel's clock source, and not the ACPI timer, which wraps after 4.7 s: a guest that is not run for so
///   long would lose them. Only if the host's kernel trusts the counter, because the guest does not check it any more ([`is_trusted`]).
/// - `no_timer_check`: under load the emulated timer is late, which the check takes for a broken one and panics.
/// - `init_on_alloc=1`: TCG notices that translated code is out of date by the guest's own writes. virtiofsd writes file
///   pages into the guest's memory behind its back, so a page that once held code and is used again would run as the old
///   code. With this the guest itself overwrites each page before it is used again.
/// - `noreplace-smp`: a kernel that starts on one CPU takes the LOCK prefixes out of its own code, one by one, and flushes the
///   emulator's TLB and translated code 9,400 times. A vCPU that is plugged in later needs them there anyway.
/// - `initcall_blacklist=jent_mod_init`: the jitter entropy generator's self test. The guest has virtio-rng, and jitter that an emulator
///   makes is none.
pub(crate) fn emulation_parameters(accel: Accel) -> Vec<String> {
    match accel {
        Accel::Kvm => Vec::new(),
        Accel::Tcg => {
            let khz = crate::machine::sys::tsc_khz().or_else(|| tsc_khz_of_a_guest(&cpuinfo()?));
            let sources = std::fs::read_to_string(CLOCK_SOURCES).unwrap_or_default();
            let mut parameters = counter_parameters(khz, &sources);
            parameters.extend(EMULATED.map(String::from));
            parameters
        }
    }
}

/// The clock sources that the host's kernel has and has not marked as unstable.
const CLOCK_SOURCES: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";

/// What the guest is told of its time stamp counter.
fn counter_parameters(khz: Option<u32>, sources: &str) -> Vec<String> {
    let Some(khz) = khz else { return Vec::new() };
    let mut parameters = vec![format!("tsc_early_khz={khz}")];
    if is_trusted(sources) {
        parameters.push("tsc=reliable".to_owned());
    }
    parameters
}

/// Whether the host's kernel trusts the counter. A guest's under TCG is the host's: where those of several sockets differ, or stand still while a CPU
/// sleeps, the guest's would run away or drift. The kernel does not list a counter that it has marked as unstable (`available_clocksource_show` in
/// kernel/time/clocksource.c). `tsc-early` is another entry.
fn is_trusted(sources: &str) -> bool {
    sources.split_whitespace().any(|source| source == "tsc")
}

/// Those of [`emulation_parameters`] that are the same on every host.
const EMULATED: [&str; 4] = [
    "no_timer_check",
    "init_on_alloc=1",
    "noreplace-smp",
    "initcall_blacklist=jent_mod_init",
];

/// The counter's frequency where CPUID does not tell it and this host is itself a VM: there "cpu MHz" is what the
/// kernel calibrated. With cpufreq or APERF/MPERF it would be the clock of the moment instead.
fn tsc_khz_of_a_guest(cpuinfo: &str) -> Option<u32> {
    if !has_flag(cpuinfo, "hypervisor") || has_flag(cpuinfo, "aperfmperf") || !has_flag(cpuinfo, "constant_tsc") {
        return None;
    }
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("cpu MHz"))?;
    let (whole, fraction) = line.trim_start().strip_prefix(':')?.trim().split_once('.')?;
    let (whole, thousandths): (u32, u32) = (whole.parse().ok()?, fraction.get(..3)?.parse().ok()?);
    whole.checked_mul(1000)?.checked_add(thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_the_clock_only_if_its_frequency_is_known_and_the_hosts_kernel_trusts_it() {
        let told = |khz, sources: &str| counter_parameters(khz, sources).join(" ");
        assert_eq!(told(Some(7), "tsc kvm-clock \n"), "tsc_early_khz=7 tsc=reliable");
        assert_eq!(
            told(Some(7), "kvm-clock tsc hpet acpi_pm \n"),
            "tsc_early_khz=7 tsc=reliable"
        );
        // Marked as unstable, not calibrated yet, and a host that does not tell.
        for sources in [
            "hpet acpi_pm \n",
            "kvm-clock acpi_pm \n",
            "tsc-early hpet acpi_pm \n",
            "",
        ] {
            assert_eq!(told(Some(7), sources), "tsc_early_khz=7", "{sources:?}");
        }
        assert_eq!(told(None, "tsc \n"), "");
    }

    #[test]
    fn a_guests_clock_is_its_counters_frequency() {
        let cpuinfo = "flags\t\t: fpu constant_tsc hypervisor\ncpu MHz\t\t: 2596.122\n";
        assert_eq!(tsc_khz_of_a_guest(cpuinfo), Some(2_596_122));
    }

    #[test]
    fn a_clock_that_may_change_is_not_taken() {
        let bare_metal = "flags\t\t: fpu constant_tsc aperfmperf\ncpu MHz\t\t: 800.000\n";
        assert_eq!(tsc_khz_of_a_guest(bare_metal), None);
    }
}
