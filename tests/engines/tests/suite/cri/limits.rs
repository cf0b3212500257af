//! What a pod may use: at its start, changed while it runs, and what happens beyond.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use engines::{
    Containerd, Handler, Version, cases, compare_configured,
    cri::{Node, Pod},
};
use serde_json::{Value, json};

use super::{PLAIN, wait_until};

cases!(
    limits_of_containers,
    limits_of_the_pod,
    an_update_in_place,
    processors_of_the_host,
    out_of_memory,
    more_than_the_host_has,
    annotations_that_are_not_enabled,
    figures_for_prometheus,
);

const MIB: i64 = 1 << 20;

fn limits(memory: i64, milli_cpus: i64) -> Value {
    json!({"memory_limit_in_bytes": memory, "cpu_quota": milli_cpus * 100, "cpu_period": 100_000})
}

/// A container with limits.
fn limited(pod: &Pod<'_>, name: &str, memory: i64, milli_cpus: i64) -> String {
    pod.idle(name, &json!({"linux": {"resources": limits(memory, milli_cpus)}}))
}

/// What the kernel holds a container to, whichever kind of cgroups it has: bytes, and CPU time of a period of 100 ms.
const HELD_TO: &str = "
    cd /sys/fs/cgroup
    if [ -e memory.max ]; then cat memory.max; cut -d ' ' -f 1 cpu.max
    else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi";

/// Processors and memory (MiB) of a guest.
fn size(node: &Node<'_>, container: &str) -> (i64, i64) {
    let seen = node.sh(container, "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo");
    let mut numbers = seen.lines().map(|line| line.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn limits_of_containers(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("limited", &PLAIN);
    let small = limited(&pod, "small", 64 * MIB, 500);
    let before = size(&node, &small);
    let large = limited(&pod, "large", 2600 * MIB, 1500);
    let seen = [node.sh(&small, HELD_TO), node.sh(&large, HELD_TO)];
    assert_eq!(seen, ["67108864\n50000\n", "2726297600\n150000\n"]);
    if handler.is_kata() {
        // The guest has grown to hold both: 2 CPUs of time, and memory for all.
        let after = size(&node, &large);
        assert!(before.1 < 2600 && after.1 >= 2600 && after.0 >= 2, "{before:?} {after:?}");
        // All of it is of use.
        node.sh(
            &large,
            "head -c 100000000 /dev/zero >/dev/shm/much || :; mkdir /m; dd if=/dev/zero of=/dev/null bs=100M count=1",
        );
        // It shrinks again when the container goes.
        node.stop(&large, 10);
        node.remove(&large);
        wait_until("the guest gives the memory back", || size(&node, &small).1 < 2600);
    }
    pod.remove();
    json!(seen)
}

fn limits_of_the_pod(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    // As a kubelet tells them, so that a machine can be made as large as is needed.
    let pod = node.pod("sized", &json!({"linux": {"resources": limits(2600 * MIB, 2000)}}));
    let container = limited(&pod, "main", 2600 * MIB, 2000);
    let seen = node.sh(&container, HELD_TO);
    if handler.is_kata() {
        let size = size(&node, &container);
        assert!(size.0 == 2 && size.1 >= 2600, "{size:?}");
    }
    pod.remove();
    json!(seen)
}

fn an_update_in_place(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("updated", &PLAIN);
    let container = limited(&pod, "main", 64 * MIB, 500);
    let mut seen = Vec::new();
    for (memory, milli_cpus) in [(2600, 2000), (96, 250)] {
        let resources = limits(memory * MIB, milli_cpus);
        node.ok("UpdateContainerResources", &json!({"container_id": container, "linux": resources}));
        seen.push(node.sh(&container, HELD_TO));
        if handler.is_kata() {
            let size = size(&node, &container);
            assert_eq!(size.1 >= 2600, memory == 2600, "{size:?}");
            // Processors that came stay.
            assert_eq!(size.0, 2);
        }
    }
    let status = node.status(&container);
    pod.remove();
    assert_eq!(seen, ["2726297600\n200000\n", "100663296\n25000\n"]);
    json!([seen, status["resources"]["linux"]["memory_limit_in_bytes"]])
}

/// Where the kernel lets a container run: its process, or every thread of the machine that it is in.
fn allowed(engine: &Containerd, handler: Handler, node: &Node<'_>, container: &str) -> BTreeSet<String> {
    let of = |status: &str| {
        let mut lines = status.lines().filter_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        lines.next().unwrap_or_default().trim().to_owned()
    };
    if !handler.is_kata() {
        return [of(&node.sh(container, "cat /proc/self/status"))].into();
    }
    let machines = engine.host.processes_with("qemu-system");
    assert_eq!(machines.len(), 1, "{machines:?}");
    let threads = fs::read_dir(engine.host.seen(format!("/proc/{}/task", machines[0]))).unwrap();
    threads.flatten().map(|thread| of(&fs::read_to_string(thread.path().join("status")).unwrap())).collect()
}

fn processors_of_the_host(engine: &Containerd, handler: Handler) -> Value {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let Some(last) = online.trim().rsplit(['-', ',']).next().filter(|last| *last != "0") else {
        eprintln!("skipped: this machine has one processor");
        return Value::Null;
    };
    let node = Node::new(engine, handler);
    let pod = node.pod("kept", &PLAIN);
    let at = |cpus: &str| json!({"linux": {"resources": {"cpuset_cpus": cpus}}});
    let main = pod.idle("main", &at(last));
    let mut seen = vec![allowed(engine, handler, &node, &main)];
    node.ok("UpdateContainerResources", &json!({"container_id": main, "linux": at("0")["linux"]["resources"]}));
    seen.push(allowed(engine, handler, &node, &main));
    assert_eq!(seen, [[last.to_owned()].into(), ["0".to_owned()].into()]);
    // One that the machine does not have is refused, and changes nothing.
    let refused = pod.create("nowhere", &["true"], &at("1000"));
    let failure = node.call("StartContainer", &json!({"container_id": refused})).unwrap_err();
    node.remove(&refused);
    let wrong = json!({"container_id": main, "linux": at("1000")["linux"]["resources"]});
    node.call("UpdateContainerResources", &wrong).unwrap_err();
    assert_eq!(allowed(engine, handler, &node, &main), ["0".to_owned()].into());
    if handler.is_kata() {
        assert!(failure.message.contains("names processor 1000"), "{failure}");
        // The machine runs where any of its containers may.
        let other = pod.idle("other", &at(last));
        let both = allowed(engine, handler, &node, &main);
        assert!(both.len() == 1 && !both.contains("0") && !both.contains(last), "{both:?}");
        node.stop(&other, 10);
        node.remove(&other);
        assert_eq!(allowed(engine, handler, &node, &main), ["0".to_owned()].into());
        // A container of no place may run everywhere.
        pod.idle("free", &PLAIN);
        assert!(!allowed(engine, handler, &node, &main).contains("0"));
    }
    pod.remove();
    json!(seen)
}

/// The option ShimCgroup: the shim leaves the pod's control group, the machine stays. A name of this test alone, since nobody else removes it.
#[test]
fn the_shim_has_a_cgroup_of_its_own() {
    let options = r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options"#;
    let settings = format!("[{options}]\n  ShimCgroup = \"/{}/shim\"", shims());
    compare_configured(Version::V1_7, &settings, "cri::limits::the_shim_has_a_cgroup_of_its_own", |engine, handler| {
        if !handler.is_kata() {
            return Value::Null;
        }
        let node = Node::new(engine, handler);
        let pod = node.pod("apart", &PLAIN);
        pod.idle("main", &PLAIN);
        for (program, group) in [("containerd-shim-kata-v2 -", &*shims()), ("qemu-system", engine.host.name())] {
            let found = engine.host.processes_with(program);
            assert_eq!(found.len(), 1, "{program}: {found:?}");
            let groups = fs::read_to_string(engine.host.seen(format!("/proc/{}/cgroup", found[0]))).unwrap();
            // The last line is of version 2, which has no controllers where there is version 1.
            let (with, all) = (groups.matches(&format!("/{group}")).count(), groups.lines().count());
            assert!(with > 0 && with + 1 >= all, "{program} is in {groups}");
        }
        pod.remove();
        wait_until("the shim's cgroup is removed", || {
            engine.host.sh(&format!("find /sys/fs/cgroup -maxdepth 3 -name {}", shims())).is_empty()
        });
        Value::Null
    });
}

fn shims() -> String {
    format!("shims{}", std::process::id())
}

fn out_of_memory(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("greedy", &PLAIN);
    let other = pod.idle("other", &PLAIN);
    let resources = json!({"linux": {"resources": limits(32 * MIB, 0)}});
    let mut seen = Vec::new();
    for (name, command) in [("first", "exec tail /dev/zero"), ("child", "tail /dev/zero; exit 3")] {
        let container = pod.run(name, &["sh", "-c", command], &resources);
        seen.push(node.wait(&container)["exit_code"].clone());
        // That it was the kernel may be told after the end. runc's shim may miss it altogether.
        if handler.is_kata() && name == "first" {
            wait_until("the kernel is named", || node.wait(&container)["reason"] == "OOMKilled");
        }
    }
    assert_eq!(node.sh(&other, "echo lives"), "lives\n");
    pod.remove();
    assert_eq!(seen[0], 137);
    json!(seen)
}

fn more_than_the_host_has(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let huge = json!({"linux": {"resources": limits(1 << 48, 0)}});
    let pod = node.try_pod("too-large", &huge);
    match (pod, handler) {
        (Ok(pod), Handler::Runc) => pod.remove(),
        (Err(failure), Handler::Kata) => assert!(failure.message.contains("more than this host has"), "{failure}"),
        other => panic!("{other:?}"),
    }
    if handler.is_kata() {
        let pod = node.pod("fits", &PLAIN);
        let container = pod.create("too-large", &["true"], &huge);
        let failure = node.call("StartContainer", &json!({"container_id": container})).unwrap_err();
        assert!(failure.message.contains("more than this host has"), "{failure}");
        let small = limited(&pod, "small", 64 * MIB, 0);
        let failure = node
            .call("UpdateContainerResources", &json!({"container_id": small, "linux": limits(1 << 48, 0)}))
            .unwrap_err();
        assert!(failure.message.contains("more than this host has"), "{failure}");
        assert!(node.sh(&small, HELD_TO).starts_with("67108864\n"));
        pod.remove();
    }
    Value::Null
}

fn annotations_that_are_not_enabled(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let annotations = json!({"annotations": {
        "io.katacontainers.config.hypervisor.default_vcpus": "7",
        "io.katacontainers.config.hypervisor.no_such_key": "x",
    }});
    let pod = node.pod("annotated", &annotations);
    let container = pod.idle("main", &PLAIN);
    if handler.is_kata() {
        assert_ne!(size(&node, &container).0, 7);
        for key in ["default_vcpus", "no_such_key"] {
            let log = engine.whole_log();
            let told = log.lines().find(|line| line.contains("level=warning") && line.contains(key));
            assert!(told.is_some(), "no word of {key} in containerd's log: {}", engine.log());
        }
    }
    pod.remove();
    Value::Null
}

fn figures_for_prometheus(engine: &Containerd, handler: Handler) -> Value {
    if !handler.is_kata() {
        return Value::Null;
    }
    let node = Node::new(engine, handler);
    let pod = node.pod("measured", &PLAIN);
    let container = pod.idle("main", &PLAIN);
    node.sh(&container, "true");
    // Through the directory's descriptor: the way through the machine's root is longer than a socket's path may be.
    let directory = std::fs::File::open(engine.host.seen(format!("/run/kata/{}", pod.id))).unwrap();
    let socket = format!("/proc/self/fd/{}/shim-monitor.sock", directory.as_raw_fd());
    let scrape = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        text
    };
    scrape();
    let text = scrape();
    for family in [
        "kata_shim_fds",
        "kata_shim_threads",
        "kata_shim_proc_status",
        "kata_shim_rpc_durations_histogram_milliseconds",
        "kata_shim_agent_rpc_durations_histogram_milliseconds",
        "kata_shim_pod_overhead_cpu",
        "kata_shim_pod_overhead_memory_in_bytes",
        "kata_hypervisor_fds",
        "kata_hypervisor_threads",
        "kata_hypervisor_proc_status",
        "kata_hypervisor_io_stat",
        "kata_virtiofsd_fds",
        "kata_agent_total_rss",
        "kata_agent_total_time",
        "kata_agent_threads",
        "kata_guest_cpu_time",
        "kata_guest_meminfo",
        "kata_guest_netdev_stat",
        "kata_guest_diskstat",
        "kata_guest_load",
    ] {
        assert!(text.contains(&format!("# TYPE {family} ")), "no {family} in {text}");
    }
    assert!(text.contains("item=\"mem_total\"") || text.contains("item=\"memtotal\""), "{text}");
    pod.remove();
    assert!(fs::metadata(&socket).is_err());
    Value::Null
}
