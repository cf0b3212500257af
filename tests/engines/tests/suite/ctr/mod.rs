//! `ctr`: one container, one virtual machine, step by step.

mod daemon;
mod files;
mod life;
mod run;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use engines::{Containerd, Handler, seen, wait_until};

/// A directory that a container gets at `/shared`, and the option that says so.
struct Shared {
    path: PathBuf,
    option: String,
}

impl Shared {
    fn new(engine: &Containerd, name: &str) -> Self {
        let path = engine.host.directory().join(name);
        fs::create_dir(&path).unwrap();
        let option = format!("type=bind,src={},dst=/shared,options=rbind:rw", path.display());
        Self { path, option }
    }

    /// Waits until the container made this file, and gives what is in it.
    #[track_caller]
    fn expect(&self, name: &str) -> String {
        expect_file(&self.path.join(name))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }
}

#[track_caller]
fn expect_file(path: &Path) -> String {
    let end = Instant::now() + e2e::DEADLINE;
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not appear", path.display());
        thread::sleep(Duration::from_millis(20));
    }
    fs::read_to_string(path).unwrap()
}

/// Starts a container that runs a script in the background, its output going nowhere.
#[track_caller]
fn detached(engine: &Containerd, handler: Handler, options: &[&str], id: &str, script: &str) {
    let options = [&["--detach", "--null-io"], options].concat();
    engine.ctr_ok(engines::containerd::run_arguments(handler, &options, id, &["sh", "-c", script]));
}
