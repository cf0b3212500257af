//! The agent's calls that are about pods, one after the other in one guest, without a sandbox around it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use agent_api::{Event, ExitStatus, Reply, Request, frame};
use e2e::agent::{AgentGuest, ext4, on_one_thread, process};
use e2e::{needs_monolithic_kernel, rootfs};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STORAGE: &str = agent_api::GUEST_STORAGE_DIR;

/// The root file system is an overlay of an image that the pod's containers share and memory of the container's own.
fn storages(id: &str) -> Vec<Value> {
    vec![
        json!({"name": "images/debian", "source": {"disk": {"serial": "debian", "fs_type": "ext4"}}, "options": ["ro"], "of_pod": true}),
        json!({"name": format!("{id}/upper"), "source": {"memory": {"size": 32 << 20}}}),
        json!({"name": format!("{id}/rootfs"), "source": {"overlay":
            {"lower": [format!("{STORAGE}/images/debian")], "upper": format!("{id}/upper")}}}),
    ]
}

/// A container that shares the given namespaces with the pod.
fn container(id: &str, script: &str, shared: &[&str]) -> Value {
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "network", "path": "/run/netns/x"})];
    for kind in ["pid", "ipc", "uts"] {
        namespaces.push(if shared.contains(&kind) {
            json!({"type": kind, "path": "pod"})
        } else {
            json!({"type": kind})
        });
    }
    json!({"id": id, "start": true, "storages": storages(id), "spec": {
        "root": {"path": format!("{STORAGE}/{id}/rootfs")},
        "process": process(script),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "bind", "source": agent_api::GUEST_SHM_DIR, "options": ["rbind"]},
        ],
        "linux": {"namespaces": namespaces, "resources": {"devices": [{"allow": false, "access": "rwm"}]}},
    }})
}

async fn delete(guest: &AgentGuest, id: &str) {
    guest.done(&Request::DeleteContainer { container: id.into() }).await;
}

#[test]
fn a_pod() {
    if !needs_monolithic_kernel() {
        return;
    }
    on_one_thread(async {
        let dir = tempfile::tempdir().unwrap();
        let image = ext4(dir.path(), "debian", Some(&rootfs()), 256);
        let mut guest = AgentGuest::boot().await;

        // Before the pod is configured, nothing can be shared; nothing of an attempt stays.
        guest.plug_disk(0, "debian", &image).await;
        let message = guest.create(container("a", "true", &["ipc"])).await.err().unwrap();
        assert!(message.contains("configured first"), "{message}");
        let pod = json!({"configure_pod": {"hostname": "pod-1", "shm_size": 16 << 20,
            "sysctl": {"kernel.msgmax": "4321", "net.ipv4.ip_unprivileged_port_start": "77"}}});
        guest.done(&pod).await;
        assert!(guest.refused(&pod).await.contains("already"));

        namespaces(&guest).await;
        limits(&guest).await;
        disks(&mut guest, dir.path()).await;
        files(&guest).await;
        huge_pages(&guest).await;
        out_of_memory(&guest).await;
        dial(&guest).await;
        failures(&guest).await;
        processors(&guest).await;
        metrics(&guest).await;
        assert!(!guest.console().contains("warning:"), "{}", guest.console());
    });
}

async fn namespaces(guest: &AgentGuest) {
    let all = ["pid", "ipc", "uts"];
    let a = guest.create(container("a", "echo hi >/dev/shm/file; exec sleep 1000", &all)).await.unwrap();
    let _b = guest.create(container("b", "exec sleep 1001", &all)).await.unwrap();
    let _c = guest.create(container("c", "exec sleep 1002", &["ipc"])).await.unwrap();
    assert_eq!(
        guest
            .exec("b", "hostname; cat /dev/shm/file /proc/sys/kernel/msgmax /proc/1/comm; tr -d '\\0' </proc/1/cmdline")
            .await,
        "pod-1\nhi\n4321\npause\npause"
    );
    assert_eq!(
        guest.exec("c", "hostname; cat /dev/shm/file /proc/sys/kernel/msgmax; cat /proc/1/comm").await,
        "localhost\nhi\n4321\nsleep"
    );
    assert_eq!(guest.exec("b", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "77");
    assert_eq!(guest.exec("b", "df --output=size -k /dev/shm | tail -1").await.trim(), "16384");
    let seen = guest.exec("b", "ps -e -o args | grep -c '^sleep 100'").await;
    assert_eq!(seen, "2", "the processes of both containers that share process ids");
    assert_eq!(guest.exec("c", "ps -e -o args | grep -c '^sleep 100'").await, "1");
    let rights = guest.exec("b", "ls /proc/1/root/ 2>&1 | head -1; grep -E 'Uid|CapPrm' /proc/1/status").await;
    assert!(
        rights.contains("ermission denied") && rights.contains("65535") && rights.contains("0000000000000000"),
        "{rights}"
    );
    // An orphan goes to the pod's first process, which reaps it.
    guest.exec("a", "(sleep 0.1 &) ; true").await;
    guest.exec("a", "sleep 0.5; ! ps -e -o stat,args | grep -v grep | grep '^Z'").await;
    // The end of a container's first process ends its others, and nobody else's.
    guest.exec("a", "setsid sleep 1003 >/dev/null 2>&1 & true").await;
    guest.done(&Request::Signal { container: "a".into(), exec: None, signal: 9, all: false }).await;
    assert_eq!(a.ended().await.0, ExitStatus::Signal(9));
    guest
        .exec(
            "b",
            "while ps -e -o args | grep -q '^sleep 1003'; do sleep 0.1; done; ps -e -o args | grep -q '^sleep 1001'",
        )
        .await;
    for id in ["a", "b", "c"] {
        delete(guest, id).await;
    }
    // Everything of it is gone, so it can be made again.
    let again = guest.create(container("a", "test ! -e /written && echo x >/written && hostname", &all)).await.unwrap();
    assert_eq!(again.ended().await, (ExitStatus::Code(0), "pod-1\n".into()));
    delete(guest, "a").await;
}

async fn limits(guest: &AgentGuest) {
    let mut wanted = container("l", "exec sleep 1000", &["pid"]);
    wanted["spec"]["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    let _l = guest.create(wanted).await.unwrap();
    let resources = |value: Value| json!({"update_container": {"container": "l", "resources": value}});
    guest
        .done(&resources(
            json!({"memory": {"limit": 128 << 20}, "cpu": {"quota": 50000, "cpus": "0"}, "pids": {"limit": 50},
        "devices": [{"allow": false, "access": "rwm"}]}),
        ))
        .await;
    guest.done(&resources(json!({"cpu": {"period": 200_000}}))).await;
    let Reply::Statistics(got) = guest.ask(&Request::Statistics { container: "l".into() }).await else { panic!() };
    assert_eq!((got.memory.limit, got.pids.limit, got.pids.current), (Some(128 << 20), Some(50), 1));
    assert!(got.memory.usage > 0 && got.cpu.usage_ns > 0 && got.memory.stat.contains_key("anon"), "{got:?}");
    guest.done(&resources(json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 20}}))).await;
    let message = guest.refused(&resources(json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}))).await;
    assert!(message.starts_with("rejecting memory limit 4096 <= usage"), "{message}");
    let message = guest
        .refused(&resources(json!({"pids": {"limit": 30}, "cpu": {"shares": 512}, "unified": {"cpu.nope": "1"}})))
        .await;
    assert!(message.contains("cpu.nope"), "{message}");
    let Reply::Statistics(got) = guest.ask(&Request::Statistics { container: "l".into() }).await else { panic!() };
    assert_eq!((got.memory.limit, got.pids.limit), (Some(32 << 20), Some(20)), "what was refused changed nothing");
    delete(guest, "l").await;
}

async fn disks(guest: &mut AgentGuest, dir: &Path) {
    let data = ext4(dir, "data", None, 64);
    let raw = dir.join("raw");
    fs::write(&raw, vec![0; 1 << 20]).unwrap();
    let mut wanted = container(
        "d",
        "cp /dev/xvda /data/copy && printf written | dd of=/dev/xvda conv=notrunc status=none && stat -c %a /dev/xvda && ! dd if=/dev/vda of=/dev/null count=1 2>/dev/null && mknod /tmp/v b 254 0 && ! dd if=/tmp/v of=/dev/null count=1 2>/dev/null",
        &[],
    );
    wanted["storages"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "d/data", "source": {"disk": {"serial": "data-disk", "fs_type": "ext4"}}}));
    wanted["disks"] = json!([{"serial": "a-raw-one", "path": "/dev/xvda"}]);
    wanted["spec"]["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/data", "type": "bind", "source": format!("{STORAGE}/d/data"), "options": ["rbind"]}),
    );
    // The call comes first, and waits for the disks.
    let call = json!({"create_container": wanted});
    let mut stream = guest.open(&call).await;
    guest.plug_disk(1, "a-raw-one", &raw).await;
    guest.plug_disk(2, "data-disk", &data).await;
    let created: Reply = frame::read(&mut stream, frame::MAX_REPLY).await.unwrap();
    assert!(matches!(created, Reply::Created { .. }), "{created:?}");
    let ended: Reply = frame::read(&mut stream, frame::MAX_REPLY).await.unwrap();
    assert!(matches!(ended, Reply::Exited(ExitStatus::Code(0))), "{ended:?}");
    delete(guest, "d").await;
    // All of it is on the disk by now, and the disk can go.
    assert!(fs::read(&raw).unwrap().starts_with(b"written"));
    let listed =
        std::process::Command::new("/usr/sbin/debugfs").args(["-R", "stat /copy"]).arg(&data).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("Size: 1048576"), "{listed}");
    guest.monitor("device_del", json!({"id": "d2"})).await;
}

async fn files(guest: &AgentGuest) {
    let version = |time: &str, text: &str| {
        let entry = |path: &str, kind: Value| json!({"path": path, "kind": kind, "mode": 0o644, "uid": 0, "gid": 0});
        json!([
            entry(time, json!("directory")),
            entry(&format!("{time}/key"), json!({"text": text})),
            entry("..data", json!({"link": time})),
            entry("key", json!({"link": "..data/key"}))
        ])
    };
    let mut wanted = container("f", "exec sleep 1000", &[]);
    wanted["storages"].as_array_mut().unwrap().push(
        json!({"name": "volumes/config", "of_pod": true, "source": {"files": {"entries": version("..1", "old")}}}),
    );
    wanted["spec"]["mounts"].as_array_mut().unwrap().push(json!({"destination": "/config", "type": "bind", "source": format!("{STORAGE}/volumes/config"), "options": ["rbind", "ro"]}));
    let _f = guest.create(wanted).await.unwrap();
    assert_eq!(guest.exec("f", "cat /config/key; ! touch /config/x 2>/dev/null").await, "old");
    guest.done(&json!({"update_files": {"storage": "volumes/config", "entries": version("..2", "new")}})).await;
    assert_eq!(guest.exec("f", "cat /config/key; ls -A /config | tr '\\n' ' '").await, "new..2 ..data key");
    assert!(
        guest
            .refused(&json!({"update_files": {"storage": "images/debian", "entries": []}}))
            .await
            .contains("no volume of files")
    );
    delete(guest, "f").await;
}

async fn huge_pages(guest: &AgentGuest) {
    let mut wanted = container(
        "h",
        "df --output=size -k /huge | tail -1 | tr -d ' '; grep HugePages_Total /proc/meminfo | tr -s ' '",
        &[],
    );
    wanted["storages"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "h/huge", "source": {"huge_pages": {"page_size": 2 << 20, "size": 8 << 20}}}));
    wanted["spec"]["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/huge", "type": "bind", "source": format!("{STORAGE}/h/huge"), "options": ["rbind"]}),
    );
    let ran = guest.create(wanted.clone()).await.unwrap();
    assert_eq!(ran.ended().await.1, "8192\nHugePages_Total: 4\n");
    delete(guest, "h").await;
    wanted["storages"][3]["source"] = json!({"huge_pages": {"page_size": 2 << 20, "size": 8u64 << 30}});
    let message = guest.create(wanted).await.err().unwrap();
    assert!(message.contains("more huge pages of 2097152 bytes"), "{message}");
    let ran = guest.create(container("h", "grep HugePages_Total /proc/meminfo | tr -s ' '", &[])).await.unwrap();
    assert_eq!(ran.ended().await.1, "HugePages_Total: 0\n", "they were given back");
    delete(guest, "h").await;
}

async fn out_of_memory(guest: &AgentGuest) {
    let mut wanted = container("oom", "exec perl -e '$x = \"x\" x (1 << 26); sleep 1000'", &[]);
    wanted["spec"]["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let ended = guest.create(wanted).await.unwrap().ended().await;
    assert_eq!(ended.0, ExitStatus::Signal(9));
    // Nobody listened when it happened.
    let mut events = guest.open(&Request::Events).await;
    let event: Reply = frame::read(&mut events, frame::MAX_REPLY).await.unwrap();
    assert!(matches!(&event, Reply::Event(Event::OutOfMemory { container }) if container == "oom"), "{event:?}");
    delete(guest, "oom").await;
    // One that goes on after a child of it was killed.
    let mut wanted = container("oom2", "perl -e '$x = \"x\" x (1 << 26)'; exec sleep 1000", &[]);
    wanted["spec"]["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let _running = guest.create(wanted).await.unwrap();
    let event: Reply = frame::read(&mut events, frame::MAX_REPLY).await.unwrap();
    assert!(matches!(&event, Reply::Event(Event::OutOfMemory { container }) if container == "oom2"), "{event:?}");
    delete(guest, "oom2").await;
}

async fn dial(guest: &AgentGuest) {
    let server = "exec perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die; $| = 1; \
        while ($c = $s->accept) { $all = join \"\", <$c>; print $c \"got $all\"; close $c }'";
    let _server = guest.create(container("server", server, &[])).await.unwrap();
    // It is there when its port is in the table.
    guest.exec("server", "while ! grep -q :1F90 /proc/net/tcp; do sleep 0.1; done").await;
    let mut stream = guest.open(&Request::Dial { port: 8080 }).await;
    assert!(matches!(frame::read(&mut stream, frame::MAX_REPLY).await.unwrap(), Reply::Done));
    stream.write_all(b"a question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "got a question");
    assert!(guest.refused(&Request::Dial { port: 8081 }).await.contains("connection refused"));
    delete(guest, "server").await;
}

async fn failures(guest: &AgentGuest) {
    let with = |storage: Value| {
        let mut wanted = container("bad", "true", &[]);
        wanted["storages"].as_array_mut().unwrap().push(storage);
        wanted
    };
    for (storage, expected) in [
        (
            json!({"name": "bad/x", "source": {"disk": {"serial": "debian", "fs_type": "zfs"}}}),
            "no file system of type \"zfs\"",
        ),
        (json!({"name": "bad/rootfs/x", "source": {"memory": {"size": 0}}}), "directory of the other"),
        (json!({"name": "../x", "source": {"memory": {"size": 0}}}), "plain path components"),
        (json!({"name": "bad/x", "source": {"disk": {"serial": "debian", "fs_type": "xfs"}}}), "mounting /dev/vd"),
    ] {
        let message = guest.create(with(storage)).await.err().unwrap();
        assert!(message.contains(expected), "{message}");
    }
    let mut wanted = container("bad", "true", &[]);
    wanted["spec"]["mounts"][2]["source"] = json!(format!("{STORAGE}/images/../bad/upper"));
    assert!(guest.create(wanted).await.is_err());
    let ran = guest.create(container("bad", "true", &[])).await.unwrap();
    assert_eq!(ran.ended().await.0, ExitStatus::Code(0), "what failed left nothing");
    delete(guest, "bad").await;
}

async fn processors(guest: &AgentGuest) {
    let _p = guest.create(container("p", "exec sleep 1000", &[])).await.unwrap();
    assert_eq!(guest.exec("p", "nproc").await, "1");
    guest.done(&Request::Online { vcpus: 2 }).await;
    assert_eq!(guest.exec("p", "nproc").await, "2");
    delete(guest, "p").await;
}

async fn metrics(guest: &AgentGuest) {
    let Reply::Metrics(text) = guest.ask(&Request::Metrics).await else { panic!() };
    for start in [
        "kata_agent_total_rss ",
        "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} ",
        "kata_guest_meminfo{item=\"mem_total\"} ",
        "kata_guest_netdev_stat{interface=\"lo\",item=\"recv_bytes\"} ",
        "kata_guest_diskstat{disk=\"vda\",item=\"reads\"} ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(start)), "{start} in {text}");
    }
}
