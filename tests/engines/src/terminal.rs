//! What a user does on a terminal, whichever engine it is of.

use std::process::Command;

use serde_json::{Value, json};

/// Runs a shell on a terminal of some size, changes that, executes `last` and expects the code 9. Gives what may be compared, and all that was
/// shown.
pub fn on_a_terminal(command: &Command, last: &str) -> (Value, String) {
    let mut terminal = e2e::Terminal::start(command, 30, 100);
    // Its size reaches the terminal some time later.
    terminal.write("tty; until [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; echo sta''rted\r");
    terminal.expect("started\r");
    terminal.write("until [ \"$(stty size)\" = '44 123' ]; do sleep 0.1; done; echo res''ized\r");
    terminal.resize_until(44, 123, "resized");
    terminal.write(&format!("{last}\r"));
    let (code, shown) = terminal.finish();
    assert_eq!(code, 9, "{shown}");
    let tty = shown.lines().map(str::trim_end).find(|line| line.starts_with("/dev/"));
    (json!({"code": code, "tty": tty}), shown)
}
