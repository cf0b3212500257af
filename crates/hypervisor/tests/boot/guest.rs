//! The first program of the guest in these tests. Compiled by `main.rs` with a bare `rustc`, so it has the standard library only.
//!
//! `GUEST_MODE` on the kernel's command line, which the kernel passes on as an environment variable, says what it does.

use std::{
    ffi::{CString, c_char, c_int, c_long, c_ulong, c_void},
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
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
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn sched_setaffinity(pid: c_int, size: usize, mask: *const u64) -> c_int;
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
        "serve" => serve(),
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

/// Answers questions, a line each, about what the kernel sees.
fn serve() {
    load_modules();
    // Kernels differ in whether they do so by themselves.
    _ = fs::write("/sys/devices/system/memory/auto_online_blocks", "online");
    let port = open_port();
    let mut writer = port.try_clone().unwrap();
    let mut reader = BufReader::new(port);
    writer.write_all(b"hello\n").unwrap();
    let mut line = String::new();
    loop {
        // 0 while nobody has the host's end.
        if reader.read_line(&mut line).unwrap() == 0 {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["disks"] => list("/sys/block", |disk| {
                let read = |name: &str| fs::read_to_string(disk.join(name)).unwrap_or_default().trim().to_owned();
                let text = [read("serial"), read("size"), read("ro")].join("/");
                (text != "/0/0" && disk.join("serial").exists()).then_some(text)
            }),
            ["nics"] => list("/sys/class/net", |nic| {
                let read = |name: &str| fs::read_to_string(nic.join(name)).unwrap_or_default().trim().to_owned();
                let queues = fs::read_dir(nic.join("queues")).map_or(0, |queues| queues.count());
                nic.join("device").exists().then(|| [read("address"), read("mtu"), (queues / 2).to_string()].join("/"))
            }),
            ["memory"] => fs::read_to_string("/proc/meminfo").unwrap().split_whitespace().nth(1).unwrap().to_owned(),
            ["cpus", wanted] => cpus(wanted.parse().unwrap()),
            ["read", serial] => disk(serial, |disk| {
                let mut text = [0; 16];
                disk.read_exact(&mut text).map(|()| String::from_utf8_lossy(&text).replace('\0', "."))
            }),
            ["write", serial, text] => disk(serial, |disk| {
                disk.write_all(&[text.as_bytes(), &[0; 512][text.len()..]].concat())?;
                disk.sync_all().map(|()| "written".into())
            }),
            ["up", mac] => up(mac),
            _ => "what?".into(),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).unwrap();
        line.clear();
    }
}

fn list(directory: &str, describe: impl Fn(PathBuf) -> Option<String>) -> String {
    let mut all: Vec<String> = fs::read_dir(directory).unwrap().flatten().filter_map(|e| describe(e.path())).collect();
    all.sort();
    all.join(" ")
}

fn disk(serial: &str, work: impl Fn(&mut File) -> std::io::Result<String>) -> String {
    for disk in fs::read_dir("/sys/block").unwrap().flatten() {
        if fs::read_to_string(disk.path().join("serial")).is_ok_and(|found| found.trim() == serial) {
            let path = Path::new("/dev").join(disk.file_name());
            let file = OpenOptions::new().read(true).write(true).open(&path).or_else(|_| File::open(&path));
            return file.and_then(|mut file| work(&mut file)).unwrap_or_else(|error| error.kind().to_string());
        }
    }
    "no such disk".into()
}

/// Takes so many processors into service, and tells how many are, and how long each took for twenty naps of 5 ms while it also computed.
fn cpus(wanted: usize) -> String {
    let mut naps = Vec::new();
    for number in 0..wanted {
        let cpu = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}"));
        if !cpu.exists() {
            break;
        }
        if fs::read_to_string(cpu.join("online")).is_ok_and(|state| state.trim() == "0")
            && let Err(error) = fs::write(cpu.join("online"), "1")
        {
            return format!("cpu {number}: {error}");
        }
        let timed = thread::spawn(move || {
            let mask = 1_u64 << number;
            // SAFETY: a mask of eight bytes.
            assert_eq!(unsafe { sched_setaffinity(0, 8, &raw const mask) }, 0);
            let busy = thread::spawn(|| (0..3_000_000_u64).fold(0, |sum: u64, n| sum.wrapping_mul(31) ^ n));
            let begun = std::time::Instant::now();
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(5));
            }
            let took = begun.elapsed().as_millis();
            _ = busy.join();
            took.to_string()
        });
        naps.push(timed.join().unwrap());
    }
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    format!("{} {}", online.trim(), naps.join(" "))
}

/// Brings an interface up: Linux then sends packets by itself.
fn up(mac: &str) -> String {
    for nic in fs::read_dir("/sys/class/net").unwrap().flatten() {
        if fs::read_to_string(nic.path().join("address")).is_ok_and(|found| found.trim() == mac) {
            let mut request = [0_u8; 40];
            let name = nic.file_name().into_encoded_bytes();
            request[..name.len()].copy_from_slice(&name);
            // IFF_UP | IFF_RUNNING
            request[16] = 0x41;
            // SAFETY: AF_INET, SOCK_DGRAM; SIOCSIFFLAGS reads an ifreq, which is 40 bytes.
            let result = unsafe { ioctl(socket(2, 2, 0), 0x8914, request.as_mut_ptr()) };
            return if result == 0 { "up".into() } else { std::io::Error::last_os_error().to_string() };
        }
    }
    "no such interface".into()
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
