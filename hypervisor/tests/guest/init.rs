//! The whole user space of the test guests: mounts the share, dials the host, and does as it is told, a line each.
//!
//! Compiled by the tests with plain rustc, statically, so it declares the few C functions that it needs.

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::FromRawFd as _;

unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const SockaddrVm, length: u32) -> c_int;
    fn reboot(how: c_int) -> c_int;
}

#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

fn main() {
    mount_at("proc", "/proc", "proc");
    println!("hello from the console");
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap();
    let port = command_line.split_whitespace().find_map(|word| word.strip_prefix("test.port=")).unwrap();
    let mut host = dial(port.parse().unwrap());
    mount_at("sys", "/sys", "sysfs");
    mount_at("share", "/share", "virtiofs");
    host.write_all(b"ready\n").unwrap();
    for line in BufReader::new(host.try_clone().unwrap()).lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("read", path) => std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}\n")),
            ("write", path) => std::fs::write(path, "from the guest\n").map_or_else(|error| format!("{error}\n"), |()| String::from("done\n")),
            // Answers when the file is there and says something: one of a device that is going says nothing.
            ("await", path) => loop {
                match std::fs::read_to_string(path) {
                    Ok(text) if !text.is_empty() => break text.trim_end().to_owned() + "\n",
                    _ => std::thread::yield_now(),
                }
            },
            ("flood", _) => flood(),
            // LINUX_REBOOT_CMD_POWER_OFF
            ("poweroff", _) => unsafe { reboot(0x4321_fedc) }.to_string(),
            // PID 1 that ends is a panic.
            ("panic", _) => return,
            _ => String::from("what?\n"),
        };
        host.write_all(answer.as_bytes()).unwrap();
    }
}

fn mount_at(source: &str, target: &str, kind: &str) {
    std::fs::create_dir_all(target).unwrap();
    let text = |text: &str| CString::new(text).unwrap();
    let (source, target, kind) = (text(source), text(target), text(kind));
    let result = unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    assert_eq!(result, 0, "mount {target:?}: {}", std::io::Error::last_os_error());
}

fn dial(port: u32) -> File {
    // AF_VSOCK, SOCK_STREAM, VMADDR_CID_HOST
    let address = SockaddrVm { family: 40, reserved: 0, port, cid: 2, zero: [0; 4] };
    unsafe {
        let fd = socket(40, 1, 0);
        assert_eq!(connect(fd, &address, 16), 0, "connect: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    }
}

fn flood() -> ! {
    let line = [b'x'; 4096];
    loop {
        std::io::stdout().write_all(&line).unwrap();
    }
}
