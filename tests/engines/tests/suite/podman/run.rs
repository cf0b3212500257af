//! `podman run` in the foreground: what the container is given and what it gives.

use engines::{Handler, Podman, podman_cases};
use serde_json::Value;

use super::seen;

podman_cases!(output_and_code);

fn output_and_code(podman: &Podman, _: Handler) -> Value {
    let script = "cat; echo err >&2; hostname; id; pwd; echo $ONE; ls -ld /tmp; touch /etc/no; exit 7";
    let options = ["--rm", "--interactive", "--hostname", "named", "--env", "ONE=1", "--workdir", "/home/user"];
    let options = [&options[..], &["--user", "1000:1000", "--label", "a=b"]].concat();
    let mut command = podman.run_command(&options, &["sh", "-c", script]);
    let output = e2e::run_with_input(&mut command, |input| input.write_all(b"given\n").unwrap());
    let text = output.text();
    assert_eq!(output.code, 7, "{text}{}", output.stderr);
    assert!(text.starts_with("given\nnamed\nuid=1000(user) gid=1000(user)"), "{text}");
    seen(&output)
}
