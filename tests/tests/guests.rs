//! Guests other than the usual one: on a microvm, and from a disk image whose every block is checked.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use e2e::{Bundle, Output, Runtime, Snapshot, disk_image, needs_monolithic_kernel};

/// QEMU's arguments, as the kernel tells them.
fn vmm_arguments(runtime: &Runtime, id: &str) -> String {
    let pid = runtime.state_file(id)["vmm"]["pid"].to_string();
    String::from_utf8(fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap()).unwrap().replace('\0', " ")
}

#[test]
fn a_microvm_runs_a_container() {
    if !needs_monolithic_kernel() {
        return;
    }
    let bundle = Bundle::sh("uname -r; nproc; cat");
    let runtime = Runtime::kata_with("[hypervisor.qemu]\nmachine_type = \"microvm\"\ndefault_vcpus = 2\n");
    let mut command = runtime.command(["run", "--bundle", bundle.arg(), "micro"]);
    let output = e2e::run_with_input(&mut command, |input| input.write_all(b"through the channel").unwrap());
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.text().ends_with("-kata\n2\nthrough the channel"), "{}", output.text());

    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "micro"]);
    let arguments = vmm_arguments(&runtime, "micro");
    assert!(arguments.contains("-machine microvm,") && !arguments.contains("pci"), "{arguments}");
    runtime.ok(["exec", "micro", "true"]);
    runtime.ok(["kill", "micro", "KILL"]);
    runtime.wait_for("micro", "stopped");
    runtime.ok(["delete", "micro"]);
}

/// A disk image of the test's own.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Image {
    fn copy_of(image: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // QEMU, a user of its own, opens it by a descriptor, but the file's mode counts.
        let path = dir.path().join("image");
        fs::copy(image, &path).unwrap();
        fs::copy(parameters_file(image), parameters_file(&path)).unwrap();
        Self { _dir: dir, bytes: fs::read(&path).unwrap(), path }
    }

    /// Where partition `number` starts and ends, bytes.
    fn partition(&self, number: usize) -> std::ops::Range<usize> {
        let entry = &self.bytes[1024 + (number - 1) * 128..][..128];
        let sector = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap()) as usize;
        sector(32) * 512..(sector(40) + 1) * 512
    }

    fn flip(&mut self, at: usize) {
        self.bytes[at] ^= 0x10;
    }

    fn write(&self) {
        fs::write(&self.path, &self.bytes).unwrap();
    }

    fn runtime(&self, further: &str) -> Runtime {
        Runtime::kata_with(&format!("[hypervisor.qemu]\nimage = {:?}\n{further}\n", self.path))
    }
}

fn parameters_file(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".verity");
    name.into()
}

fn verified_image() -> Option<Image> {
    if !needs_monolithic_kernel() {
        return None;
    }
    let image = disk_image()?;
    if !parameters_file(&image).exists() {
        eprintln!("skipped: {} has no verity parameters beside it", image.display());
        return None;
    }
    Some(Image::copy_of(&image))
}

#[test]
fn sandboxes_share_a_disk_image() {
    let Some(image) = verified_image() else { return };
    let runtime = image.runtime("");
    let bundle = Bundle::new(["sleep", "1000"]);
    for id in ["one", "two"] {
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), id]);
        let arguments = vmm_arguments(&runtime, id);
        assert!(arguments.contains("dm-mod.create=") && !arguments.contains("-initrd"), "{arguments}");
    }
    for id in ["one", "two"] {
        assert_eq!(runtime.ok(["exec", id, "echo", "alive"]).text(), "alive\n");
        runtime.ok(["delete", "--force", id]);
    }
    assert_eq!(fs::read(&image.path).unwrap(), image.bytes, "a guest has written to its image");
}

#[track_caller]
fn told(image: &Image, runtime: &Runtime, what: &str) -> Output {
    fs::create_dir_all(runtime.root()).unwrap();
    let snapshot = || Snapshot::take(&runtime.root().display().to_string(), &runtime.root());
    let before = snapshot();
    let bundle = Bundle::new(["echo", "it ran"]);
    let output = runtime.run(["run", "--bundle", bundle.arg(), "tampered"]);
    assert!(output.code != 0 && output.stdout.is_empty(), "{what}: {}{}", output.text(), output.stderr);
    let said = format!("the guest image {} does not match its root hash: ", image.path.display());
    for words in [said.as_str(), "damaged or was tampered with", "restore it, or build it and its root hash anew"] {
        assert!(output.stderr.contains(words), "{what}: {words:?} is not in: {}", output.stderr);
    }
    assert_eq!(snapshot(), before, "{what}");
    output
}

#[test]
fn a_flipped_bit_refuses_to_boot() {
    let Some(mut image) = verified_image() else { return };
    let (data, hashes) = (image.partition(1), image.partition(2));
    // The tree may have a superblock in front.
    let superblock = image.bytes[hashes.start..].starts_with(b"verity\0\0");
    let tree = if superblock { hashes.start + 4096 } else { hashes.start };
    // The name of the file system is in no way needed to mount it.
    let name = if image.bytes[data.start + 1024..].starts_with(&0xe0f5_e1e2u32.to_le_bytes()) { 64 } else { 120 };
    for (what, at) in
        [("the file system's superblock", data.start + 1024 + name), ("the root of the hash tree", tree + 5)]
    {
        image.flip(at);
        image.write();
        let output = told(&image, &image.runtime(""), what);
        assert!(output.stderr.contains("device-mapper: verity: "), "{what}: {}", output.stderr);
        image.flip(at);
    }
    // Whatever of the data the guest comes to read: one bit in each block but the first.
    let blocks: Vec<usize> = (data.start + 4096..data.end).step_by(4096).collect();
    blocks.iter().for_each(|at| image.flip(*at));
    image.write();
    told(&image, &image.runtime(""), "the data");
    blocks.iter().for_each(|at| image.flip(*at));
    if superblock {
        // The number of blocks: seen before anything starts.
        image.flip(hashes.start + 73);
        image.write();
        let output = told(&image, &image.runtime(""), "the superblock of the hash tree");
        assert!(output.stderr.contains("data_blocks"), "{}", output.stderr);
        image.flip(hashes.start + 73);
    }
    image.write();
    image.runtime("").ok(["run", "--bundle", Bundle::new(["true"]).arg(), "whole"]);
}

#[test]
fn another_root_hash_refuses_to_boot() {
    let Some(image) = verified_image() else { return };
    let parameters = fs::read_to_string(parameters_file(&image.path)).unwrap();
    let (before, rest) = parameters.trim().split_once("root_hash=").unwrap();
    let other = if rest.starts_with('0') { '1' } else { '0' };
    let other = format!("kernel_verity_params = \"{before}root_hash={other}{}\"", &rest[1..]);
    told(&image, &image.runtime(&other), "another root hash");
    fs::remove_file(parameters_file(&image.path)).unwrap();
    let bundle = Bundle::new(["true"]);
    let output = image.runtime("").run(["run", "--bundle", bundle.arg(), "without"]);
    assert!(output.code != 0 && output.stderr.contains("set kernel_verity_params"), "{}", output.stderr);
}

/// Memory by virtio-mem and processors by hot-plug, before the limits rise and after they fall.
#[test]
fn a_machine_grows_and_shrinks_with_its_containers_limits() {
    let runtime = Runtime::kata();
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["create", "--bundle", bundle.arg(), "grown"]);
    runtime.ok(["start", "grown"]);
    let memory = || -> u64 {
        let text = runtime.ok(["exec", "grown", "grep", "MemTotal", "/proc/meminfo"]).text();
        text.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let processors = || runtime.ok(["exec", "grown", "nproc"]).text();
    let before = memory();
    assert_eq!(processors(), "1\n");
    runtime.ok(["update", "--memory", "3g", "--cpu-period", "100000", "--cpu-quota", "200000", "grown"]);
    let grown = memory();
    // In units of virtio-mem, and less what the kernel knows of each page.
    assert!(grown > before + (1 << 20), "{before} KiB, then {grown} KiB");
    let host = std::thread::available_parallelism().unwrap().get();
    assert_eq!(processors(), format!("{}\n", host.min(2)));
    runtime.ok(["update", "--memory", "256m", "grown"]);
    assert!(memory() < grown);
    let refused = runtime.run(["update", "--memory", "90000g", "grown"]);
    assert!(refused.code == 1 && refused.stderr.contains("more than this host has"), "{}", refused.stderr);
    runtime.ok(["delete", "--force", "grown"]);
}
