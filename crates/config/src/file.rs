//! Reading the files and merging them, key by key.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use crate::{
    Accelerator, Agent, Config, Error, Internetworking, MAX_KERNEL_PARAMS, MAX_ROOT_PORTS, MAX_VCPUS, MIN_MEMORY_MIB,
    OtlpEndpoint, Qemu, Runtime, VirtioFsCache, upstream,
};

/// One file, as written: every key may be absent. Values that are checked further keep their place in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    hypervisor: HypervisorTable,
    agent: AgentTable,
    runtime: RuntimeTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HypervisorTable {
    qemu: QemuTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QemuTable {
    path: Option<Spanned<PathBuf>>,
    kernel: Option<Spanned<PathBuf>>,
    initrd: Option<Spanned<PathBuf>>,
    image: Option<Spanned<PathBuf>>,
    kernel_verity_params: Option<Spanned<String>>,
    kernel_params: Option<Spanned<String>>,
    machine_type: Option<Spanned<String>>,
    accelerator: Option<Accelerator>,
    default_vcpus: Option<Spanned<i64>>,
    default_memory: Option<Spanned<i64>>,
    default_maxvcpus: Option<Spanned<i64>>,
    default_maxmemory: Option<Spanned<i64>>,
    pcie_root_port: Option<Spanned<i64>>,
    enable_annotations: Option<Vec<String>>,
    virtio_fs_cache: Option<VirtioFsCache>,
    enable_debug: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AgentTable {
    kata: KataTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KataTable {
    dial_timeout: Option<Spanned<i64>>,
    liveness_timeout: Option<Spanned<i64>>,
    enable_debug: Option<bool>,
    debug_console_enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuntimeTable {
    enable_debug: Option<bool>,
    enable_tracing: Option<bool>,
    otlp_endpoint: Option<Spanned<String>>,
    internetworking_model: Option<Internetworking>,
    static_sandbox_resource_mgmt: Option<bool>,
    debug_steps: Option<Spanned<PathBuf>>,
}

/// Loads the file `given`, with the reason why it is that one, or else the first of `searched`; then the drop-ins.
pub(crate) fn load(given: Option<(PathBuf, String)>, searched: &[PathBuf]) -> Result<Config, Error> {
    let mut config = Config::default();
    let drop_ins = match given {
        Some((path, given_by)) => {
            apply(&mut config, &path, &given_by)?;
            drop_ins_beside(&path)?
        }
        None => match first_existing(searched)? {
            Some(path) => {
                apply(&mut config, path, "found by its place")?;
                drop_ins_beside(path)?
            }
            None => {
                let mut found = Vec::new();
                for path in searched {
                    found = drop_ins_beside(path)?;
                    if !found.is_empty() {
                        break;
                    }
                }
                found
            }
        },
    };
    for path in drop_ins {
        apply(&mut config, &path, "a drop-in")?;
    }
    Ok(config)
}

fn first_existing(searched: &[PathBuf]) -> Result<Option<&PathBuf>, Error> {
    for path in searched {
        let exists = path.try_exists().map_err(|source| Error::Read {
            path: path.clone(),
            given_by: "found by its place".into(),
            source,
        })?;
        if exists {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn drop_ins_beside(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let directory = path.with_file_name("config.d");
    let failed = |source| Error::Read { path: directory.clone(), given_by: "the drop-ins' directory".into(), source };
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn apply(config: &mut Config, path: &Path, given_by: &str) -> Result<(), Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_path_buf(),
        given_by: given_by.to_owned(),
        source,
    })?;
    apply_text(config, path, &text)?;
    config.sources.push(path.to_path_buf());
    Ok(())
}

/// Applies what a file, or what stands for one, says.
pub(crate) fn apply_text(config: &mut Config, path: &Path, text: &str) -> Result<(), Error> {
    let source = Source { path, text };
    let file: File = toml::from_str(text).map_err(|error| source.explain(&error))?;
    let Qemu {
        path: qemu,
        kernel,
        initrd: _,
        image: _,
        kernel_verity_params: _,
        kernel_params,
        machine_type,
        accelerator,
        default_vcpus,
        default_memory,
        default_maxvcpus,
        default_maxmemory,
        pcie_root_port,
        enable_annotations,
        virtio_fs_cache,
        enable_debug,
    } = &mut config.qemu;
    let mut table = file.hypervisor.qemu;
    let image = source.guest_image(&mut table)?;
    set_some(qemu, source.absolute("path", table.path)?);
    set_some(kernel, source.absolute("kernel", table.kernel)?);
    set(kernel_params, source.kernel_params(table.kernel_params)?);
    set_some(machine_type, source.machine_type(table.machine_type)?);
    set(accelerator, table.accelerator);
    set(default_vcpus, source.vcpus(table.default_vcpus)?);
    set(default_memory, source.memory(table.default_memory)?);
    set(default_maxvcpus, source.most_vcpus(table.default_maxvcpus)?);
    set(default_maxmemory, source.most_memory(table.default_maxmemory)?);
    set(pcie_root_port, source.number("pcie_root_port", "root ports", table.pcie_root_port, 0, MAX_ROOT_PORTS)?);
    set(enable_annotations, table.enable_annotations);
    set(virtio_fs_cache, table.virtio_fs_cache);
    set(enable_debug, table.enable_debug);
    set_image(&mut config.qemu, image, &source)?;
    let Agent { dial_timeout, liveness_timeout, enable_debug, debug_console_enabled } = &mut config.agent;
    let table = file.agent.kata;
    set(dial_timeout, source.number("dial_timeout", "seconds", table.dial_timeout, 1, 3600)?.map(seconds));
    let liveness = source.number("liveness_timeout", "seconds", table.liveness_timeout, 0, 86_400)?;
    set(liveness_timeout, liveness.map(seconds));
    set(enable_debug, table.enable_debug);
    set(debug_console_enabled, table.debug_console_enabled);
    let Runtime {
        enable_debug,
        enable_tracing,
        otlp_endpoint,
        internetworking_model,
        static_sandbox_resource_mgmt,
        debug_steps,
    } = &mut config.runtime;
    set(enable_debug, file.runtime.enable_debug);
    set(enable_tracing, file.runtime.enable_tracing);
    set(otlp_endpoint, source.endpoint(file.runtime.otlp_endpoint)?);
    set(internetworking_model, file.runtime.internetworking_model);
    set(static_sandbox_resource_mgmt, file.runtime.static_sandbox_resource_mgmt);
    set_some(debug_steps, source.absolute("debug_steps", file.runtime.debug_steps)?);
    Ok(())
}

/// What one file says about the guest image.
#[derive(Default)]
struct GuestImage {
    initrd: Option<PathBuf>,
    image: Option<PathBuf>,
    /// With its place.
    verity: Option<(String, Range<usize>)>,
}

/// A guest image replaces the earlier one with everything that belongs to it.
fn set_image(qemu: &mut Qemu, said: GuestImage, source: &Source<'_>) -> Result<(), Error> {
    if said.initrd.is_some() || said.image.is_some() {
        (qemu.initrd, qemu.image, qemu.kernel_verity_params) = (said.initrd, said.image, None);
    }
    if let Some((verity, place)) = said.verity {
        if qemu.initrd.is_some() {
            let message = "`kernel_verity_params` belong to an `image`, but the guest image is an `initrd`";
            return Err(source.invalid(&place, message.into()));
        }
        qemu.kernel_verity_params = Some(verity).filter(|verity| !verity.is_empty());
    }
    Ok(())
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn set_some<T>(target: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *target = value;
    }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

/// A file being read, for errors that say where.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn invalid(&self, place: &Range<usize>, message: String) -> Error {
        let before = &self.text.as_bytes()[..place.start.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::Invalid { path: self.path.to_path_buf(), line, message }
    }

    /// Turns the parser's error into ours. An unknown key's place is the key itself, which tells it from a wrong value.
    fn explain(&self, error: &toml::de::Error) -> Error {
        let place = error.span().unwrap_or(0..0);
        let name = self.text.get(place.clone()).unwrap_or_default();
        let message = if upstream::has(name) {
            format!("`{name}` is a key of upstream Kata that this version does not carry out; remove it")
        } else {
            let key = self.key_before(place.start).map(|key| format!("`{key}`: ")).unwrap_or_default();
            format!("{key}{}", error.message())
        };
        self.invalid(&place, message)
    }

    /// The key of the line on which a wrong value stands, if it stands behind one.
    fn key_before(&self, offset: usize) -> Option<&str> {
        let line = self.text.get(..offset)?.rsplit('\n').next()?;
        Some(line.split_once('=')?.0.trim())
    }

    fn absolute(&self, key: &str, value: Option<Spanned<PathBuf>>) -> Result<Option<PathBuf>, Error> {
        let Some(value) = value else { return Ok(None) };
        if value.get_ref().is_absolute() {
            return Ok(Some(value.into_inner()));
        }
        let message = format!("`{key}` must be an absolute path, not {:?}", value.get_ref());
        Err(self.invalid(&value.span(), message))
    }

    fn guest_image(&self, table: &mut QemuTable) -> Result<GuestImage, Error> {
        if let (Some(image), Some(initrd)) = (&table.image, &table.initrd) {
            let place = if image.span().start > initrd.span().start { image.span() } else { initrd.span() };
            let message = "`image` and `initrd` are both set: a guest has one image; remove one of them";
            return Err(self.invalid(&place, message.into()));
        }
        let verity = match table.kernel_verity_params.take() {
            Some(value) => Some(self.verity(value)?),
            None => None,
        };
        Ok(GuestImage {
            initrd: self.absolute("initrd", table.initrd.take())?,
            image: self.absolute("image", table.image.take())?,
            verity,
        })
    }

    fn verity(&self, value: Spanned<String>) -> Result<(String, Range<usize>), Error> {
        let (text, place) = (value.get_ref(), value.span());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_=,-".contains(&byte);
        if text.len() <= MAX_KERNEL_PARAMS && text.bytes().all(allowed) {
            return Ok((value.into_inner(), place));
        }
        let message = "`kernel_verity_params` must be root_hash=...,salt=...,data_blocks=...,data_block_size=...,\
                       hash_block_size=..., without blanks";
        Err(self.invalid(&place, message.into()))
    }

    fn kernel_params(&self, value: Option<Spanned<String>>) -> Result<Option<String>, Error> {
        let Some(value) = value else { return Ok(None) };
        let text = value.get_ref();
        if text.len() <= MAX_KERNEL_PARAMS && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Ok(Some(value.into_inner()));
        }
        let message =
            format!("`kernel_params` must be one line of printable ASCII of at most {MAX_KERNEL_PARAMS} characters");
        Err(self.invalid(&value.span(), message))
    }

    fn machine_type(&self, value: Option<Spanned<String>>) -> Result<Option<String>, Error> {
        let Some(value) = value else { return Ok(None) };
        let text = value.get_ref();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if !text.is_empty() && text.bytes().all(allowed) {
            return Ok(Some(value.into_inner()));
        }
        let message =
            format!("`machine_type` must be the name of a QEMU machine without options, such as \"q35\", not {text:?}");
        Err(self.invalid(&value.span(), message))
    }

    fn endpoint(&self, value: Option<Spanned<String>>) -> Result<Option<OtlpEndpoint>, Error> {
        let Some(value) = value else { return Ok(None) };
        let parsed = value.get_ref().parse();
        parsed.map(Some).map_err(|problem| self.invalid(&value.span(), format!("`otlp_endpoint` {problem}")))
    }

    fn vcpus(&self, value: Option<Spanned<i64>>) -> Result<Option<u32>, Error> {
        match value.as_ref().map(|value| *value.get_ref()) {
            Some(0) => Ok(Some(Qemu::default().default_vcpus)),
            Some(..0) => Ok(Some(host_cpus())),
            _ => self.number("default_vcpus", "virtual CPUs", value, 1, MAX_VCPUS),
        }
    }

    fn memory(&self, value: Option<Spanned<i64>>) -> Result<Option<u32>, Error> {
        self.number("default_memory", "MiB", value, MIN_MEMORY_MIB, host_memory_mib())
    }

    fn most_vcpus(&self, value: Option<Spanned<i64>>) -> Result<Option<u32>, Error> {
        match value.as_ref().map(|value| *value.get_ref()) {
            Some(0) => Ok(Some(host_cpus())),
            _ => self.number("default_maxvcpus", "virtual CPUs", value, 1, MAX_VCPUS),
        }
    }

    fn most_memory(&self, value: Option<Spanned<i64>>) -> Result<Option<u32>, Error> {
        match value.as_ref().map(|value| *value.get_ref()) {
            Some(0) => Ok(Some(host_memory_mib())),
            _ => self.number("default_maxmemory", "MiB", value, MIN_MEMORY_MIB, host_memory_mib()),
        }
    }

    fn number(
        &self,
        key: &str,
        unit: &str,
        value: Option<Spanned<i64>>,
        least: u32,
        most: u32,
    ) -> Result<Option<u32>, Error> {
        let Some(value) = value else { return Ok(None) };
        let number = *value.get_ref();
        match u32::try_from(number) {
            Ok(fitting) if (least..=most).contains(&fitting) => Ok(Some(fitting)),
            _ => Err(self.invalid(&value.span(), format!("`{key}` must be {least} to {most} {unit}, not {number}"))),
        }
    }
}

pub(crate) fn host_cpus() -> u32 {
    thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(MAX_VCPUS).min(MAX_VCPUS))
}

/// The host's memory in MiB (`MemTotal` of proc(5)), or no limit where it cannot be read.
pub(crate) fn host_memory_mib() -> u32 {
    let kib = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
    });
    kib.map_or(u32::MAX, |kib| u32::try_from(kib / 1024).unwrap_or(u32::MAX))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
