//! What else Docker's users ask of a container.

use std::fs;

use engines::{Client, Docker, Handler, Release, docker_cases, images};
use serde_json::{Value, json};

use super::{seen, wait_until};

docker_cases!(rights, settings, mounts_and_devices, an_init, detach_and_attach, followed_logs, commit_and_diff, top);

fn rights(docker: &Docker, handler: Handler) -> Value {
    let status = |options: &[&str]| {
        let script = "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; mkdir /made; echo $?";
        docker.run(handler, &[&["--rm"], options].concat(), &["sh", "-c", script])
    };
    let profile = docker.host.directory().join("profile.json");
    let forbidden = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    fs::write(&profile, forbidden.to_string()).unwrap();
    let file = format!("seccomp={}", profile.display());
    let cases: [&[&str]; 5] = [
        &[],
        &["--cap-drop", "ALL", "--cap-add", "NET_RAW"],
        &["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges"],
        &["--security-opt", &file],
        &["--user", "1000:1000"],
    ];
    let all: Vec<_> = cases.iter().map(|options| status(options)).collect();
    assert!(all[1].text().contains("CapEff:\t0000000000002000"), "{}{}", all[1].text(), all[1].stderr);
    assert!(all[2].text().contains("Seccomp:\t0") && all[2].text().contains("NoNewPrivs:\t1"), "{}", all[2].text());
    assert!(all[3].text().ends_with("Seccomp:\t2\n1\n"), "{}{}", all[3].text(), all[3].stderr);
    let script = "mount -t tmpfs tmpfs /tmp && echo mounted; ls /dev/null /dev/zero; echo 1 >/proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward";
    // Docker 20.10 asks runc for rights that root itself may not have where the tests run.
    if handler.is_kata() || docker.release != Release::V20 {
        let privileged = docker.run(handler, &["--rm", "--privileged"], &["sh", "-c", script]);
        assert_eq!(privileged.text(), "mounted\n/dev/null\n/dev/zero\n1\n", "{}", privileged.stderr);
    }
    json!(all.iter().map(seen).collect::<Vec<_>>())
}

fn settings(docker: &Docker, handler: Handler) -> Value {
    let script = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax; df -k /dev/shm | tail -n 1 | awk '{ print $2 }'; \
                  ulimit -n; ulimit -c; hostname; cat /etc/hosts | grep named; pwd; id; echo $LABEL";
    let options = "--rm --sysctl net.core.somaxconn=77 --sysctl kernel.msgmax=4000 --shm-size 8m --ulimit nofile=50:60 --ulimit core=0 \
                   --hostname host --add-host named:192.0.2.1 --workdir /new/dir --user user --group-add 7 --env LABEL=x";
    let output = docker.run(handler, &options.split_whitespace().collect::<Vec<_>>(), &["sh", "-c", script]);
    assert!(
        output.text().starts_with("77\n4000\n8192\n50\n0\nhost\n192.0.2.1\tnamed\n/new/dir\nuid=1000"),
        "{}{}",
        output.text(),
        output.stderr
    );
    seen(&output)
}

fn mounts_and_devices(docker: &Docker, handler: Handler) -> Value {
    let data = docker.host.directory().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("in"), "from the host\n").unwrap();
    let bind = format!("type=bind,source={},target=/ro,readonly", data.display());
    let script = "cat /ro/in; touch /ro/no; echo $?; df -k /memory | tail -n 1 | awk '{ print $2 }'; echo kept >/volume/kept; cat /volume/kept; \
                  ls -l /dev/fuse | awk '{ print substr($1, 1, 1), $5, $6 }'; touch /no; echo $?";
    let options = ["--rm", "--read-only", "--mount", &bind, "--mount", "type=tmpfs,target=/memory,tmpfs-size=1m"];
    let options =
        [&options[..], &["--mount", "type=volume,source=some,target=/volume", "--device", "/dev/fuse"]].concat();
    let output = docker.run(handler, &options, &["sh", "-c", script]);
    assert_eq!(output.text(), "from the host\n1\n1024\nkept\nc 10, 229\n1\n", "{}", output.stderr);
    docker.ok(["volume", "rm", "some"]);
    if handler.is_kata() {
        let refused = docker.run(handler, &["--rm", "--device", "/dev/loop-control"], &["true"]);
        assert!(refused.code == 125 && refused.stderr.contains("/dev/loop-control"), "{}", seen(&refused));
    }
    seen(&output)
}

fn an_init(docker: &Docker, handler: Handler) -> Value {
    let output = docker.run(handler, &["--rm", "--init"], &["sh", "-c", "cat /proc/1/comm; exit 5"]);
    assert_eq!((output.code, output.text().as_str()), (5, "docker-init\n"), "{}", output.stderr);
    seen(&output)
}

fn detach_and_attach(docker: &Docker, handler: Handler) -> Value {
    let options = ["--detach", "--interactive", "--tty", "--name", "shell"];
    let started = docker.run(handler, &options, &["sh"]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    let attach = || e2e::Terminal::start(&docker.command(["attach", "--detach-keys", "ctrl-x", "shell"]), 30, 90);
    let mut terminal = attach();
    terminal.write("echo he''re\r");
    terminal.expect("here");
    terminal.write("\x18");
    let detached = terminal.finish().0;
    assert_eq!(docker.inspect("shell", "{{.State.Running}}"), "true");
    let mut terminal = attach();
    terminal.write("echo aga''in\r");
    terminal.expect("again");
    terminal.write("exit 4\r");
    let ended = terminal.finish().0;
    assert_eq!(ended, 4);
    docker.remove(&["shell"]);
    json!([detached, ended])
}

fn followed_logs(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &[], "told", "for i in 1 2 3 4 5; do echo $i; echo err $i >&2; sleep 0.3; done; exit 6");
    let followed = docker.call(["logs", "--follow", "told"]);
    assert_eq!((followed.text().as_str(), followed.code), ("1\n2\n3\n4\n5\n", 0), "{}", followed.stderr);
    let waited = docker.ok(["wait", "told"]);
    docker.remove(&["told"]);
    json!([seen(&followed), waited])
}

fn commit_and_diff(docker: &Docker, handler: Handler) -> Value {
    let made = docker.run(
        handler,
        &["--name", "maker"],
        &["sh", "-c", "echo made >/made; rm /etc/group; mkdir /new; echo x >/new/x"],
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    let mut changed: Vec<String> = docker.ok(["diff", "maker"]).lines().map(str::to_owned).collect();
    changed.sort();
    docker.ok(["commit", "--change", "ENV FROM=commit", "maker", "made:1"]);
    docker.remove(&["maker"]);
    let args = [
        "run",
        "--rm",
        "--runtime",
        docker.runtime(handler),
        "made:1",
        "sh",
        "-c",
        "cat /made /new/x; ls /etc/group; echo $FROM",
    ];
    let output = docker.call(args);
    assert!(
        output.text().starts_with("made\nx\n") && output.text().ends_with("commit\n"),
        "{}{}",
        output.text(),
        output.stderr
    );
    docker.ok(["rmi", "made:1"]);
    json!([changed, seen(&output)])
}

/// The guest's numbers mean nothing on the host: what stands for the container there is shown.
fn top(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &[], "runs", "while :; do sleep 0.1; done");
    wait_until("it is shown", || docker.call(["top", "runs"]).code == 0);
    let shown = docker.ok(["top", "runs", "-o", "pid,args"]);
    let pid = docker.inspect("runs", "{{.State.Pid}}");
    assert!(shown.lines().any(|line| line.split_whitespace().next() == Some(&pid)), "{pid}: {shown}");
    assert_eq!(
        docker.ok(["run", "--rm", "--runtime", docker.runtime(handler), images::BUSYBOX, "echo", "beside"]),
        "beside\n"
    );
    docker.remove(&["runs"]);
    Value::Null
}
