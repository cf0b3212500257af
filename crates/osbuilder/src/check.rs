//! The self-check of an image: boot it, and run one container.
//!
//! The runtime is the one that is installed, with a configuration of its own that names the image. The container's root holds one static
//! program, so nothing but the image, the kernel and the runtime can be what fails.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Error, agent,
    compression::Compression,
    image::{self, gpt},
    read,
    run::{self, Program, Tool},
};

/// Under emulation on a busy machine a boot takes a while.
const WITHIN: Duration = Duration::from_secs(180);

/// What a check uses.
#[derive(Debug)]
pub struct Check {
    /// The image: an initrd or a disk.
    pub image: PathBuf,
    /// The runtime; found in `PATH` or beside this program if not given.
    pub runtime: Option<PathBuf>,
    /// The kernel; the runtime's own if not given.
    pub kernel: Option<PathBuf>,
    /// A static program that answers `--version`; this one if not given.
    pub program: Option<PathBuf>,
}

/// What a check saw.
#[derive(Debug)]
pub struct Checked {
    /// What kind of image it is.
    pub kind: &'static str,
    /// What the program in the container wrote.
    pub said: String,
    /// How long it all took.
    pub took: Duration,
}

/// Boots an image and runs one container in it.
///
/// # Errors
/// Any [`Error`]; nothing is left behind in any case.
pub fn check(check: &Check) -> Result<Checked, Error> {
    let image = absolute(&check.image)?;
    let (kind, key) = kind_of(&image)?;
    if kind == DISK && image::parameters_file(&image).exists() {
        // A damaged image would only be noticed where the container happens to read it.
        image::verify(&image, None)?;
    }
    let kernel = check.kernel.as_deref().map(absolute).transpose()?;
    let runtime = runtime(check.runtime.as_deref())?;
    let program = match &check.program {
        Some(program) => program.clone(),
        None => env::current_exe().map_err(|source| Error::System { step: "finding this program".into(), source })?,
    };
    let bytes = read(&program)?;
    let parsed = agent::Program::parse(&bytes).map_err(|why| Error::unusable(&program, why))?;
    if parsed.loader.is_some() {
        let why = "it is dynamically linked and cannot be all there is in a container; --program names a static one that answers --version";
        return Err(Error::unusable(&program, why));
    }

    let work = run::work_directory()?;
    let at = |name: &str| work.path().join(name);
    let failed = |path: PathBuf| move |source| Error::Write { path, source };
    let root = at("bundle/root");
    fs::create_dir_all(root.join("proc")).map_err(failed(root.clone()))?;
    let inside = root.join("program");
    fs::copy(&program, &inside).map_err(failed(inside.clone()))?;
    let mut files = json!({ key: image });
    if let Some(kernel) = kernel {
        files["kernel"] = json!(kernel);
    }
    let configuration = toml::to_string(&json!({ "hypervisor": { "qemu": files } })).map_err(|error| {
        Error::unusable(&image, format!("its name cannot be written into a configuration: {error}"))
    })?;
    fs::write(at("configuration.toml"), configuration).map_err(failed(at("configuration.toml")))?;
    fs::write(at("bundle/config.json"), bundle().to_string()).map_err(failed(at("bundle/config.json")))?;

    let name = format!("osbuilder-check-{}", std::process::id());
    let tool = |step: &str| {
        Ok(Tool::at("kata-runtime", &runtime, step)
            .arg("--root")
            .arg(at("state"))
            .arg("--config")
            .arg(at("configuration.toml")))
    };
    let begun = Instant::now();
    let result = tool("running a container in the image")
        .and_then(|tool: Tool| tool.args(["run", "--bundle"]).arg(at("bundle")).arg(&name).within(WITHIN).run());
    // Whatever happened: of a container that is gone there is nothing to delete, and no error.
    let deleted =
        tool("deleting the container of the check")?.args(["delete", "--force", &name]).even_interrupted().run();
    let output = result?;
    deleted?;
    Ok(Checked { kind, said: String::from_utf8_lossy(&output.stdout).trim().to_owned(), took: begun.elapsed() })
}

const DISK: &str = "a disk image";

/// What kind of image a file is, and the configuration's key for it.
fn kind_of(image: &Path) -> Result<(&'static str, &'static str), Error> {
    let mut start = Vec::new();
    let failed = |source| Error::Read { path: image.to_path_buf(), source };
    run::open(image)?.take(gpt::FRONT as u64).read_to_end(&mut start).map_err(failed)?;
    if start.starts_with(b"07070") || Compression::of(&start).is_some() {
        return Ok(("an initrd", "initrd"));
    }
    let length = fs::metadata(image).map_err(failed)?.len();
    gpt::parse(&start, length)
        .map_err(|why| Error::unusable(image, format!("it is no initrd, and as a disk: {why}")))?;
    Ok((DISK, "image"))
}

fn runtime(given: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = given {
        return absolute(path);
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("kata-runtime")));
    match beside.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Program { name: "kata-runtime", package: "kata" }.find(),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

fn bundle() -> serde_json::Value {
    let namespaces: Vec<_> =
        ["pid", "network", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/program", "--version"],
            "env": ["PATH=/"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "root", "readonly": true },
        "hostname": "check",
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_apart_and_others_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        for bytes in [&b"070701..."[..], b"\x28\xb5\x2f\xfd....", b"\x1f\x8b"] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(kind_of(&path).unwrap().1, "initrd");
        }
        fs::write(&path, vec![0; 40_000]).unwrap();
        assert!(
            kind_of(&path)
                .unwrap_err()
                .to_string()
                .contains("it is no initrd, and as a disk: it has no GUID partition")
        );
        let check = Check { image: directory.path().join("none"), runtime: None, kernel: None, program: None };
        assert!(super::check(&check).unwrap_err().to_string().starts_with("cannot read "));
    }

    #[test]
    fn a_dynamic_program_is_refused_before_anything_is_started() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("x");
        fs::write(&image, b"070701").unwrap();
        let check = Check { image, runtime: Some("/bin/sh".into()), kernel: None, program: Some("/bin/sh".into()) };
        assert!(super::check(&check).unwrap_err().to_string().contains("--program names a static one"));
    }
}
