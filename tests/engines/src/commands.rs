//! Commands that Docker and Podman have alike, tried with either.

use serde_json::{Value, json};

use crate::{Client, seen, wait_until};

/// Executes programs in a container that runs: as another user elsewhere, one that is not there, with input, and on a terminal. Gives what may be
/// compared.
#[track_caller]
pub fn executed(client: &impl Client, container: &str) -> Value {
    let script = "echo out; echo err >&2; echo $ONE; pwd; id -u; exit 3";
    let options = ["exec", "--env", "ONE=1", "--workdir", "/tmp", "--user", "user", container, "sh", "-c", script];
    let plain = client.call(options);
    assert_eq!((plain.code, plain.text().as_str()), (3, "out\n1\n/tmp\n1000\n"), "{}", plain.stderr);
    let missing = client.call(["exec", container, "no-such-program"]);
    assert!((missing.text() + &missing.stderr).contains("no-such-program"), "{}", missing.stderr);
    let mut command = client.command(["exec", "--interactive", container, "wc", "-c"]);
    let counted = e2e::run_with_input(&mut command, |input| input.write_all(&[b'x'; 300_000]).unwrap());
    assert_eq!(counted.text(), "300000\n", "{}", counted.stderr);
    let mut terminal =
        e2e::Terminal::start(&client.command(["exec", "--interactive", "--tty", container, "sh"]), 30, 91);
    // The client of Docker 20.10 gives up telling the first size after 50 ms.
    terminal.write("echo rea''dy\r");
    terminal.expect("ready");
    terminal.write("until [ \"$(stty size)\" = '30 90' ]; do sleep 0.1; done; echo sta''rted\r");
    terminal.resize_until(30, 90, "started");
    terminal.write("exit 6\r");
    assert_eq!(terminal.finish().0, 6);
    json!([seen(&plain), missing.code])
}

/// What a container runs whose logs are read: it writes to both streams and takes some time for it.
pub const TALKER: &str =
    "echo err >&2; sleep 1; seq 1 2000; i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; echo spun; sleep 1000";

/// Reads the logs of a [`TALKER`]; gives their end.
#[track_caller]
pub fn logged(client: &impl Client, container: &str) -> String {
    wait_until("it said all", || client.ok(["logs", container]).ends_with("spun\n"));
    let logs = client.call(["logs", container]);
    let tail = client.ok(["logs", "--tail", "2", container]);
    assert_eq!((logs.text().lines().count(), logs.stderr.as_str(), tail.as_str()), (2001, "err\n", "2000\nspun\n"));
    tail
}
