//! The OCI runtime specification, as far as it concerns a guest.
//!
//! Field names and meanings are those of <https://github.com/opencontainers/runtime-spec> 1.2, in `config.md` and
//! `config-linux.md`; what is not here (other hooks, seccomp profiles, labels of AppArmor and SELinux, the network) is the host's. Names of
//! sets that may grow stay text, to be understood where they are used.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent_api::{CreateContainerOf, ExecOf, RequestOf};
use serde::Deserialize;

/// What the host asks.
pub type Request = RequestOf<Spec, Process, Resources>;
/// A container to be created.
pub type CreateContainer = CreateContainerOf<Spec>;
/// A further process.
pub type Exec = ExecOf<Process>;

/// A list that may be absent or null.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A map that may be absent or null.
fn map<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A container's configuration.
#[derive(Debug, Deserialize)]
pub struct Spec {
    pub root: Root,
    #[serde(default, deserialize_with = "list")]
    pub mounts: Vec<Mount>,
    pub process: Process,
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub domainname: Option<String>,
    #[serde(default)]
    pub linux: Linux,
    #[serde(default)]
    pub hooks: Option<Hooks>,
}

impl Spec {
    /// Hooks that are run in the container before its program.
    pub fn start_hooks(&self) -> &[Hook] {
        self.hooks.as_ref().map_or(&[], |hooks| &hooks.start_container)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    #[serde(default, deserialize_with = "list")]
    pub start_container: Vec<Hook>,
}

#[derive(Debug, Deserialize)]
pub struct Hook {
    pub path: String,
    #[serde(default, deserialize_with = "list")]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub struct Root {
    pub path: PathBuf,
    #[serde(default)]
    pub readonly: bool,
}

#[derive(Debug, Deserialize)]
pub struct Mount {
    pub destination: PathBuf,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub source: Option<PathBuf>,
    #[serde(default, deserialize_with = "list")]
    pub options: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    #[serde(default)]
    pub terminal: bool,
    #[serde(default)]
    pub console_size: Option<ConsoleSize>,
    #[serde(default)]
    pub user: User,
    #[serde(default, deserialize_with = "list")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub env: Vec<String>,
    #[serde(default)]
    pub cwd: PathBuf,
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    #[serde(default, deserialize_with = "list")]
    pub rlimits: Vec<Rlimit>,
    #[serde(default)]
    pub no_new_privileges: bool,
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    #[serde(default)]
    pub io_priority: Option<IoPriority>,
    #[serde(default)]
    pub scheduler: Option<Scheduler>,
}

#[derive(Debug, Deserialize)]
pub struct ConsoleSize {
    #[serde(default)]
    pub height: u64,
    #[serde(default)]
    pub width: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    #[serde(default)]
    pub umask: Option<u32>,
    #[serde(default, deserialize_with = "list")]
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Capabilities {
    #[serde(default, deserialize_with = "list")]
    pub bounding: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub effective: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub inheritable: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub permitted: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub ambient: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub hard: u64,
    #[serde(default)]
    pub soft: u64,
}

#[derive(Debug, Deserialize)]
pub struct IoPriority {
    #[serde(default)]
    pub class: String,
    #[serde(default)]
    pub priority: u32,
}

#[derive(Debug, Deserialize)]
pub struct Scheduler {
    pub policy: String,
    #[serde(default)]
    pub nice: i32,
    #[serde(default)]
    pub priority: u32,
    #[serde(default, deserialize_with = "list")]
    pub flags: Vec<String>,
    #[serde(default)]
    pub runtime: u64,
    #[serde(default)]
    pub deadline: u64,
    #[serde(default)]
    pub period: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    #[serde(default, deserialize_with = "list")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "list")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "map")]
    pub sysctl: BTreeMap<String, String>,
    #[serde(default)]
    pub resources: Option<Resources>,
    #[serde(default)]
    pub cgroups_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "list")]
    pub namespaces: Vec<Namespace>,
    #[serde(default, deserialize_with = "list")]
    pub devices: Vec<Device>,
    /// Not in the configuration: the host says it beside.
    #[serde(skip)]
    pub all_devices: bool,
    #[serde(default)]
    pub rootfs_propagation: Option<String>,
    #[serde(default, deserialize_with = "list")]
    pub masked_paths: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub readonly_paths: Vec<String>,
    #[serde(default)]
    pub personality: Option<Personality>,
    #[serde(default, deserialize_with = "map")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

#[derive(Debug, Deserialize)]
pub struct IdMapping {
    #[serde(default, rename = "containerID")]
    pub container_id: u32,
    #[serde(default, rename = "hostID")]
    pub host_id: u32,
    #[serde(default)]
    pub size: u32,
}

#[derive(Debug, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub path: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub major: i64,
    #[serde(default)]
    pub minor: i64,
    #[serde(default)]
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(default)]
    pub gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub struct Personality {
    pub domain: String,
}

#[derive(Debug, Deserialize)]
pub struct TimeOffset {
    #[serde(default)]
    pub secs: i64,
    #[serde(default)]
    pub nanosecs: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    #[serde(default, deserialize_with = "list")]
    pub devices: Vec<DeviceRule>,
    #[serde(default)]
    pub memory: Memory,
    #[serde(default)]
    pub cpu: Cpu,
    #[serde(default)]
    pub pids: Pids,
    #[serde(default, rename = "blockIO")]
    pub block_io: BlockIo,
    #[serde(default, deserialize_with = "list")]
    pub hugepage_limits: Vec<HugepageLimit>,
    #[serde(default, deserialize_with = "map")]
    pub rdma: BTreeMap<String, Rdma>,
    #[serde(default, deserialize_with = "map")]
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub struct DeviceRule {
    #[serde(default)]
    pub allow: bool,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub major: Option<i64>,
    #[serde(default)]
    pub minor: Option<i64>,
    #[serde(default)]
    pub access: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    #[serde(default)]
    pub limit: Option<i64>,
    #[serde(default)]
    pub reservation: Option<i64>,
    #[serde(default)]
    pub swap: Option<i64>,
    #[serde(default)]
    pub check_before_update: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    #[serde(default)]
    pub shares: Option<u64>,
    #[serde(default)]
    pub quota: Option<i64>,
    #[serde(default)]
    pub burst: Option<u64>,
    #[serde(default)]
    pub period: Option<u64>,
    #[serde(default)]
    pub realtime_runtime: Option<i64>,
    #[serde(default)]
    pub realtime_period: Option<u64>,
    #[serde(default)]
    pub cpus: Option<String>,
    #[serde(default)]
    pub mems: Option<String>,
    #[serde(default)]
    pub idle: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Pids {
    #[serde(default)]
    pub limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    #[serde(default)]
    pub weight: Option<u16>,
    #[serde(default, deserialize_with = "list")]
    pub weight_device: Vec<WeightDevice>,
    #[serde(default, deserialize_with = "list")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(default, deserialize_with = "list")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(default, rename = "throttleReadIOPSDevice", deserialize_with = "list")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(default, rename = "throttleWriteIOPSDevice", deserialize_with = "list")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

#[derive(Debug, Deserialize)]
pub struct WeightDevice {
    pub major: i64,
    pub minor: i64,
    #[serde(default)]
    pub weight: Option<u16>,
}

#[derive(Debug, Deserialize)]
pub struct ThrottleDevice {
    pub major: i64,
    pub minor: i64,
    #[serde(default)]
    pub rate: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    pub page_size: String,
    #[serde(default)]
    pub limit: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rdma {
    #[serde(default)]
    pub hca_handles: Option<u32>,
    #[serde(default)]
    pub hca_objects: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host writes is what the agent reads: the two have types of their own.
    #[test]
    fn the_hosts_configuration_is_understood() {
        let host = oci_spec::runtime::Spec::default();
        let text = serde_json::to_string(&host).unwrap();
        let read: Spec = serde_json::from_str(&text).unwrap();
        let process = host.process().as_ref().unwrap();
        assert_eq!(Some(&read.process.args), process.args().as_ref());
        assert_eq!(read.mounts.len(), host.mounts().as_ref().unwrap().len());
        let linux = host.linux().as_ref().unwrap();
        assert_eq!(Some(&read.linux.masked_paths), linux.masked_paths().as_ref());
        assert_eq!(read.linux.namespaces.len(), linux.namespaces().as_ref().unwrap().len());
        assert_eq!(read.process.rlimits[0].kind, "RLIMIT_NOFILE");
        let bounding = process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len();
        assert_eq!(read.process.capabilities.unwrap().bounding.len(), bounding);
    }

    #[test]
    fn every_resource_the_host_writes_is_understood() {
        let text = r#"{
            "devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}],
            "memory":{"limit":1,"reservation":2,"swap":3,"checkBeforeUpdate":true},
            "cpu":{"shares":1,"quota":2,"burst":3,"period":4,"realtimeRuntime":5,"realtimePeriod":6,"cpus":"7","mems":"8","idle":9},
            "pids":{"limit":1},
            "blockIO":{"weight":10,"weightDevice":[{"major":8,"minor":0,"weight":11}],
                "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":12}],"throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":13}],
                "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":14}],"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":15}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":1}],
            "rdma":{"d":{"hcaHandles":1,"hcaObjects":2}},
            "unified":{"a.b":"c"}}"#;
        let host: oci_spec::runtime::LinuxResources = serde_json::from_str(text).unwrap();
        let read: Resources = serde_json::from_str(&serde_json::to_string(&host).unwrap()).unwrap();
        let io = &read.block_io;
        assert_eq!((io.weight, io.weight_device[0].weight), (Some(10), Some(11)));
        assert_eq!((io.throttle_read_bps_device[0].rate, io.throttle_write_bps_device[0].rate), (12, 13));
        assert_eq!((io.throttle_read_iops_device[0].rate, io.throttle_write_iops_device[0].rate), (14, 15));
        assert_eq!((read.cpu.realtime_runtime, read.cpu.realtime_period, read.cpu.idle), (Some(5), Some(6), Some(9)));
        assert_eq!((read.memory.limit, read.memory.reservation, read.memory.swap), (Some(1), Some(2), Some(3)));
        assert_eq!(read.memory.check_before_update, Some(true));
        assert_eq!((read.rdma["d"].hca_handles, read.rdma["d"].hca_objects), (Some(1), Some(2)));
        assert_eq!((read.pids.limit, read.hugepage_limits[0].limit, read.unified["a.b"].as_str()), (Some(1), 1, "c"));
    }
}
