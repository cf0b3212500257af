//! `update`: other limits for a container.

use std::{fs, io::Read, process::ExitCode};

use cmdline::runtime::UpdateArgs;
use oci_spec::runtime::LinuxResources;
use sandbox::{client::Client, store::Status};
use serde_json::{Value, json};

use crate::{Error, Result, cli::Context, go};

/// Changes limits.
pub(crate) fn update(context: &Context, id: &str, args: &UpdateArgs) -> Result<ExitCode> {
    let client = Client::new(&context.store, id)?;
    let wanted = match args.resources.as_deref() {
        Some(file) if !file.is_empty() => read(file)?,
        _ => from_options(args)?,
    };
    for (name, value) in [("--l3-cache-schema", &args.l3_cache_schema), ("--mem-bw-schema", &args.mem_bw_schema)] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            return Err(Error::refused(format!("{name}: a guest does not see the host's Intel RDT; leave it out")));
        }
    }
    if ["kernel", "kernelTCP"].iter().any(|name| wanted.pointer(&format!("/memory/{name}")).is_some()) {
        context.log.warning("Kernel memory settings are ignored and will be removed");
    }
    let resources: LinuxResources =
        serde_json::from_value(wanted).map_err(|e| Error::refused(format!("the resources to update: {e}")))?;
    if context.store.state(id)?.status == Status::Stopped {
        return Err(Error::refused("container not running"));
    }
    client.update(resources)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads resources as JSON. What is 0 or empty asks for nothing.
fn read(file: &str) -> Result<Value> {
    let mut text = String::new();
    let opened = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        file => fs::read_to_string(file).map(|read| text = read),
    };
    opened.map_err(|e| Error::io(format!("read the resources from {file}"), e))?;
    // Only the first value, as Go's decoder: what follows is not looked at.
    let mut values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let value = values.next().ok_or_else(|| Error::refused(format!("read the resources from {file}: EOF")))?;
    let mut value = value.map_err(|e| Error::refused(format!("read the resources from {file}: {e}")))?;
    strip(&mut value);
    Ok(value)
}

fn strip(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| {
            strip(value);
            !matches!(value, Value::Null)
                && value.as_i64() != Some(0)
                && value.as_str() != Some("")
                && value.as_object().is_none_or(|fields| !fields.is_empty())
        });
    }
}

fn from_options(args: &UpdateArgs) -> Result<Value> {
    let invalid = |name: &str, why: String| Error::refused(format!("invalid value for {name}: {why}"));
    let number = |name: &str, text: &Option<String>, signed: bool| -> Result<Value> {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { return Ok(Value::Null) };
        let parsed = if signed { text.parse::<i64>().map(Value::from) } else { text.parse::<u64>().map(Value::from) };
        parsed.map_err(|e| invalid(name, format!("{}: {e}", go::quote(text))))
    };
    let bytes = |name: &str, text: &Option<String>| -> Result<Value> {
        match text.as_deref() {
            None | Some("") => Ok(Value::Null),
            Some("-1") => Ok((-1).into()),
            Some(text) => go::bytes(text).map(Value::from).map_err(|why| invalid(name, why)),
        }
    };
    let mut wanted = json!({
        "cpu": {
            "shares": number("cpu-share", &args.cpu_share, false)?,
            "quota": number("cpu-quota", &args.cpu_quota, true)?,
            "period": number("cpu-period", &args.cpu_period, false)?,
            "realtimeRuntime": number("cpu-rt-runtime", &args.cpu_rt_runtime, true)?,
            "realtimePeriod": number("cpu-rt-period", &args.cpu_rt_period, false)?,
            "cpus": args.cpuset_cpus,
            "mems": args.cpuset_mems,
        },
        "memory": {
            "limit": bytes("memory", &args.memory)?,
            "swap": bytes("memory-swap", &args.memory_swap)?,
            "reservation": bytes("memory-reservation", &args.memory_reservation)?,
            "kernel": bytes("kernel-memory", &args.kernel_memory)?,
            "kernelTCP": bytes("kernel-memory-tcp", &args.kernel_memory_tcp)?,
        },
        "blockIO": {"weight": args.blkio_weight},
        "pids": {"limit": args.pids_limit},
    });
    strip(&mut wanted);
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_changes() {
        let args = UpdateArgs {
            memory: Some("64m".into()),
            memory_swap: Some("-1".into()),
            pids_limit: Some(0),
            cpu_share: Some("200".into()),
            cpuset_cpus: Some(String::new()),
            ..UpdateArgs::default()
        };
        let wanted = from_options(&args).unwrap();
        assert_eq!(wanted, json!({"cpu": {"shares": 200}, "memory": {"limit": 64 << 20, "swap": -1}}));
        let _: LinuxResources = serde_json::from_value(wanted).unwrap();
        assert_eq!(from_options(&UpdateArgs::default()).unwrap(), json!({}));
    }

    #[test]
    fn what_is_no_number_is_refused_by_name() {
        let args = UpdateArgs { cpu_period: Some("-5".into()), ..UpdateArgs::default() };
        let text = from_options(&args).unwrap_err().to_string();
        assert!(text.starts_with("invalid value for cpu-period: \"-5\""), "{text}");
        let args = UpdateArgs { memory: Some("much".into()), ..UpdateArgs::default() };
        assert!(from_options(&args).unwrap_err().to_string().starts_with("invalid value for memory: "));
    }

    #[test]
    fn a_file_may_have_zeroes_for_what_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.json");
        fs::write(&file, r#"{"memory": {"limit": 33554432, "swap": 0}, "cpu": {"cpus": ""}, "unified": null} rest"#)
            .unwrap();
        assert_eq!(read(file.to_str().unwrap()).unwrap(), json!({"memory": {"limit": 33554432}}));
        fs::write(&file, "").unwrap();
        assert!(read(file.to_str().unwrap()).is_err());
    }
}
