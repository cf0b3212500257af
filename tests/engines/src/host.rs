//! A machine of its own for an engine: network, mounts and processes apart from those of the machine that the test runs on.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use e2e::Output;

/// What the first process of the machine does: it prepares the mounts, says that it is ready, takes care of orphans (bash does) and ends
/// when the test does, however that ends: it kills what else runs there and removes the groups and files, all of which carry the machine's name.
///
/// Every engine finds its usual places below `/run`, and nobody else's; what it writes below `/etc` and `/var/lib` is not written
/// there. A hybrid of both kinds of cgroups gets the controllers that
/// the machine did not mount, which runc and crun ask for.
const FIRST_PROCESS: &str = r#"
set -e
mount --make-rprivate /
mount --make-rshared /
mount -t proc proc /proc
if ! [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir "$1/cgroup"
    mount --rbind /sys/fs/cgroup "$1/cgroup"
    mount --make-rprivate "$1/cgroup"
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for old in "$1"/cgroup/*; do
        new=/sys/fs/cgroup/${old##*/}
        if [ -h "$old" ]; then cp -P "$old" "$new"; else mkdir "$new"; mount --bind "$old" "$new"; fi
    done
    umount -R "$1/cgroup"
    rmdir "$1/cgroup"
    # One that is in use elsewhere comes together with what it was put together with. Another machine may begin or end meanwhile.
    together() {
        awk -v "n=$1" '{ of[$1] = $2; names[NR] = $1 } END {
            if (!of[n]) { print n; exit }
            for (i = 1; i <= NR; i++) if (of[names[i]] == of[n]) { printf "%s%s", comma, names[i]; comma = "," }
        }' /proc/cgroups
    }
    while read -r name _; do
        [ "${name:0:1}" != '#' ] && ! [ -e "/sys/fs/cgroup/$name" ] || continue
        for _ in {1..50}; do
            all=$(together "$name")
            mkdir -p "/sys/fs/cgroup/$all"
            ! mount -t cgroup -o "$all" cgroup "/sys/fs/cgroup/$all" 2>"$1/why" || continue 2
            rmdir "/sys/fs/cgroup/$all"
            sleep 0.1
        done
        cat "$1/why" >&2
        exit 1
    # Read at once: its lines move when another machine begins or ends.
    done <<<"$(cat /proc/cgroups)"
    rm -f "$1/why"
fi
mount -t tmpfs -o mode=755 tmpfs /run
for place in /etc /var/lib; do
    mkdir -p "/run/.own$place/upper" "/run/.own$place/work"
    mount -t overlay -o "lowerdir=$place,upperdir=/run/.own$place/upper,workdir=/run/.own$place/work" overlay "$place"
done
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# A new bridge has its addresses at once: nobody else has them.
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
trap '' HUP INT TERM
echo ready
read -r _ || :
set +e
cd /
kill -KILL -1 2>/dev/null
others=()
if [ -e "$1/cgroups" ]; then
    while read -r name; do others+=(-o -name "$name"); done <"$1/cgroups"
fi
for _ in {1..500}; do
    left=$(
        find /sys/fs/cgroup -mindepth 1 -maxdepth 5 -type d -name "*$2*" -prune
        [ "${#others[@]}" = 0 ] || find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d \( "${others[@]:1}" \) -prune
    )
    [ -n "$left" ] || break
    find $left -depth -type d -exec rmdir {} + 2>/dev/null
    sleep 0.02
done
while read -r _ at _; do [[ $at != "$1"/* ]] || umount --lazy "$at"; done < <(tac /proc/self/mounts)
rm -rf --one-file-system "$1"
"#;

/// A machine. Whatever runs in it is killed when it is dropped.
#[derive(Debug)]
pub struct Host {
    unshare: Child,
    input: Option<ChildStdin>,
    /// Its first process, as the test's machine counts.
    pid: u32,
    name: String,
    directory: tempfile::TempDir,
    path: String,
}

impl Host {
    /// Starts one whose programs are first looked for in `programs`.
    pub fn start(programs: &[PathBuf]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("kt{}x{}x", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--", "bash", "-c", FIRST_PROCESS, "bash"]);
        // Signals from a terminal are for the test; this must outlive it to clean up.
        let mut unshare = command
            .arg(directory.path())
            .arg(&name)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start unshare");
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the machine for an engine did not get ready; its reason is above");
        let pid = child(unshare.id());
        let mut path: Vec<PathBuf> = programs.to_vec();
        path.extend(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
        let path = std::env::join_paths(path).unwrap().into_string().unwrap();
        let input = unshare.stdin.take();
        Self { unshare, input, pid, name, directory, path }
    }

    /// A name that no other machine has; cgroups and containerd's namespaces carry it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has further control groups removed in the end, by patterns of find(1) for the names of those at the top of a hierarchy. One that is
    /// there already, and not just left empty by a test that was killed, stays.
    pub fn remove_cgroups(&self, names: &[&str]) {
        let find = r#"top() { find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$1"; }
            top "$1" | while read -r group; do find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || :; done
            top "$1""#;
        let is_new = |name: &&&str| self.ok("sh", &["-c", find, "sh", name]).is_empty();
        let new: String = names.iter().filter(is_new).map(|name| format!("{name}\n")).collect();
        fs::write(self.directory().join("cgroups"), new).unwrap();
    }

    /// A directory of its own, at the same path inside and outside; removed in the end.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where a path of the machine is seen from outside.
    pub fn seen(&self, path: impl AsRef<Path>) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join("root").join(path.as_ref().strip_prefix("/").unwrap())
    }

    /// The file of the machine's network namespace.
    pub fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// A command on the machine, its standard input empty.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--net", "--mount", "--pid", "--", "env"]);
        command.arg(format!("PATH={}", self.path)).arg(program).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a command on the machine.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        e2e::run(&mut self.command(program, args))
    }

    /// Runs a command on the machine and expects success; gives its standard output.
    #[track_caller]
    pub fn ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(program, args);
        assert_eq!(output.code, 0, "{program} {args:?}: {}{}", output.text(), output.stderr);
        output.text()
    }

    /// Runs a shell script on the machine and expects success; gives its standard output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.ok("sh", &["-ec", script])
    }

    /// Sends a signal to a process, by its number on the machine.
    pub fn kill(&self, signal: &str, pid: u32) {
        self.run("kill", &["-s", signal, &pid.to_string()]);
    }

    /// The processes of the machine and their command lines, but for its first one. The numbers are the machine's.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let all = fs::read_dir(self.seen("/proc")).into_iter().flatten().flatten();
        let line = |pid: u32| {
            let line = fs::read(self.seen(format!("/proc/{pid}/cmdline"))).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()
        };
        // One that has no command line has ended, and nobody has asked for its status yet.
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != 1)
            .map(|pid| (pid, line(pid)))
            .filter(|(_, line)| !line.is_empty())
            .collect()
    }

    /// The processes whose command line contains `text`.
    pub fn processes_with(&self, text: &str) -> Vec<u32> {
        self.processes().into_iter().filter(|(_, line)| line.contains(text)).map(|(pid, _)| pid).collect()
    }

    /// Whatever a container could leave behind. What is there after it must have been there before.
    pub fn traces(&self) -> BTreeSet<String> {
        let mut traces: BTreeSet<String> =
            self.processes().into_iter().map(|(pid, line)| format!("process {pid} {line}")).collect();
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid)).unwrap_or_default();
        traces.extend(mounts.lines().filter_map(|line| Some(format!("mount {}", line.split(' ').nth(4)?))));
        let links = fs::read_to_string(format!("/proc/{}/net/dev", self.pid)).unwrap_or_default();
        traces.extend(links.lines().filter_map(|line| Some(format!("interface {}", line.split_once(':')?.0.trim()))));
        // Engines and kubelets keep the groups above those of their containers, which carry the machine's name.
        let own = |path: &&PathBuf| path.file_name().is_some_and(|name| !name.to_string_lossy().contains(&self.name));
        traces.extend(self.cgroups().iter().filter(own).map(|path| format!("cgroup {}", path.display())));
        for place in [
            "run/netns",
            "run/containerd",
            "run/docker",
            "run/kata",
            "run/vc",
            "run/kata-containers",
            "run/kata-runtime",
        ] {
            below(&self.seen("/").join(place), place, 4, &mut traces);
        }
        traces.retain(|trace| !self.is_kept(trace));
        traces
    }

    /// A directory of an engine above those of its containers.
    fn is_kept(&self, trace: &str) -> bool {
        // The daemon itself, which a case may have restarted, and what it keeps its snapshots on.
        if trace.contains(" containerd --config ") || *trace == format!("mount {}/btrfs", self.directory().display()) {
            return true;
        }
        // The snapshotter keeps a layer mounted; the bridge stays for the next pod.
        if trace.contains("io.containerd.snapshotter.v1.erofs/snapshots/") || trace == "interface cni0" {
            return true;
        }
        // What the first sandbox finds out about the machine, for all that follow.
        if trace == "file run/kata-containers" || trace == "file run/kata-containers/kvm-probe" {
            return true;
        }
        // Podman keeps the group of its monitors.
        if trace.starts_with("cgroup ") && trace.ends_with(&format!("/{}/conmon", self.name)) {
            return true;
        }
        // And what it mounts upon itself when it first mounts an image.
        if *trace == format!("mount {}/storage/overlay", self.directory().display()) {
            return true;
        }
        // And in hierarchies without controllers those of its pods, which are called just by a number.
        if (trace.contains("/unified/") || trace.contains("/systemd/"))
            && trace
                .rsplit('/')
                .next()
                .is_some_and(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return true;
        }
        // Docker keeps the directories of its containers, and for a minute the files that their network namespaces were mounted on.
        let docker: [&str; 3] = ["containerd", "runtime-runc", "runtime-runc/moby"];
        if trace.starts_with("file run/docker/netns")
            || trace.strip_prefix("file run/docker/").is_some_and(|path| docker.contains(&path))
            || trace == "mount /run/docker/netns/default"
        {
            return true;
        }
        let Some(path) = trace.strip_prefix("file run/containerd/") else { return false };
        [
            "fifo",
            "s",
            "runc",
            "io.containerd.grpc.v1.cri",
            "io.containerd.grpc.v1.cri/containers",
            "io.containerd.grpc.v1.cri/sandboxes",
            "io.containerd.sandbox.controller.v1.shim",
        ]
        .contains(&path)
            || [self.name.as_str(), "k8s.io", "moby"].iter().any(|space| path.ends_with(space))
    }

    /// Waits until nothing is there that was not there before, but for what is allowed to remain.
    #[track_caller]
    pub fn expect_traces(&self, before: &BTreeSet<String>, allowed: impl Fn(&str) -> bool) {
        let left = self.left_behind(before, Duration::from_secs(20), allowed);
        left.unwrap_or_else(|left| panic!("{left}"));
    }

    /// The same, but says what is left instead of failing.
    ///
    /// # Errors
    /// What is left.
    pub fn left_behind(
        &self,
        before: &BTreeSet<String>,
        deadline: Duration,
        allowed: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let end = Instant::now() + deadline;
        loop {
            let now = self.traces();
            let left: Vec<&String> = now.difference(before).filter(|trace| !allowed(trace)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let told = left.iter().filter_map(|trace| self.told_by(trace)).collect::<String>();
                return Err(format!("left behind: {left:#?}{told}"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// How processes of the machine are numbered outside.
    pub fn numbers(&self) -> Numbers {
        Numbers { first: self.pid }
    }

    /// What a file that is left says of why it is.
    fn told_by(&self, trace: &str) -> Option<String> {
        let path =
            trace.strip_prefix("file ").filter(|path| path.ends_with("/state.json") || path.ends_with(".log"))?;
        let text = fs::read_to_string(self.seen(format!("/{path}"))).ok()?;
        Some(format!("\n{path}: {text}"))
    }

    /// The cgroups that carry the machine's name, parents first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        named(&self.seen("/sys/fs/cgroup"), &self.name, 3, &mut found);
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.input.take());
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end && matches!(self.unshare.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Directories with the name in theirs, and all below those; parents first.
fn named(at: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(name) {
            all_below(&entry.path(), found);
        } else if depth > 0 {
            named(&entry.path(), name, depth - 1, found);
        }
    }
}

fn all_below(at: &Path, found: &mut Vec<PathBuf>) {
    found.push(at.into());
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all_below(&entry.path(), found);
        }
    }
}

fn below(at: &Path, name: &str, depth: usize, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), &name, depth - 1, into);
        }
        into.insert(format!("file {name}"));
    }
}

/// How processes of a machine are numbered outside.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    first: u32,
}

impl Numbers {
    /// The number here of a process that has that number on the machine; 0 if there is none.
    pub fn outside(self, inside: u32) -> u32 {
        let begun = |path: String| {
            let stat = fs::read_to_string(path).ok()?;
            let fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(19)?;
            Some(fields.to_owned())
        };
        let wanted = begun(format!("/proc/{}/root/proc/{inside}/stat", self.first));
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut outside = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            numbers.split_ascii_whitespace().nth(1) == Some(inside.to_string().as_str())
                && begun(format!("/proc/{pid}/stat")) == wanted
        });
        outside.next().unwrap_or(0)
    }
}

/// The first child of a process: `unshare`'s and `nsenter`'s is what they were to execute.
pub fn child(pid: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
