//! What a run brings into the machine: packages, test programs, and what these need, on a disk.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::process::Command;

use crate::{Result, say, succeed, suites::Suite};

/// With KVM for certain: an emulated guest would be no proof. The machine is emulated, so a boot takes its time.
const CONFIGURATION: &str = "[hypervisor.qemu]\naccelerator = \"kvm\"\n[agent.kata]\ndial_timeout = 400\n";
/// The engines that the chosen tests drive.
const ENGINES: [&str; 3] = ["containerd-1.7", "cni", "busybox"];

/// Where things are.
pub struct Places {
    /// The workspace.
    pub top: PathBuf,
    /// What is built or downloaded once.
    pub cache: PathBuf,
    /// What the lab makes.
    pub output: PathBuf,
}

/// What is run in the machine.
#[derive(Clone, Copy)]
pub enum Programs<'a> {
    /// Tests.
    Suites(&'a [&'a Suite]),
    /// What measures: `tests/kata-bench`.
    Bench,
}

/// Makes a disk in a directory that goes with the returned value.
pub async fn disk(places: &Places, programs: Programs<'_>) -> Result<(TempDir, PathBuf)> {
    let work =
        TempDir::new_in(&places.output).map_err(|e| format!("make a directory in {}: {e}", places.output.display()))?;
    let tree = work.path().join("tree");
    let put = |name: &str| {
        let path = tree.join(name);
        fs::create_dir_all(&path).map_err(|e| format!("create {}: {e}", path.display()))?;
        Ok::<_, String>(path)
    };
    let (tests, engines) = (put("tests")?, put("cache/engines")?);

    say("packing the product");
    let mut pack = Command::new(places.top.join("packaging/deb/build.sh"));
    succeed(pack.args(["--compression", "none", "--output"]).arg(places.output.join("deb"))).await?;
    let packages = put("deb")?;
    for entry in fs::read_dir(places.output.join("deb")).map_err(|e| format!("read the packages: {e}"))?.flatten() {
        let name = entry.file_name();
        if Path::new(&name).extension().is_some_and(|kind| kind == "deb") {
            fs::copy(entry.path(), packages.join(&name))
                .map_err(|e| format!("copy {}: {e}", entry.path().display()))?;
        }
    }
    fs::write(tree.join("lab.toml"), CONFIGURATION).map_err(|e| format!("write the configuration: {e}"))?;

    say("building what runs there (cargo)");
    let suites = match programs {
        Programs::Suites(suites) => suites,
        Programs::Bench => {
            put("target")?;
            let file = tests.join("kata-bench");
            build(&places.top, ["build", "--release", "--package", "bench", "--bin"], "kata-bench", &file).await?;
            &[]
        }
    };
    for suite in suites {
        let how = ["test", "--no-run", "--package", suite.package, "--test"];
        build(&places.top, how, suite.name, &tests.join(suite.program())).await?;
    }
    let mut copy = Command::new("cp");
    copy.args(["-a", "--"]).arg(places.cache.join("rootfs")).arg(&tree);
    succeed(&mut copy).await?;
    if suites.iter().any(|suite| suite.package == "engines") {
        let from = ENGINES.iter().map(|name| places.cache.join("engines").join(name));
        succeed(Command::new("cp").args(["-a", "--"]).args(from).arg(&engines)).await?;
        let source = places.top.join("tests/engines/src/watcher.c");
        succeed(Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(tests.join("watcher")).arg(source)).await?;
    }

    let image = work.path().join("payload");
    make_disk(&tree, &image).await?;
    fs::remove_dir_all(&tree).map_err(|e| format!("remove {}: {e}", tree.display()))?;
    Ok((work, image))
}

/// Makes a disk with a directory's contents.
pub async fn make_disk(tree: &Path, image: &Path) -> Result<()> {
    say("making a disk for the machine");
    // Whatever is written beside it, in place.
    const SIZE: u64 = 4 << 30;
    let file = fs::File::create(image).and_then(|file| file.set_len(SIZE));
    file.map_err(|e| format!("create {}: {e}", image.display()))?;
    succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(tree).arg(image)).await
}

/// Builds a program and makes it a file.
async fn build(top: &Path, how: [&str; 5], name: &str, file: &Path) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(top).args(how).arg(name);
    cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = cargo.output().await.map_err(|e| format!("start cargo: {e}"))?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let programs: BTreeSet<PathBuf> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    let program = programs.first();
    let program =
        program.ok_or_else(|| format!("cargo does not build {name} ({}); its reason is above", output.status))?;
    succeed(Command::new("strip").arg("-g").arg("-o").arg(file).arg(program)).await
}
