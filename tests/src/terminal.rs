//! A terminal with a command on it, as a user sits at one.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::DEADLINE;

/// The user's side of a pseudo terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Terminal {
    /// Starts a command on a terminal of this size, which becomes its controlling terminal.
    pub fn start(command: &Command, rows: u16, cols: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave: OwnedFd =
            rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let master = File::from(master);
        set_size(&master, rows, cols);
        let mut reader = master.try_clone().unwrap();
        let (send, output) = mpsc::channel();
        let terminal = Self { master, child: Self::spawn(command, slave), output, seen: Vec::new() };
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        terminal
    }

    fn spawn(command: &Command, slave: OwnedFd) -> Child {
        // setsid(1) makes its standard input the controlling terminal.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            session.env(key, value.unwrap_or_default());
        }
        let (input, output) = (slave.try_clone().unwrap(), slave.try_clone().unwrap());
        session.stdin(input).stdout(output).stderr(slave).spawn().unwrap()
    }

    /// Changes the window's size.
    pub fn resize(&self, rows: u16, cols: u16) {
        set_size(&self.master, rows, cols);
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the window's size, again and again until what was shown contains `text`: a client that is just starting may not notice a change.
    #[track_caller]
    pub fn resize_until(&mut self, rows: u16, cols: u16, text: &str) -> String {
        let mut next = Instant::now();
        self.expect_while(text, |terminal| {
            if Instant::now() >= next {
                // The same size once more would be no change.
                terminal.resize(rows, cols - 1);
                terminal.resize(rows, cols);
                next = Instant::now() + Duration::from_secs(1);
            }
        })
    }

    /// Waits until what was shown contains `text`, and returns all of it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_while(text, |_| {})
    }

    #[track_caller]
    fn expect_while(&mut self, text: &str, mut meanwhile: impl FnMut(&Self)) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            meanwhile(self);
            let shown = String::from_utf8_lossy(&self.seen).into_owned();
            if shown.contains(text) {
                return shown;
            }
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    assert!(Instant::now() < end, "{text:?} was not shown: {shown:?}")
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    panic!("the terminal was closed before {text:?} was shown: {shown:?}")
                }
            }
        }
    }

    /// Waits for the command's end; its exit code and all that was shown.
    #[track_caller]
    pub fn finish(mut self) -> (i32, String) {
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "the command on the terminal did not end");
            thread::sleep(Duration::from_millis(10));
        };
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(300)) {
            self.seen.extend(bytes);
        }
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&self.seen).into_owned())
    }
}

fn set_size(master: &File, rows: u16, cols: u16) {
    tcsetwinsize(master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
