//! Every key of the configuration, once: what it means and what holds. `config explain` prints it, and the table of `docs/configuration.md` is made
//! from it.

use std::path::Path;

use crate::{Accelerator, Config, Internetworking, VirtioFsCache};

/// A key.
#[derive(Debug)]
pub struct Key {
    /// Its table, such as `hypervisor.qemu`.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it means, in Markdown.
    pub meaning: &'static str,
    /// What it may be, with unit and range.
    pub values: &'static str,
    /// What holds without it, in Markdown.
    pub default: &'static str,
    /// The value in force, as it would be written; none if it is unset.
    pub value: fn(&Config) -> Option<String>,
}

fn quoted(text: impl AsRef<str>) -> Option<String> {
    Some(toml::Value::String(text.as_ref().to_owned()).to_string())
}

fn path(path: Option<&Path>) -> Option<String> {
    path.and_then(|path| quoted(path.to_string_lossy()))
}

const QEMU: &str = "hypervisor.qemu";
const AGENT: &str = "agent.kata";
const RUNTIME: &str = "runtime";
const PATH: &str = "an absolute path";
const SWITCH: &str = "true, false";

/// All of them, in the order in which they are explained.
pub const KEYS: &[Key] = &[
    Key {
        table: QEMU,
        name: "path",
        meaning: "the QEMU program, 7.2 or newer",
        values: PATH,
        default: "`qemu-system-` and the guest kernel's architecture: [our own](qemu.md) if it is installed, else the one in `PATH`",
        value: |config| path(config.qemu.path.as_deref()),
    },
    Key {
        table: QEMU,
        name: "kernel",
        meaning: "the guest kernel: for x86_64 `vmlinux` with a PVH entry, or a bzImage; for aarch64 `Image` or `Image.gz`",
        values: PATH,
        default: "`share/kata-containers/vmlinux.container` beside `bin/`",
        value: |config| path(config.qemu.kernel.as_deref()),
    },
    Key {
        table: QEMU,
        name: "initrd",
        meaning: "the guest image, as an initial RAM disk; not with `image`",
        values: PATH,
        default: "`share/kata-containers/kata-containers-initrd.img` beside `bin/`",
        value: |config| path(config.qemu.initrd.as_deref()),
    },
    Key {
        table: QEMU,
        name: "image",
        meaning: "the guest image, as a disk; see below",
        values: PATH,
        default: "`share/kata-containers/kata-containers.img` beside `bin/`, if the initrd is not there",
        value: |config| path(config.qemu.image.as_deref()),
    },
    Key {
        table: QEMU,
        name: "kernel_verity_params",
        meaning: "by what the guest checks each block of `image`",
        values: "parameters of dm-verity, see below",
        default: "the file of the image's name with `.verity` appended, if there is one",
        value: |config| config.qemu.kernel_verity_params.as_ref().and_then(quoted),
    },
    Key {
        table: QEMU,
        name: "kernel_params",
        meaning: "appended to the guest's kernel command line",
        values: "up to 1024 printable characters of ASCII",
        default: "empty",
        value: |config| quoted(&config.qemu.kernel_params),
    },
    Key {
        table: QEMU,
        name: "machine_type",
        meaning: "QEMU's name of the machine: `q35` (or `pc-q35-…`) or `microvm` for x86_64, `virt` (or `virt-…`) for aarch64",
        values: "a name without options",
        default: "`q35`, `virt`",
        value: |config| config.qemu.machine_type.as_ref().and_then(quoted),
    },
    Key {
        table: QEMU,
        name: "accelerator",
        meaning: "what executes the guest's code (our own key)",
        values: "`auto`, `kvm`, `tcg`",
        default: "`auto`: KVM where a probe runs guest code on it, else TCG with a warning",
        value: |config| {
            quoted(match config.qemu.accelerator {
                Accelerator::Auto => "auto",
                Accelerator::Kvm => "kvm",
                Accelerator::Tcg => "tcg",
            })
        },
    },
    Key {
        table: QEMU,
        name: "default_vcpus",
        meaning: "virtual CPUs; more if the container's CPU quota asks for more",
        values: "1 to 255; negative: as many as the host has; 0: the default",
        default: "1",
        value: |config| Some(config.qemu.default_vcpus.to_string()),
    },
    Key {
        table: QEMU,
        name: "default_memory",
        meaning: "memory; more if the container's memory limit asks for more. A limit, not a reservation",
        values: "MiB: 64 to the host's memory",
        default: "2048",
        value: |config| Some(config.qemu.default_memory.to_string()),
    },
    Key {
        table: QEMU,
        name: "default_maxvcpus",
        meaning: "virtual CPUs that a pod's machine may grow to by its containers' limits",
        values: "1 to 255; 0: as many as the host has",
        default: "0",
        value: |config| Some(config.qemu.default_maxvcpus.to_string()),
    },
    Key {
        table: QEMU,
        name: "default_maxmemory",
        meaning: "memory that it may grow to, likewise",
        values: "MiB: 64 to the host's memory; 0: the host's memory",
        default: "0",
        value: |config| Some(config.qemu.default_maxmemory.to_string()),
    },
    Key {
        table: QEMU,
        name: "pcie_root_port",
        meaning: "devices that can be plugged into a running pod",
        values: "0 to 16",
        default: "8",
        value: |config| Some(config.qemu.pcie_root_port.to_string()),
    },
    Key {
        table: QEMU,
        name: "enable_annotations",
        meaning: "keys of this table and the others that a pod's annotations may set; `.*` stands for any text",
        values: "a list of names",
        default: "none",
        value: |config| {
            let names = config.qemu.enable_annotations.iter().map(|name| toml::Value::String(name.clone()));
            Some(toml::Value::Array(names.collect()).to_string())
        },
    },
    Key {
        table: QEMU,
        name: "virtio_fs_cache",
        meaning: "what the guest may remember of shared files",
        values: "`never`, `metadata`, `auto`, `always`",
        default: "`auto`",
        value: |config| {
            quoted(match config.qemu.virtio_fs_cache {
                VirtioFsCache::Never => "never",
                VirtioFsCache::Metadata => "metadata",
                VirtioFsCache::Auto => "auto",
                VirtioFsCache::Always => "always",
            })
        },
    },
    Key {
        table: QEMU,
        name: "enable_debug",
        meaning: "the guest's kernel logs everything to its console",
        values: SWITCH,
        default: "false",
        value: |config| Some(config.qemu.enable_debug.to_string()),
    },
    Key {
        table: AGENT,
        name: "dial_timeout",
        meaning: "how long the agent may take until it has answered",
        values: "seconds: 1 to 3600",
        default: "60",
        value: |config| Some(config.agent.dial_timeout.as_secs().to_string()),
    },
    Key {
        table: AGENT,
        name: "liveness_timeout",
        meaning: "how long the guest may show no sign of life, or one of the machine's processes be stopped by a signal, before the machine is ended (our own key; [faults.md](faults.md))",
        values: "seconds: 0 to 86400; 0: for ever",
        default: "120",
        value: |config| Some(config.agent.liveness_timeout.as_secs().to_string()),
    },
    Key {
        table: AGENT,
        name: "enable_debug",
        meaning: "the agent logs to the console",
        values: SWITCH,
        default: "false",
        value: |config| Some(config.agent.enable_debug.to_string()),
    },
    Key {
        table: AGENT,
        name: "debug_console_enabled",
        meaning: "`kata-runtime console` may run programs in the guest, outside of its containers ([administration.md](administration.md))",
        values: SWITCH,
        default: "false",
        value: |config| Some(config.agent.debug_console_enabled.to_string()),
    },
    Key {
        table: RUNTIME,
        name: "enable_debug",
        meaning: "the host side logs",
        values: SWITCH,
        default: "false",
        value: |config| Some(config.runtime.enable_debug.to_string()),
    },
    Key {
        table: RUNTIME,
        name: "enable_tracing",
        meaning: "the timeline of each start is exported to `otlp_endpoint` ([administration.md](administration.md))",
        values: SWITCH,
        default: "false",
        value: |config| Some(config.runtime.enable_tracing.to_string()),
    },
    Key {
        table: RUNTIME,
        name: "otlp_endpoint",
        meaning: "a collector of traces that takes OpenTelemetry's JSON over HTTP (our own key)",
        values: "`http://HOST[:PORT][/PATH]`",
        default: "`http://localhost:4318/v1/traces`",
        value: |config| quoted(config.runtime.otlp_endpoint.to_string()),
    },
    Key {
        table: RUNTIME,
        name: "internetworking_model",
        meaning: "how interfaces reach the guest; with `none`, none of them do; `passt`: as `tcfilter`, and the host's network is not refused ([network.md](network.md))",
        values: "`tcfilter`, `macvtap`, `none`, `passt`",
        default: "`tcfilter`",
        value: |config| {
            quoted(match config.runtime.internetworking_model {
                Internetworking::TcFilter => "tcfilter",
                Internetworking::Macvtap => "macvtap",
                Internetworking::Passt => "passt",
                Internetworking::None => "none",
            })
        },
    },
    Key {
        table: RUNTIME,
        name: "static_sandbox_resource_mgmt",
        meaning: "the machine has the size that is known at its start, and never another",
        values: SWITCH,
        default: "false",
        value: |config| Some(config.runtime.static_sandbox_resource_mgmt.to_string()),
    },
    Key {
        table: RUNTIME,
        name: "debug_steps",
        meaning: "for debugging: a socket to which each step of a sandbox is told, and which is waited for (our own key; [faults.md](faults.md))",
        values: PATH,
        default: "none",
        value: |config| path(config.runtime.debug_steps.as_deref()),
    },
];

impl Key {
    /// With its table: `hypervisor.qemu.path`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.table, self.name)
    }
}

/// Markdown as text for a terminal: without the marks of code, and of a link only what is read.
pub fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some(at) = rest.find(['`', '[']) {
        text.push_str(&rest[..at]);
        let link = rest[at..].strip_prefix('[').and_then(|link| {
            let (words, after) = link.split_once("](")?;
            let (address, after) = after.split_once(')')?;
            Some((if words == address { format!("docs/{words}") } else { words.to_owned() }, after))
        });
        match link {
            Some((words, after)) => {
                text.push_str(&words);
                rest = after;
            }
            None => {
                text.push_str(if rest.as_bytes()[at] == b'[' { "[" } else { "" });
                rest = &rest[at + 1..];
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file;

    fn row(key: &Key, table: Option<&str>) -> String {
        let table = table.map(|table| format!("`[{table}]`")).unwrap_or_default();
        let text = format!("| {table} | `{}` | {} | {} | {} |", key.name, key.meaning, key.values, key.default);
        text.replacen("|  |", "| |", 1)
    }

    #[test]
    fn the_documentation_says_what_the_table_says() {
        let mut lines =
            vec!["| table | key | meaning | values | default |".into(), "| --- | --- | --- | --- | --- |".into()];
        let mut last = "";
        for key in KEYS {
            lines.push(row(key, (key.table != last).then_some(key.table)));
            last = key.table;
        }
        let documentation = include_str!("../../../docs/configuration.md");
        let table = lines.join("\n");
        assert!(documentation.contains(&table), "docs/configuration.md must have this table:\n{table}");
    }

    /// What a file may say is asked of whoever reads it: its refusal names all that it knows.
    #[test]
    fn the_table_has_every_key_that_a_file_may_have_and_no_other() {
        for table in [QEMU, AGENT, RUNTIME] {
            let text = format!("[{table}]\nnonsense = 1\n");
            let refused = file::apply_text(&mut Config::default(), Path::new("f"), &text).unwrap_err().to_string();
            let (_, expected) = refused.split_once("expected").unwrap();
            let mut read: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
            let mut told: Vec<&str> = KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect();
            read.sort_unstable();
            told.sort_unstable();
            assert_eq!(told, read, "{table}");
        }
    }

    #[test]
    fn a_value_in_force_can_be_written_into_a_file() {
        let mut config = Config::default();
        config.qemu.enable_annotations = vec!["default_.*".into()];
        config.qemu.kernel_params = "a=\"b\"".into();
        for key in KEYS {
            let Some(value) = (key.value)(&config) else { continue };
            let text = format!("[{}]\n{} = {value}\n", key.table, key.name);
            let mut read = config.clone();
            file::apply_text(&mut read, Path::new("f"), &text).unwrap();
            assert_eq!(read, config, "{text}");
        }
    }

    #[test]
    fn a_terminal_is_shown_no_marks() {
        assert_eq!(plain("`a` [b](c.md) ([d.md](d.md)) e[f"), "a b (docs/d.md) e[f");
    }
}
