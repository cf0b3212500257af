//! `docker run` in the foreground: what the container is given and what it gives.

use std::fs;

use engines::{Client, Docker, Door, Handler, docker_cases, terminal::on_a_terminal};
use serde_json::{Value, json};

use super::seen;

docker_cases!(output_and_code, terminal, volumes, limits, a_program_that_is_not_there, namespaces_of_the_host);

fn output_and_code(docker: &Docker, handler: Handler) -> Value {
    let script = "cat; echo err >&2; hostname; id; pwd; echo $ONE; ls -ld /tmp; touch /etc/no; exit 7";
    let options = ["--rm", "--interactive", "--hostname", "named", "--env", "ONE=1", "--workdir", "/home/user"];
    let options = [&options[..], &["--user", "1000:1000", "--label", "a=b"]].concat();
    let mut command = docker.run_command(handler, &options, &["sh", "-c", script]);
    let output = e2e::run_with_input(&mut command, |input| input.write_all(b"given\n").unwrap());
    let text = output.text();
    assert_eq!(output.code, 7, "{text}{}", output.stderr);
    assert!(text.starts_with("given\nnamed\nuid=1000(user) gid=1000(user)"), "{text}");
    seen(&output)
}

fn terminal(docker: &Docker, handler: Handler) -> Value {
    let command = docker.run_command(handler, &["--rm", "--interactive", "--tty"], &["sh"]);
    on_a_terminal(&command, "exit 9").0
}

fn volumes(docker: &Docker, handler: Handler) -> Value {
    let data = docker.host.directory().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("in"), "from the host\n").unwrap();
    let (rw, ro) = (format!("{}:/rw", data.display()), format!("{}/in:/etc/file:ro", data.display()));
    let script = "cat /rw/in /etc/file; echo made >/rw/out; echo no >/etc/file; echo $?; echo kept >/named/kept; \
                  mount | grep ' /memory ' | cut -d ' ' -f 1-5; cat /etc/hosts | grep -c $(hostname); cat /etc/resolv.conf";
    let options = ["--rm", "--volume", &rw, "--volume", &ro, "--volume", "named:/named", "--tmpfs", "/memory:size=1m"];
    let output = docker.run(handler, &options, &["sh", "-c", script]);
    assert_eq!(output.code, 0, "{}{}", output.text(), output.stderr);
    assert_eq!(fs::read_to_string(data.join("out")).unwrap(), "made\n");
    let again = docker.run(
        handler,
        &["--rm", "--volume", "named:/named", "--read-only"],
        &["sh", "-c", "cat /named/kept; touch /no; echo $?"],
    );
    assert_eq!(again.text(), "kept\n1\n", "{}", again.stderr);
    docker.ok(["volume", "rm", "named"]);
    json!([output.text(), seen(&again)])
}

fn limits(docker: &Docker, handler: Handler) -> Value {
    let read = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let options = ["--rm", "--memory", "64m", "--cpus", "1", "--pids-limit", "50", "--ulimit", "nofile=100:200"];
    let output = docker.run(handler, &options, &["sh", "-c", &format!("{read}; ulimit -n")]);
    assert_eq!(output.text(), "67108864\n100\n", "{}", output.stderr);
    let options = ["--name", "full", "--memory", "32m", "--memory-swap", "32m"];
    let full = docker.run(handler, &options, &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    let killed = docker.inspect("full", "{{.State.OOMKilled}} {{.State.ExitCode}}");
    // By path, only the host's cgroups are asked, where nothing was short of memory.
    let seen_by_docker = docker.door == Door::Shim || !handler.is_kata();
    assert_eq!((full.code, killed), (137, format!("{seen_by_docker} 137")), "{}", full.stderr);
    docker.remove(&["full"]);
    if handler.is_kata() {
        let refused = docker.run(handler, &["--rm", "--memory", "1000000g"], &["true"]);
        assert_eq!(refused.code, 125, "{}", refused.stderr);
        assert!(refused.stderr.contains("memory limit"), "{}", refused.stderr);
    }
    json!(seen(&output))
}

fn a_program_that_is_not_there(docker: &Docker, handler: Handler) -> Value {
    let output = docker.run(handler, &["--rm"], &["no-such-program"]);
    assert!(output.stderr.contains("no-such-program"), "{}", output.stderr);
    json!(output.code)
}

/// What a virtual machine cannot share is refused, and the words say what.
fn namespaces_of_the_host(docker: &Docker, handler: Handler) -> Value {
    for (option, word) in [("--network=host", "network"), ("--pid=host", "pid"), ("--ipc=host", "ipc")] {
        let output = docker.run(handler, &["--rm", option], &["true"]);
        if handler.is_kata() {
            assert_eq!(output.code, 125, "{option}: {}", output.stderr);
            assert!(output.stderr.to_lowercase().contains(word), "{option}: {}", output.stderr);
        }
    }
    Value::Null
}
