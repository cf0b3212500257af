//! Standard streams: bytes, back-pressure, ends, terminals.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use e2e::{Background, Bundle, DEADLINE, Runtime, Terminal, run_with_input};

const MEBIBYTE: usize = 1 << 20;

/// A stream of bytes that repeats only after 2^64, so that a lost or doubled block shows.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

#[test]
fn a_quarter_gibibyte_goes_through_cat_unchanged() {
    let bundle = Bundle::new(["cat"]);
    let runtime = Runtime::kata();
    let mut child = runtime
        .command(["run", "--bundle", bundle.arg(), "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = thread::spawn(move || {
        let (mut noise, mut block) = (Noise(1), vec![0; MEBIBYTE]);
        for _ in 0..256 {
            noise.fill(&mut block);
            stdin.write_all(&block).unwrap();
        }
    });
    let (mut noise, mut expected, mut block) = (Noise(1), vec![0; MEBIBYTE], vec![0; MEBIBYTE]);
    let mut stdout = child.stdout.take().unwrap();
    for index in 0..256 {
        stdout.read_exact(&mut block).unwrap();
        noise.fill(&mut expected);
        assert!(block == expected, "mebibyte {index} differs");
    }
    assert_eq!(stdout.read(&mut block).unwrap(), 0);
    feeder.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn input_ends_and_output_comes_after_it() {
    let runtime = Runtime::kata();
    let bundle = Bundle::sh("wc -c; echo after");
    let mut command = runtime.command(["run", "--bundle", bundle.arg(), "eof"]);
    let output = run_with_input(&mut command, |input| input.write_all(&[b'x'; 100_000]).unwrap());
    assert_eq!(output.text(), "100000\nafter\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let runtime = Runtime::kata();
    let bundle = Bundle::sh("yes; echo $? >&2");
    let mut child = runtime
        .command(["run", "--bundle", bundle.arg(), "pipe"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut few = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut few).unwrap();
    let end = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "yes goes on though nobody reads");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_flood_that_nobody_reads_delays_no_other_process() {
    let runtime = Runtime::kata();
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "flood"]);
    // Its output is a pipe that is never read.
    let mut flood = runtime
        .command(["exec", "flood", "sh", "-c", "seq 1 100000; exec yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(1));
    let other = Background::start(&mut runtime.command(["exec", "flood", "echo", "here"]))
        .finish_within(Duration::from_secs(10));
    assert_eq!((other.code, other.text().as_str()), (0, "here\n"));
    runtime.ok(["delete", "--force", "flood"]);
    // As long as somebody may still read, the rest is kept for them.
    drop(flood.stdout.take());
    flood.wait().unwrap();
}

#[test]
fn a_hundred_thousand_lines_arrive_while_another_process_answers() {
    let runtime = Runtime::kata();
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "lines"]);
    let long = Background::start(&mut runtime.command(["exec", "lines", "seq", "1", "100000"]));
    let short = Background::start(&mut runtime.command(["exec", "lines", "echo", "here"]))
        .finish_within(Duration::from_secs(10));
    assert_eq!(short.text(), "here\n");
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let long = long.finish();
    assert_eq!(long.code, 0);
    assert!(long.text() == expected, "lines are missing or changed");
    runtime.ok(["delete", "--force", "lines"]);
}

fn session(runtime: &Runtime, bundle: &Bundle) -> (i32, String) {
    let mut terminal = Terminal::start(&runtime.command(["run", "--bundle", bundle.arg(), "tty"]), 30, 100);
    terminal.expect("ready");
    terminal.resize(40, 120);
    // What is typed is echoed, so it must not fall between two lines of output.
    terminal.expect("40 120\r\n");
    terminal.write("some words\n");
    terminal.finish()
}

#[test]
fn a_terminal_session_with_a_resize_shows_what_runc_shows() {
    let mut bundle = Bundle::sh(
        // A runtime may set the first size when the shell runs already, and runc makes the caller's terminal raw shortly before
        // that: what is written earlier may come with a carriage return more. The signal of the second size may come before
        // the shell waits in `read`, which would keep the trap back until something is typed.
        "until test \"$(stty size)\" = '30 100'; do sleep 0.1; done; tty; trap 'echo resized; stty size; resized=1' WINCH; stty size; echo ready; until test -n \"$resized\"; do sleep 0.1; done; \
         read words; echo \"got $words\"; exit 7",
    );
    bundle.edit(|config| config["process"]["terminal"] = true.into());
    // Without a probe there is no warning on the terminal that KVM does not work.
    let undecided = config::Config::load(None).unwrap().qemu.accelerator == config::Accelerator::Auto;
    let settings = if undecided { "[hypervisor.qemu]\naccelerator = \"tcg\"\n" } else { "" };
    let ours = session(&Runtime::kata_with(settings), &bundle);
    let reference = session(&Runtime::runc(), &bundle);
    assert_eq!(ours.0, 7, "{}", ours.1);
    assert_eq!(ours, reference);
}
