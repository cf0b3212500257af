//! The OCI specification's resources, which speak of version 1 cgroups, as the files of version 2.
//!
//! The conversions are those of crun (`crun(1)`, "CGROUP v2"). What has no counterpart in version 2 and asks for nothing
//! (zero) is ignored; what asks for something is refused.

use agent_api::Fault;

use crate::fault::invalid;
use crate::spec::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// A value to be written to a file of the cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The file's name.
    pub file: String,
    /// What to write.
    pub value: String,
    /// What to do when the file does not exist.
    pub missing: Missing,
}

/// What to do when a controller's file does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It is an error: the kernel cannot give what was asked for.
    Refuse,
    /// What it would limit does not exist either.
    Ignore,
    /// Write this to that other file.
    Instead(String, String),
}

fn setting(file: &str, value: impl ToString) -> Setting {
    Setting { file: file.to_owned(), value: value.to_string(), missing: Missing::Refuse }
}

/// Everything that has to be written, in order.
///
/// # Errors
/// For values that contradict each other or that version 2 cannot express.
pub fn settings(resources: &Resources) -> Result<Vec<Setting>, Fault> {
    let mut all = Vec::new();
    cpu(&resources.cpu, &mut all)?;
    memory(&resources.memory, &mut all)?;
    if let Some(limit) = resources.pids.limit.filter(|&limit| limit != 0) {
        all.push(setting("pids.max", or_max(limit)));
    }
    block_io(&resources.block_io, &mut all);
    for limit in &resources.hugepage_limits {
        all.push(setting(&format!("hugetlb.{}.max", limit.page_size), or_max(limit.limit)));
    }
    for (device, limit) in &resources.rdma {
        let mut value = device.clone();
        for (name, number) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(number) = number {
                value.push_str(&format!(" {name}={number}"));
            }
        }
        all.push(setting("rdma.max", value));
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            return Err(invalid(format!("linux.resources.unified has {file:?}, expected the name of a cgroup file")));
        }
        // One line of a file such as io.max is one write.
        all.extend(value.lines().map(|line| setting(file, line)));
    }
    Ok(all)
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn cpu(cpu: &Cpu, all: &mut Vec<Setting>) -> Result<(), Fault> {
    if cpu.realtime_runtime.is_some_and(|value| value != 0) || cpu.realtime_period.is_some_and(|value| value != 0) {
        return Err(invalid(
            "linux.resources.cpu.realtimeRuntime and realtimePeriod do not exist in version 2 cgroups",
        ));
    }
    if let Some(shares @ 1..) = cpu.shares {
        all.push(setting("cpu.weight", weight_of_shares(shares)));
    }
    if let Some(idle) = cpu.idle {
        all.push(setting("cpu.idle", idle));
    }
    let period = cpu.period.filter(|&period| period != 0);
    let quota = cpu.quota.filter(|&quota| quota != 0);
    if period.is_some() || quota.is_some() {
        let quota = quota.map_or("max".to_owned(), or_max);
        all.push(setting("cpu.max", format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD))));
    }
    if let Some(burst) = cpu.burst {
        all.push(setting("cpu.max.burst", burst));
    }
    for (file, list) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            all.push(setting(file, list));
        }
    }
    Ok(())
}

/// The kernel's own default of `cpu.max`, microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// Shares are 2 to 262144, weights 1 to 10000.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn memory(memory: &Memory, all: &mut Vec<Setting>) -> Result<(), Fault> {
    let limit = memory.limit.filter(|&limit| limit != 0);
    if let Some(limit) = limit {
        all.push(setting("memory.max", or_max(limit)));
    }
    if let Some(swap) = swap_alone(memory.swap.unwrap_or(0), limit)? {
        // Without swap in the kernel there is nothing to limit.
        all.push(Setting { missing: Missing::Ignore, ..setting("memory.swap.max", or_max(swap)) });
    }
    if let Some(reservation) = memory.reservation.filter(|&reservation| reservation != 0) {
        all.push(setting("memory.low", or_max(reservation)));
    }
    Ok(())
}

/// Version 1 limits memory and swap in sum, version 2 swap alone.
fn swap_alone(sum: i64, limit: Option<i64>) -> Result<Option<i64>, Fault> {
    match (sum, limit) {
        (0, Some(-1)) => Ok(Some(-1)),
        (0, _) => Ok(None),
        (..0, _) => Ok(Some(-1)),
        (_, None | Some(..0)) => {
            Err(invalid("linux.resources.memory.swap is set, expected a linux.resources.memory.limit, too"))
        }
        (sum, Some(limit)) if sum < limit => {
            Err(invalid(format!("linux.resources.memory.swap is {sum}, expected at least the memory limit of {limit}")))
        }
        (sum, Some(limit)) => Ok(Some(sum - limit)),
    }
}

fn block_io(io: &BlockIo, all: &mut Vec<Setting>) {
    // BFQ, a scheduler, has the weights that version 1 had; elsewhere they are on another scale.
    let weight_setting = |key: String, weight: u16| Setting {
        missing: Missing::Instead("io.weight".to_owned(), format!("{key}{}", weight_of_blkio(weight))),
        ..setting("io.bfq.weight", format!("{key}{weight}"))
    };
    if let Some(weight @ 1..) = io.weight {
        all.push(weight_setting(String::new(), weight));
    }
    for device in &io.weight_device {
        if let Some(weight @ 1..) = device.weight {
            all.push(weight_setting(format!("{}:{} ", device.major, device.minor), weight));
        }
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            all.push(setting("io.max", format!("{}:{} {key}={rate}", device.major, device.minor)));
        }
    }
}

/// Version 1 weights are 10 to 1000, version 2's 1 to 10000.
fn weight_of_blkio(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Vec<(String, String)> {
        let resources: Resources = serde_json::from_str(json).unwrap();
        settings(&resources).unwrap().into_iter().map(|s| (s.file, s.value)).collect()
    }

    fn refused(json: &str) -> String {
        settings(&serde_json::from_str(json).unwrap()).unwrap_err().message
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn processor_time_is_converted() {
        assert_eq!((weight_of_shares(2), weight_of_shares(1024), weight_of_shares(262_144)), (1, 39, 10000));
        assert_eq!(
            written(r#"{"cpu":{"shares":1024,"quota":50000,"period":200000,"cpus":"0-1","mems":""}}"#),
            pairs(&[("cpu.weight", "39"), ("cpu.max", "50000 200000"), ("cpuset.cpus", "0-1")])
        );
        assert_eq!(written(r#"{"cpu":{"quota":-1}}"#), pairs(&[("cpu.max", "max 100000")]));
        assert_eq!(written(r#"{"cpu":{"shares":0,"quota":0,"realtimeRuntime":0}}"#), []);
        assert!(refused(r#"{"cpu":{"realtimeRuntime":5}}"#).contains("realtimeRuntime"));
    }

    #[test]
    fn memory_and_swap_are_taken_apart() {
        assert_eq!(
            written(r#"{"memory":{"limit":1000,"swap":1500,"reservation":500}}"#),
            pairs(&[("memory.max", "1000"), ("memory.swap.max", "500"), ("memory.low", "500")])
        );
        assert_eq!(
            written(r#"{"memory":{"limit":1000,"swap":1000}}"#),
            pairs(&[("memory.max", "1000"), ("memory.swap.max", "0")])
        );
        assert_eq!(written(r#"{"memory":{"limit":-1}}"#), pairs(&[("memory.max", "max"), ("memory.swap.max", "max")]));
        assert!(refused(r#"{"memory":{"limit":1000,"swap":999}}"#).contains("expected at least"));
        assert!(refused(r#"{"memory":{"swap":999}}"#).contains("memory.limit"));
    }

    #[test]
    fn the_rest_is_converted() {
        assert_eq!(
            written(
                r#"{"pids":{"limit":-1},"blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1024}]},
                   "hugepageLimits":[{"pageSize":"2MB","limit":4096}],"rdma":{"mlx":{"hcaHandles":3}},"unified":{"memory.high":"7"}}"#
            ),
            pairs(&[
                ("pids.max", "max"),
                ("io.bfq.weight", "500"),
                ("io.max", "8:0 rbps=1024"),
                ("hugetlb.2MB.max", "4096"),
                ("rdma.max", "mlx hca_handle=3"),
                ("memory.high", "7"),
            ])
        );
        assert_eq!((weight_of_blkio(10), weight_of_blkio(500), weight_of_blkio(1000)), (1, 4950, 10000));
        assert!(refused(r#"{"unified":{"../cgroup.kill":"1"}}"#).contains("name of a cgroup file"));
    }
}
