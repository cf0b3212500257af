//! Who a container's processes are, and what they may do.

use engines::{Containerd, Handler, cases, cri::Node};
use serde_json::{Value, json};

use super::PLAIN;

cases!(security_contexts);

/// What a process knows of its rights.
const LOOK: &str = "id; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; pwd";

fn security_contexts(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let profile = engine.host.directory().join("profile.json");
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    });
    std::fs::write(&profile, rules.to_string()).unwrap();
    let localhost = json!({"profile_type": 2, "localhost_ref": profile});
    let masked = json!(["/proc/kcore", "/proc/keys", "/sys/firmware"]);
    let contexts = [
        ("plain", PLAIN, "mkdir /made && echo made; chown 1:1 /made; mknod /node c 1 3 && echo node"),
        (
            "user",
            json!({"run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}, "supplemental_groups": [3000, 4000]}),
            "touch /no; touch /tmp/yes && stat -c '%u %g' /tmp/yes; kill -0 1 && echo own",
        ),
        ("name", json!({"run_as_username": "user"}), "echo $HOME"),
        (
            "root",
            json!({"readonly_rootfs": true}),
            "touch /no; touch /dev/shm/yes && echo yes; touch /etc/hosts; echo $?",
        ),
        (
            "capabilities",
            json!({"capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["CHOWN", "MKNOD"]}}),
            "touch /new; chown 1:1 /new; mknod /node c 1 3; ip link set lo down && ip link set lo up && echo may",
        ),
        (
            "none",
            json!({"capabilities": {"drop_capabilities": ["ALL"]}, "no_new_privs": true}),
            "chown 1:1 /tmp; echo $?",
        ),
        ("default", json!({"seccomp": {"profile_type": 0}}), "unshare -U true; echo $?; mkdir /made && echo made"),
        ("own", json!({"seccomp": localhost}), "mkdir /made; echo $?; touch /file && echo file"),
        (
            "paths",
            json!({"masked_paths": masked, "readonly_paths": ["/proc/sys", "/proc/bus"]}),
            "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 >/proc/sys/kernel/panic; echo $?",
        ),
        (
            "privileged",
            json!({"privileged": true}),
            "mkdir /at && mount -t tmpfs tmpfs /at && echo mounted; echo 5 >/proc/sys/net/ipv4/ip_default_ttl && echo written",
        ),
    ];
    let pod = node.pod("secure", &json!({"linux": {"security_context": {"privileged": true}}}));
    let mut seen = Vec::new();
    for (name, context, script) in contexts {
        let change = json!({"linux": {"security_context": context}});
        let container = pod.idle(name, &change);
        let looked = node.exec(&container, &["sh", "-c", &format!("{LOOK}; {script}")]);
        // An executed process has the container's rights, as the first one has.
        let first = node.sh(&container, "grep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs|Seccomp:)' /proc/1/status");
        seen.push(json!([name, looked.stdout, looked.stderr, first]));
        node.stop(&container, 0);
        node.remove(&container);
    }
    pod.remove();
    let of = |name: &str| seen.iter().find(|entry| entry[0] == name).unwrap()[1].as_str().unwrap();
    assert!(
        of("user").contains("uid=1000(user) gid=1000(user) groups=") && of("user").contains("4000"),
        "{}",
        of("user")
    );
    assert!(of("own").contains("Seccomp:\t2") && of("own").contains("\n1\nfile\n"), "{}", of("own"));
    assert!(
        of("none").contains("CapEff:\t0000000000000000") && of("none").contains("NoNewPrivs:\t1"),
        "{}",
        of("none")
    );
    assert!(of("privileged").contains("mounted\n"), "{}", of("privileged"));
    json!(seen)
}
