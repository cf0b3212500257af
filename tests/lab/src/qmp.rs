//! As much of QEMU's monitor protocol as the lab needs.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use crate::Result;

/// Longest an answer may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection with a QEMU that runs.
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Greets a QEMU that has just connected.
    pub async fn greet(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self(BufReader::new(stream));
        qmp.message().await?;
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    async fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = timeout(DEADLINE, self.0.read_line(&mut line)).await;
        match read {
            Err(_) => Err(format!("QEMU gives no answer within {} s", DEADLINE.as_secs())),
            Ok(Err(e)) => Err(format!("read QEMU's answer: {e}")),
            Ok(Ok(0)) => Err("QEMU has ended; what it said is above".into()),
            Ok(Ok(_)) => serde_json::from_str(&line).map_err(|e| format!("QEMU's answer {line:?}: {e}")),
        }
    }

    /// Has a command executed.
    pub async fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.0.write_all(line.as_bytes()).await.map_err(|e| format!("ask QEMU to {command}: {e}"))?;
        loop {
            // What is neither is an event.
            let mut answer = self.message().await?;
            if let Some(problem) = answer.get("error") {
                return Err(format!("QEMU's {command}: {}", problem["desc"].as_str().unwrap_or_default()));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Asks until the answer's `status` is none of `pending`, and gives it.
    async fn status_after(&mut self, query: &str, pending: &[&str], patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            let answer = self.call(query, json!({})).await?;
            let status = answer["status"].as_str().unwrap_or("none").to_owned();
            if !pending.contains(&status.as_str()) {
                return Ok(status);
            }
            if Instant::now() > end {
                return Err(format!("QEMU's {query} still says {status} after {} s", patience.as_secs()));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the machine, writes its state into a file and ends QEMU.
    pub async fn save(mut self, file: &Path) -> Result<()> {
        self.call("stop", json!({})).await?;
        self.call("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40})).await?;
        self.call("migrate", json!({"uri": format!("exec:cat >{}", quoted(file)?)})).await?;
        let patience = Duration::from_secs(300);
        let pending = ["none", "setup", "active", "device", "pre-switchover", "wait-unplug"];
        match self.status_after("query-migrate", &pending, patience).await?.as_str() {
            "completed" => {}
            other => return Err(format!("the machine's state is not written to {}: {other}", file.display())),
        }
        self.call("quit", json!({})).await?;
        Ok(())
    }

    /// Lets a machine run once its state has been read.
    pub async fn resume(&mut self) -> Result<()> {
        let status = self.status_after("query-status", &["inmigrate"], Duration::from_secs(120)).await?;
        if status != "paused" && status != "postmigrate" {
            return Err(format!("the machine's state was read, and it is {status} in place of paused"));
        }
        self.call("cont", json!({})).await.map(drop)
    }

    /// Plugs a disk in that the guest may write to.
    pub async fn plug(&mut self, image: &Path) -> Result<()> {
        let file = json!({"driver": "file", "filename": image});
        self.call("blockdev-add", json!({"node-name": "payload", "driver": "raw", "file": file})).await?;
        let device = json!({"driver": "virtio-blk-pci", "drive": "payload", "id": "payload-disk", "serial": "payload", "bus": "free"});
        self.call("device_add", device).await.map(drop)
    }
}

/// A path as a word of a shell.
pub fn quoted(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if !text.contains('\'') => Ok(format!("'{text}'")),
        _ => Err(format!("{} has a quotation mark in its path; set KATA_CACHE to a directory without", path.display())),
    }
}
