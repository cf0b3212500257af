//! The command line of an engine, as far as Docker's and Podman's are the same.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use e2e::Output;

/// Docker's or Podman's command line.
pub trait Client {
    /// What it is called.
    const PROGRAM: &'static str;

    /// A command of it, not yet run.
    fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command;

    /// What the daemons said last.
    fn log(&self) -> String;

    /// Runs a command.
    #[track_caller]
    fn call<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        e2e::run(&mut self.command(args))
    }

    /// Runs a command and expects success; gives its standard output.
    #[track_caller]
    fn ok<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let output = self.call(&args);
        assert_eq!(output.code, 0, "{} {args:?}: {}{}\n{}", Self::PROGRAM, output.text(), output.stderr, self.log());
        output.text()
    }

    /// What `inspect` says with this template.
    #[track_caller]
    fn inspect(&self, name: &str, template: &str) -> String {
        self.ok(["inspect", "--format", template, name]).trim_end().to_owned()
    }

    /// Waits until `inspect` says this.
    #[track_caller]
    fn wait_for(&self, name: &str, template: &str, wanted: &str) {
        let end = Instant::now() + e2e::DEADLINE;
        loop {
            let now = self.inspect(name, template);
            if now == wanted {
                return;
            }
            assert!(Instant::now() < end, "{template} of {name} is {now:?}, not {wanted:?}: {}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
    }
}
