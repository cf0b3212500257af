//! Podman of a user who is not root, in the user's own namespaces.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    process::Command,
};

use engines::{Client, Handler, Podman, images, podman::configuration, podman_cases};
use serde_json::{Value, json};

use super::{seen, wait_until};

podman_cases!(of_a_user);

/// Answers on a port, and ends at once when asked to.
const SERVER: &str =
    "trap 'exit 0' TERM; while :; do echo hello | nc -l -p 8080 >/dev/null; done & while :; do sleep 0.1; done";

/// A user id that nobody has.
const ID: u32 = 64_242;

/// A user of the machine, who has subordinate ids, a home and a directory for what runs.
struct User<'a> {
    podman: &'a Podman,
    handler: Handler,
    home: PathBuf,
}

impl Client for User<'_> {
    const PROGRAM: &'static str = "podman";

    fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let runtime = match self.handler {
            Handler::Runc => "/usr/sbin/runc",
            Handler::Kata => "/opt/kata/bin/kata-runtime",
        };
        let runtime = format!("--runtime={runtime}");
        self.command(&[&["podman", &runtime], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat())
    }

    fn log(&self) -> String {
        let script = format!("tail -n 20 /run/user/{ID}/kata-runtime/*/daemon.log 2>/dev/null");
        self.podman.host.run("sh", &["-c", &script]).text()
    }
}

impl<'a> User<'a> {
    /// Makes one, for whom the runtimes are there as if they were installed, as Podman is. Says why if the machine lets no user have namespaces.
    fn new(podman: &'a Podman, handler: Handler) -> Option<Self> {
        let host = &podman.host;
        let own = host.directory().to_owned();
        let home = own.join("home");
        fs::create_dir(&home).unwrap();
        fs::create_dir_all(own.join("opt/kata")).unwrap();
        for path in [&own, &home] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        chown(&home, Some(ID), Some(ID)).unwrap();
        fs::write(own.join("users.conf"), configuration("", "")).unwrap();
        host.sh(&format!(
            "cp {own}/users.conf /etc/containers/containers.conf
            mount --bind {own}/opt /opt; mount --bind {stage} /opt/kata
            echo 'somebody:x:{ID}:{ID}::{home}:/bin/sh' >>/etc/passwd; echo 'somebody:x:{ID}:' >>/etc/group
            echo somebody:200000:65536 >>/etc/subuid; echo somebody:200000:65536 >>/etc/subgid
            mkdir -p /run/user/{ID}; chown {ID}:{ID} /run/user/{ID}; chmod 700 /run/user/{ID}",
            stage = e2e::stage_directory().canonicalize().unwrap().display(),
            own = own.display(),
            home = home.display(),
        ));
        let user = Self { podman, handler, home };
        let namespace = e2e::run(&mut user.command(&["unshare", "--map-root-user", "--map-auto", "--mount", "true"]));
        if namespace.code != 0 {
            eprintln!(
                "skipped: the host lets users have no namespaces (user.max_user_namespaces, newuidmap): {}",
                namespace.stderr
            );
            return None;
        }
        let archive = user.home.join("images.tar");
        fs::write(&archive, images::archive_once()).unwrap();
        user.ok(["load", "--quiet", "--input", &archive.display().to_string()]);
        Some(user)
    }

    /// A command of the user's.
    fn command(&self, args: &[&str]) -> Command {
        let id = ID.to_string();
        let environment = [
            format!("HOME={}", self.home.display()),
            "USER=somebody".into(),
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin".into(),
            format!("XDG_RUNTIME_DIR=/run/user/{ID}"),
        ];
        let as_user = ["--reuid", &id, "--regid", &id, "--clear-groups", "--", "env", "-i", "-C"];
        let as_user = as_user.map(str::to_owned).into_iter().chain([self.home.display().to_string()]);
        self.podman.host.command("setpriv", as_user.chain(environment).chain(args.iter().map(|arg| (*arg).to_owned())))
    }

    fn run(&self, options: &[&str], script: &str) -> e2e::Output {
        self.call([&["run"], options, &[images::BUSYBOX, "sh", "-c", script]].concat())
    }

    /// Who may open it, on the machine.
    fn tun(&self, mode: &str) {
        let script = "mkdir -p /run/tun; rm -f /run/tun/tun; mknod -m $0 /run/tun/tun c 10 200; mount --bind /run/tun/tun /dev/net/tun";
        self.podman.host.ok("sh", &["-ec", script, mode]);
    }

    /// Ends the process that keeps the user's namespaces, and removes what Podman keeps for its user.
    fn leave(&self) {
        self.ok(["system", "migrate"]);
        let processes = || self.podman.host.processes_with("catatonit -P");
        processes().into_iter().for_each(|pid| self.podman.host.kill("KILL", pid));
        wait_until("nothing holds the user's namespaces", || processes().is_empty());
        self.podman.host.sh("umount --lazy /dev/net/tun /opt/kata /opt /usr");
    }
}

fn of_a_user(podman: &Podman, handler: Handler) -> Value {
    let Some(user) = User::new(podman, handler) else { return Value::Null };
    user.tun("666");
    fs::create_dir(user.home.join("data")).unwrap();
    chown(user.home.join("data"), Some(ID), Some(ID)).unwrap();
    let volume = format!("{}/data:/data", user.home.display());
    let script = "id; echo of the container >/data/file; ip -4 -o addr show tap0 | awk '{print $4}'; cat; exit 5";
    let options = ["--rm", "--interactive", "--volume", &volume];
    let arguments = [&["run"], &options[..], &[images::BUSYBOX, "sh", "-c", script]].concat();
    let first =
        e2e::run_with_input(&mut Client::command(&user, arguments), |input| input.write_all(b"given\n").unwrap());
    assert_eq!(first.code, 5, "{}{}\n{}", first.text(), first.stderr, user.log());
    // Who is root in the container is the user.
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(user.home.join("data/file")).unwrap());
    assert_eq!(owner, ID);
    let others = user.run(
        &["--rm", "--user", "1000:1000", "--network", "none"],
        "id; touch /tmp/file; stat -c %u /tmp/file; ip -o link | wc -l",
    );
    // The other way, a process in the container's network namespace, does not reach a guest.
    let network = ["--network", "slirp4netns:port_handler=slirp4netns", "--publish", "127.0.0.1:18080:8080"];
    let options = [&["--detach", "--name", "named"], &network[..]].concat();
    let named = user.run(&options, SERVER);
    assert_eq!(named.code, 0, "{}\n{}", named.stderr, user.log());
    wait_until("an answer of the published port", || podman.connect("127.0.0.1", 18080) == "hello\n");
    let exec = user.call(["exec", "named", "sh", "-c", "id -u; exit 3"]);
    let state = user.inspect("named", "{{.State.Status}}");
    let stopped = user.call(["stop", "--time", "10", "named"]);
    let code = user.inspect("named", "{{.State.ExitCode}}");
    let removed = user.call(["rm", "named"]);
    user.leave();
    json!([seen(&first), seen(&others), seen(&exec), state, seen(&stopped), code, seen(&removed)])
}
