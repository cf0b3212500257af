//! `env`: what is installed, and which values are in force, under the names that Kata's users know.

use std::{fs, process::ExitCode};

use config::{Config, GuestImage};
use hypervisor::Arch;
use serde::Serialize;

use super::{check::host::meminfo, json};
use crate::{
    Error, Result,
    cli::{Context, output},
};

/// Of this form, in Kata's words.
const FORMAT: &str = "1.0.27";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Environment {
    kernel: Kernel,
    meta: Meta,
    image: PathOnly,
    initrd: PathOnly,
    hypervisor: Hypervisor,
    runtime: Runtime,
    host: Host,
    agent: Agent,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kernel {
    path: String,
    parameters: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Meta {
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PathOnly {
    path: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Hypervisor {
    machine_type: String,
    accelerator: String,
    version: String,
    path: String,
    #[serde(rename = "SharedFS")]
    shared_fs: &'static str,
    #[serde(rename = "VirtioFSCache")]
    virtio_fs_cache: String,
    #[serde(rename = "DefaultVCPUs")]
    default_vcpus: u32,
    #[serde(rename = "DefaultMaxVCPUs")]
    default_max_vcpus: u32,
    #[serde(rename = "DefaultMemoryMiB")]
    default_memory: u32,
    #[serde(rename = "DefaultMaxMemoryMiB")]
    default_max_memory: u32,
    #[serde(rename = "PCIeRootPort")]
    pcie_root_port: u32,
    debug: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Runtime {
    path: String,
    debug: bool,
    trace: bool,
    disable_guest_seccomp: bool,
    internetworking_model: String,
    state: String,
    config: Files,
    version: RuntimeVersion,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Files {
    path: String,
    drop_ins: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RuntimeVersion {
    #[serde(rename = "OCI")]
    oci: &'static str,
    version: Version,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    semver: &'static str,
    commit: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Host {
    kernel: String,
    architecture: &'static str,
    #[serde(rename = "VMContainerCapable")]
    capable: bool,
    #[serde(rename = "SupportVSocks")]
    vsocks: bool,
    distro: Distro,
    #[serde(rename = "CPU")]
    cpu: Cpu,
    memory: Memory,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Distro {
    name: String,
    version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Cpu {
    vendor: String,
    model: String,
    #[serde(rename = "CPUs")]
    cpus: usize,
}

/// KiB.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Memory {
    total: u64,
    free: u64,
    available: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Agent {
    debug: bool,
    debug_console: bool,
    dial_timeout: u64,
}

/// The first value of a name in a file of `NAME : VALUE` or `NAME=VALUE` lines.
fn value_in(text: &str, name: &str, separator: char) -> String {
    let found = text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    });
    found.unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `env`. What is not there is empty, and a warning says why.
pub(crate) fn env(context: &Context, as_json: bool) -> Result<ExitCode> {
    let config = Config::load(context.config_file.as_deref())?;
    let environment = gather(context, &config);
    let text = match as_json {
        true => json(&environment)?,
        false => toml::to_string(&environment)
            .map_err(|error| Error::io("write the answer as TOML", std::io::Error::other(error)))?,
    };
    output(context, &text)
}

fn gather(context: &Context, config: &Config) -> Environment {
    let warn = |error: &dyn std::error::Error| context.log.warning(&sandbox::chain(error));
    let text = |path: &std::path::Path| path.display().to_string();
    let guest = config.qemu.locate_guest().inspect_err(|error| warn(error)).ok();
    let arch = guest.as_ref().and_then(|guest| Arch::of_kernel(&guest.kernel).inspect_err(|error| warn(error)).ok());
    let kernel = Kernel {
        path: guest.as_ref().map(|guest| text(&guest.kernel)).unwrap_or_default(),
        parameters: config.qemu.kernel_params.clone(),
    };
    let (image, initrd) = match guest.map(|guest| guest.image) {
        Some(GuestImage::Initrd(path)) => (String::new(), text(&path)),
        Some(GuestImage::Disk { path, .. }) => (text(&path), String::new()),
        None => Default::default(),
    };
    let arch = arch.or(Arch::HOST);
    let located = arch.map(|arch| sandbox::plan::locate_vmm(config, arch));
    let program = located.and_then(|located| located.inspect_err(|error| warn(error)).ok());
    let version = program.as_deref().map(|program| hypervisor::qemu::version(program).inspect_err(|error| warn(error)));
    let in_force = |name: &str| {
        let key = config::KEYS.iter().find(|key| key.full_name() == name);
        let value = key.and_then(|key| (key.value)(config)).unwrap_or_default();
        value.trim_matches('"').to_owned()
    };
    let (drop_ins, files): (Vec<_>, Vec<_>) =
        config.sources.iter().partition(|path| path.parent().is_some_and(|directory| directory.ends_with("config.d")));
    let of_host = super::check::run(context, &["cpu".into(), "kernel".into(), "seccomp".into()]);
    let (os, cpu) = (read("/etc/os-release"), read("/proc/cpuinfo"));
    let memory = |name| meminfo(name).unwrap_or_default();
    Environment {
        kernel,
        meta: Meta { version: FORMAT },
        image: PathOnly { path: image },
        initrd: PathOnly { path: initrd },
        hypervisor: Hypervisor {
            machine_type: config.qemu.machine_type.clone().unwrap_or_else(|| match arch {
                Some(Arch::Aarch64) => "virt".into(),
                _ => "q35".into(),
            }),
            accelerator: in_force("hypervisor.qemu.accelerator"),
            version: version.and_then(|version| version.ok()).map(|(version, _)| version).unwrap_or_default(),
            path: program.as_deref().map(text).unwrap_or_default(),
            shared_fs: "virtio-fs",
            virtio_fs_cache: in_force("hypervisor.qemu.virtio_fs_cache"),
            default_vcpus: config.qemu.default_vcpus,
            default_max_vcpus: config.qemu.default_maxvcpus,
            default_memory: config.qemu.default_memory,
            default_max_memory: config.qemu.default_maxmemory,
            pcie_root_port: config.qemu.pcie_root_port,
            debug: config.qemu.enable_debug,
        },
        runtime: Runtime {
            path: std::env::current_exe().map(|path| text(&path)).unwrap_or_default(),
            debug: config.runtime.enable_debug,
            trace: config.runtime.enable_tracing,
            disable_guest_seccomp: false,
            internetworking_model: in_force("runtime.internetworking_model"),
            state: text(context.store.root()),
            config: Files {
                path: files.first().map(|path| text(path)).unwrap_or_default(),
                drop_ins: drop_ins.into_iter().map(|path| text(path)).collect(),
            },
            version: RuntimeVersion {
                oci: crate::commands::version::OCI,
                version: Version {
                    semver: env!("CARGO_PKG_VERSION"),
                    commit: option_env!("KATA_COMMIT").unwrap_or_default(),
                },
            },
        },
        host: Host {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            architecture: std::env::consts::ARCH,
            capable: super::check::verdicts(&of_host, false).0,
            vsocks: std::path::Path::new("/dev/vhost-vsock").exists(),
            distro: Distro { name: value_in(&os, "NAME", '='), version: value_in(&os, "VERSION_ID", '=') },
            cpu: Cpu {
                vendor: value_in(&cpu, "vendor_id", ':'),
                model: value_in(&cpu, "model name", ':'),
                cpus: std::thread::available_parallelism().map_or(1, usize::from),
            },
            memory: Memory { total: memory("MemTotal"), free: memory("MemFree"), available: memory("MemAvailable") },
        },
        agent: Agent {
            debug: config.agent.enable_debug,
            debug_console: config.agent.debug_console_enabled,
            dial_timeout: config.agent.dial_timeout.as_secs(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let os = "PRETTY_NAME=\"Debian 12\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n";
        assert_eq!(value_in(os, "NAME", '='), "Debian GNU/Linux");
        assert_eq!(value_in("model\t\t: 1\nmodel name\t: EPYC\n", "model name", ':'), "EPYC");
        assert_eq!(value_in(os, "ID", '='), "");
    }
}
