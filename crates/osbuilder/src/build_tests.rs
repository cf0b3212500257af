//! Whole builds of small roots.

use std::os::unix::fs::{PermissionsExt, symlink};

use object::elf;

use super::*;
use crate::{FileSystem, agent::tests::program, cpio::tests::read_back};

struct Case {
    directory: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        symlink("usr/bin", root.join("sbin")).unwrap();
        fs::write(root.join("usr/bin/tool"), "tool").unwrap();
        fs::write(directory.path().join("agent"), program(2, 1, elf::PT_LOAD)).unwrap();
        Case { directory }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn build(&self, format: Format) -> Build {
        Build {
            source: Source::Directory(self.at("root")),
            format,
            agent: Some(self.at("agent")),
            agent_lock: None,
            options: Options::default(),
            modules_directory: None,
            modules: vec![],
            output: self.at("out/image"),
            shown: false,
        }
    }

    fn out(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.at("out")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_directory_becomes_an_initrd_and_is_not_changed() {
    let case = Case::new();
    fs::create_dir(case.at("out")).unwrap();
    fs::write(case.at("out/image.verity"), "of another").unwrap();
    let built = build(&case.build(Format::Initrd(Compression::None))).unwrap();
    assert_eq!(built.architecture, Architecture::X86_64);
    assert_eq!(case.out(), ["image", "image.spdx.json"]);
    let entries = read_back(&fs::read(case.at("out/image")).unwrap());
    let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(find("init").contents, b"/usr/bin/kata-agent");
    assert_eq!((find("usr/bin/kata-agent").mode, find("usr/bin/kata-agent").owner), (0o100_755, (0, 0)));
    assert_eq!(find("usr/bin/tool").contents, b"tool");
    find("dev/console");
    let mut left: Vec<_> = fs::read_dir(case.at("root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["sbin", "usr"]);
    let materials = fs::read_to_string(case.at("out/image.spdx.json")).unwrap();
    assert!(materials.contains("./usr/bin/kata-agent") && !materials.contains("./usr/bin/tool"), "{materials}");
}

#[test]
fn a_disk_image_has_its_parameters_beside_it() {
    let case = Case::new();
    fs::create_dir(case.at("out")).unwrap();
    let disk = Disk { file_system: FileSystem::Ext4, verity: true };
    if let Err(error) = image::preconditions(&disk) {
        eprintln!("skipped: {error}");
        return;
    }
    let built = build(&case.build(Format::Image(disk))).unwrap();
    assert_eq!(case.out(), ["image", "image.spdx.json", "image.verity"]);
    assert_eq!(image::verify(&case.at("out/image"), None).unwrap(), built.verity.unwrap());
    assert_eq!(fs::metadata(case.at("out/image.verity")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_is_wrong_leaves_nothing() {
    let case = Case::new();
    fs::create_dir(case.at("out")).unwrap();
    let refused = |change: &dyn Fn(&mut Build), expected: &str| {
        let mut wanted = case.build(Format::Initrd(Compression::None));
        change(&mut wanted);
        let error = build(&wanted).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(case.out(), [""; 0]);
    };
    refused(&|build| build.agent = None, "a root without an agent");
    refused(&|build| build.agent = Some(case.at("none")), "cannot read");
    refused(&|build| build.source = Source::Directory(case.at("none")), "cannot read");
    refused(&|build| build.source = Source::Oci(case.at("none")), "cannot read");
    refused(&|build| build.options.packages = vec!["x".into()], "for sources that are made of packages");
    refused(
        &|build| build.options.architecture = Some(Architecture::S390x),
        "it is for x86_64, and the image is to be for s390x",
    );
    refused(&|build| build.agent_lock = Some(case.at("agent")), "it is no Cargo.lock");
    let error = "slackware".parse::<Source>().unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no source slackware; there are agent-only, debian, fedora, centos:7, clearlinux, alpine, oci:LAYOUT and dir:PATH, \
         or --definition FILE"
    );
}
