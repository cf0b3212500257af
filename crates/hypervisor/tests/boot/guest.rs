//! The first program of the guest in these tests. Compiled by `main.rs` with a bare `rustc`, so it has the standard library only.
//!
//! `GUEST_MODE` on the kernel's command line, which the kernel passes on as an environment variable, says what it does.

use std::{
    ffi::{CString, c_char, c_int, c_long, c_ulong, c_void},
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    ptr, thread,
    time::Duration,
};

const SYS_FINIT_MODULE: c_long = 313;
const POWER_OFF: c_int = 0x4321_fedc;
const RESTART: c_int = 0x0123_4567;

unsafe extern "C" {
    fn mount(from: *const c_char, to: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(command: c_int) -> c_int;
}

fn main() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let (kind, at) = (CString::new(kind).unwrap(), CString::new(at).unwrap());
        // SAFETY: C strings that live through the call.
        unsafe { mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, ptr::null()) };
    }
    let mode = std::env::var("GUEST_MODE").unwrap_or_default();
    match mode.as_str() {
        "echo" => echo(),
        // The end of the first program is a panic.
        "panic" => {}
        // SAFETY: ends the machine.
        "power-off" => _ = unsafe { reboot(POWER_OFF) },
        // SAFETY: ends the machine.
        "restart" => _ = unsafe { reboot(RESTART) },
        "flood" => flood(),
        _ => sleep(),
    }
}

fn echo() {
    load_modules();
    let mut port = open_port();
    port.write_all(b"hello\n").unwrap();
    let mut buffer = vec![0; 65536];
    loop {
        // 0 while nobody has the host's end.
        match port.read(&mut buffer).unwrap() {
            0 => thread::sleep(Duration::from_millis(10)),
            count => port.write_all(&buffer[..count]).unwrap(),
        }
    }
}

fn flood() {
    let mut console = OpenOptions::new().write(true).open("/dev/console").unwrap();
    loop {
        console.write_all(b"\x1b[2Jmore and more\x07\n").unwrap();
    }
}

fn sleep() {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn load_modules() {
    let list = Path::new("/lib/modules/load-order");
    for name in fs::read_to_string(list).unwrap_or_default().lines() {
        let module = File::open(list.with_file_name(name)).unwrap();
        // SAFETY: an open descriptor and an empty C string.
        unsafe { syscall(SYS_FINIT_MODULE, module.as_raw_fd(), c"".as_ptr(), 0) };
    }
}

fn open_port() -> File {
    loop {
        if let Some(port) = find_port() {
            return OpenOptions::new().read(true).write(true).open(port).unwrap();
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn find_port() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim() == "io.katacontainers.channel").then(|| Path::new("/dev").join(port.file_name()))
    })
}
