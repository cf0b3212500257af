//! A kernel source tree in miniature: make takes a moment, and does as options of its configuration say.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// `CONFIG_FAIL` fails; `CONFIG_HANG` tells its process's number through the pipe `told` beside the cache, and ends when somebody
/// opens the pipe `go`; `CONFIG_LOST` is lost.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 3
EXTRAVERSION =

allnoconfig:
	@grep -v CONFIG_LOST $(KCONFIG_ALLCONFIG) >$(O)/.config

vmlinux:
	@echo "  CC      init/main.o"
	@if grep -q CONFIG_FAIL=y $(O)/.config; then echo "init/main.c:1:2: error: broken" >&2; exit 1; fi
	@if grep -q CONFIG_HANG=y $(O)/.config; then echo $$$$ >$(O)/../../../told; exec cat $(O)/../../../go >/dev/null; fi
	@cp kernel.elf $(O)/vmlinux
	@echo "$(KBUILD_BUILD_USER) $(KBUILD_BUILD_TIMESTAMP) $(MAKEFLAGS)" >$(O)/System.map
	@echo built >>$(O)/../../../built

bzImage: vmlinux
	@mkdir -p $(O)/arch/x86/boot
	@gzip -n <kernel.elf >$(O)/arch/x86/boot/bzImage

.PHONY: allnoconfig vmlinux bzImage
"#;

/// What a test works with.
pub struct Lab {
    directory: TempDir,
}

impl Lab {
    /// A lab; `None`, with the reason printed, where the miniature cannot be built.
    pub fn new() -> Option<Lab> {
        if cfg!(not(target_arch = "x86_64")) {
            println!("skipped: the miniature kernel is one for x86_64");
            return None;
        }
        let lab = Lab { directory: tempfile::tempdir().unwrap() };
        for name in ["linux/scripts", "linux/arch/x86", "fragments/arch", "bin"] {
            fs::create_dir_all(lab.at(name)).unwrap();
        }
        lab.write("linux/Makefile", MAKEFILE);
        lab.write("linux/Kconfig", "config LOST\n\tbool \"lost\"\n\tdepends on OTHER\n");
        fs::write(lab.at("linux/kernel.elf"), elf()).unwrap();
        lab.write("fragments/all.conf", "CONFIG_NET=y\n");
        lab.write("fragments/arch/x86_64.conf", "CONFIG_PVH=y\n");
        // The kernel's own build needs these, the miniature does not.
        for name in ["flex", "bison", "bc", "perl"] {
            lab.program(name, "exit 0");
        }
        for name in ["told", "go"] {
            assert!(Command::new("mkfifo").arg(lab.at(name)).status().unwrap().success());
        }
        Some(lab)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    /// A program that is found before the machine's own.
    pub fn program(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.at("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The tree as a tarball.
    pub fn tarball(&self) -> PathBuf {
        let path = self.at("linux.tar");
        let mut tar = Command::new("/usr/bin/tar");
        tar.args(["--create", "--sort=name", "--mtime=@86400", "--file"])
            .arg(&path)
            .arg("-C")
            .arg(self.directory.path());
        assert!(tar.arg("linux").status().unwrap().success());
        path
    }

    pub fn output(&self) -> PathBuf {
        self.at("cache/guest-kernel/x86_64")
    }

    /// `kata-kernel`, with this lab's cache and programs.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-kernel"));
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        command.args(arguments).env("PATH", path).env("KATA_CACHE", self.at("cache")).env_remove("SOURCE_DATE_EPOCH");
        command.current_dir(self.directory.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `kata-kernel build` with more arguments.
    pub fn build(&self, source: &Path, more: &[&str]) -> Command {
        let mut command = self.command(&["build", "--fragments", "fragments", "--source"]);
        command.arg(source).args(more);
        command
    }

    /// How often the kernel was built.
    pub fn builds(&self) -> usize {
        fs::read_to_string(self.at("built")).unwrap_or_default().lines().count()
    }

    /// Waits until make hangs, and returns the number of the process that does.
    pub fn hanging(&self) -> i32 {
        fs::read_to_string(self.at("told")).unwrap().trim().parse().unwrap()
    }

    /// Lets what hangs go on.
    pub fn go_on(&self) {
        drop(fs::OpenOptions::new().write(true).open(self.at("go")).unwrap());
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The least ELF file that counts as a kernel: a segment to load with the note of the PVH entry in it.
fn elf() -> Vec<u8> {
    const NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x00\x10\x00\x01";
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(64, 0);
    // Type, machine, version; entry; where the program headers are; sizes and number of headers.
    out[16] = 2;
    out[18] = 62;
    out[20] = 1;
    out[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    out[32] = 64;
    out[52] = 64;
    out[54] = 56;
    out[56] = 2;
    for (kind, alignment) in [(1_u32, 4096_u64), (4, 4)] {
        out.extend(kind.to_le_bytes());
        out.extend(5_u32.to_le_bytes());
        let (offset, address, size) = (64 + 2 * 56_u64, 0x10_00b0_u64, NOTE.len() as u64);
        for value in [offset, address, address, size, size, alignment] {
            out.extend(value.to_le_bytes());
        }
    }
    out.extend(NOTE);
    out
}
