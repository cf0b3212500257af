//! A guest whose agent is spoken to directly, without the sandbox: QEMU, its monitor, and the agent's channel.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent_api::{ExitStatus, Hello, PROTOCOL_VERSION, Reply, Request, frame};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{DEADLINE, stage};

/// A running guest. It ends with this value.
pub struct AgentGuest {
    qemu: Child,
    dir: tempfile::TempDir,
    opener: proxy::Opener,
    monitor: BufReader<UnixStream>,
    next_token: Cell<u64>,
}

/// A process whose output is collected.
pub struct Running {
    stream: proxy::Stream,
    output: tokio::task::JoinHandle<String>,
}

impl AgentGuest {
    /// Boots one with three processors, of which the first one is online.
    pub async fn boot() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = stage().join("share/kata-containers");
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "q35,sata=off,usb=off", "-accel", "tcg", "-cpu", "max", "-m", "768M", "-smp", "3"])
            .arg("-kernel")
            .arg(share.join("vmlinux.container"))
            .arg("-initrd")
            .arg(share.join("kata-containers-initrd.img"))
            .args(["-append", "console=ttyS0 panic=-1 quiet cryptomgr.notests no_timer_check maxcpus=1 agent.log=info"])
            .arg("-serial")
            .arg(format!("file:{}", path("console")))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", path("qmp")))
            .arg("-chardev")
            .arg(format!("socket,id=channel,path={},server=on,wait=off", path("channel")))
            .args(["-device", "virtio-serial-pci,disable-legacy=on,id=serial,max_ports=2"])
            .args([
                "-device",
                &format!("virtserialport,bus=serial.0,nr=1,chardev=channel,name={}", agent_api::CHANNEL_PORT),
            ]);
        for port in 0..6 {
            qemu.args(["-device", &format!("pcie-root-port,id=port{port},chassis={}", port + 1)]);
        }
        let qemu = qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        let monitor = BufReader::new(dial(&path("qmp")).await);
        let (opener, _, driver) =
            proxy::connect(dial(&path("channel")).await, proxy::Side::Host, proxy::Limits::host());
        tokio::task::spawn_local(driver);
        let mut guest = Self { qemu, dir, opener, monitor, next_token: Cell::new(1) };
        guest.monitor("qmp_capabilities", json!({})).await;
        let hello =
            Hello { protocol: PROTOCOL_VERSION, wall_clock_ns: 1_700_000_000_000_000_000, entropy: vec![7; 64] };
        match guest.ask(&Request::Hello(hello)).await {
            Reply::Hello(_) => guest,
            other => panic!("{other:?}; console: {}", guest.console()),
        }
    }

    /// What the guest has written to its console.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// A command of QEMU's monitor.
    pub async fn monitor(&mut self, command: &str, arguments: Value) -> Value {
        let text = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.monitor.get_mut().write_all(text.as_bytes()).await.unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(timeout(DEADLINE, self.monitor.read_line(&mut line)).await.unwrap().unwrap(), 0, "{command}");
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
        }
    }

    /// Plugs a disk into a free port.
    pub async fn plug_disk(&mut self, port: u32, serial: &str, file: &Path) {
        let node = format!("disk{port}");
        let block = json!({"driver": "file", "node-name": node, "filename": file});
        self.monitor("blockdev-add", block).await;
        let device = json!({"driver": "virtio-blk-pci", "id": format!("d{port}"), "drive": node, "serial": serial,
            "bus": format!("port{port}")});
        self.monitor("device_add", device).await;
    }

    /// Opens a stream with a request.
    pub async fn open(&self, request: &impl serde::Serialize) -> proxy::Stream {
        let mut stream = self.opener.open().unwrap();
        frame::write(&mut stream, request).await.unwrap();
        stream
    }

    /// The first answer to a request.
    pub async fn ask(&self, request: &impl serde::Serialize) -> Reply {
        let mut stream = self.open(request).await;
        match timeout(DEADLINE, frame::read(&mut stream, frame::MAX_REPLY)).await {
            Ok(Ok(reply)) => reply,
            other => panic!("no answer ({other:?}); console: {}", self.console()),
        }
    }

    /// A call that is answered by `Done`.
    pub async fn done(&self, request: &impl serde::Serialize) {
        let reply = self.ask(request).await;
        assert!(matches!(reply, Reply::Done), "{reply:?}; console: {}", self.console());
    }

    /// A call that is refused. Gives the message.
    pub async fn refused(&self, request: &impl serde::Serialize) -> String {
        match self.ask(request).await {
            Reply::Fault(fault) => fault.message,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// A stream for a process's output, and its token.
    async fn output(&self) -> (u64, tokio::task::JoinHandle<String>) {
        let token = self.next_token.replace(self.next_token.get() + 1);
        let mut stream = self.open(&Request::Attach { token }).await;
        let read = tokio::task::spawn_local(async move {
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        (token, read)
    }

    /// Makes a call that starts a process, with both outputs in one.
    async fn start(&self, call: &str, mut request: Value) -> Result<Running, String> {
        let (stdout, output) = self.output().await;
        let (stderr, _errors) = self.output().await;
        request["stdio"] = json!({"stdout": stdout, "stderr": stderr});
        let mut stream = self.open(&json!({call: request})).await;
        match timeout(DEADLINE, frame::read(&mut stream, frame::MAX_REPLY)).await.unwrap() {
            Ok(Reply::Created { .. }) => Ok(Running { stream, output }),
            Ok(Reply::Fault(fault)) => Err(fault.message),
            other => panic!("{other:?}; console: {}", self.console()),
        }
    }

    /// Creates and starts a container.
    pub async fn create(&self, request: Value) -> Result<Running, String> {
        self.start("create_container", request).await
    }

    /// Runs a shell script in a container and gives its output.
    pub async fn exec(&self, container: &str, script: &str) -> String {
        let id = self.next_token.get().to_string();
        let request = json!({"container": container, "id": id, "process": process(script)});
        let (status, output) = self.start("exec", request).await.unwrap().ended().await;
        assert_eq!(status, ExitStatus::Code(0), "{script}: {output}; console: {}", self.console());
        output.trim_end().to_owned()
    }
}

impl Running {
    /// Waits for the end.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        match timeout(DEADLINE, frame::read(&mut self.stream, frame::MAX_REPLY)).await.unwrap().unwrap() {
            Reply::Exited(status) => (status, self.output.await.unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for AgentGuest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A process that runs a shell script as root.
pub fn process(script: &str) -> Value {
    json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "capabilities": {"bounding": ["CAP_MKNOD", "CAP_DAC_OVERRIDE"], "effective": ["CAP_MKNOD", "CAP_DAC_OVERRIDE"],
            "permitted": ["CAP_MKNOD", "CAP_DAC_OVERRIDE"]}})
}

async fn dial(path: &str) -> UnixStream {
    // QEMU makes its sockets before it does anything else, but after it was started.
    let appears = async {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(DEADLINE, appears).await.unwrap()
}

/// An ext4 image with what is in a directory, of this many MiB.
pub fn ext4(dir: &Path, name: &str, content: Option<&Path>, mib: u64) -> PathBuf {
    let path = dir.join(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(mib << 20).unwrap();
    let mut mke2fs = Command::new("/usr/sbin/mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
    if let Some(content) = content {
        mke2fs.arg("-d").arg(content);
    }
    assert!(mke2fs.arg(&path).status().unwrap().success());
    path
}

/// Runs a test on one thread, as the proxy's driver wants it.
pub fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}
