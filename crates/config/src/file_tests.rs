//! Tests of [`super`].

use std::error::Error as _;

use super::*;

/// A directory with `configuration.toml` and drop-ins as given; a name without a slash.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

fn load_one(text: &str) -> Result<Config, Error> {
    let directory = directory(&[("configuration.toml", text)]);
    load(None, &[directory.path().join("configuration.toml")])
}

/// The message of the error `text` gives, without the directory.
fn refusal(text: &str) -> String {
    let message = load_one(text).unwrap_err().to_string();
    message.split_once("/configuration.toml:").unwrap().1.to_owned()
}

#[test]
fn no_file_and_an_empty_file_give_the_defaults() {
    let nowhere = tempfile::tempdir().unwrap();
    assert_eq!(load(None, &[nowhere.path().join("configuration.toml")]).unwrap(), Config::default());
    let mut config = load_one("").unwrap();
    assert_eq!(config.sources.len(), 1);
    config.sources.clear();
    assert_eq!(config, Config::default());
}

#[test]
fn every_key_is_read() {
    let config = load_one(
        r#"
[hypervisor.qemu]
path = "/q"
kernel = "/k"
initrd = "/i"
kernel_params = "quiet x=1"
machine_type = "microvm"
accelerator = "tcg"
default_vcpus = 3
default_memory = 256
default_maxvcpus = 6
default_maxmemory = 512
pcie_root_port = 3
enable_annotations = ["default_.*"]
virtio_fs_cache = "never"
enable_debug = true
[agent.kata]
dial_timeout = 7
liveness_timeout = 9
enable_debug = true
debug_console_enabled = true
[runtime]
enable_debug = true
enable_tracing = true
otlp_endpoint = "http://collector"
internetworking_model = "macvtap"
static_sandbox_resource_mgmt = true
debug_steps = "/d"
"#,
    )
    .unwrap();
    let qemu = Qemu {
        path: Some("/q".into()),
        kernel: Some("/k".into()),
        initrd: Some("/i".into()),
        image: None,
        kernel_verity_params: None,
        kernel_params: "quiet x=1".into(),
        machine_type: Some("microvm".into()),
        accelerator: Accelerator::Tcg,
        default_vcpus: 3,
        default_memory: 256,
        default_maxvcpus: 6,
        default_maxmemory: 512,
        pcie_root_port: 3,
        enable_annotations: vec!["default_.*".into()],
        virtio_fs_cache: VirtioFsCache::Never,
        enable_debug: true,
    };
    assert_eq!(config.qemu, qemu);
    assert_eq!(
        config.agent,
        Agent {
            dial_timeout: Duration::from_secs(7),
            liveness_timeout: Duration::from_secs(9),
            enable_debug: true,
            debug_console_enabled: true
        }
    );
    assert_eq!(
        config.runtime,
        Runtime {
            enable_debug: true,
            enable_tracing: true,
            otlp_endpoint: "http://collector:4318/v1/traces".parse().unwrap(),
            internetworking_model: Internetworking::Macvtap,
            static_sandbox_resource_mgmt: true,
            debug_steps: Some("/d".into()),
        }
    );
}

#[test]
fn drop_ins_replace_single_keys_in_the_order_of_their_names() {
    let directory = directory(&[
        ("configuration.toml", "[hypervisor.qemu]\ndefault_memory = 100\ndefault_vcpus = 2\n"),
        ("config.d/20.toml", "[hypervisor.qemu]\ndefault_memory = 300\n"),
        ("config.d/10.toml", "[hypervisor.qemu]\ndefault_memory = 200\nkernel = \"/k\"\n"),
        ("config.d/30.toml.dpkg-old", "not toml"),
    ]);
    let config = load(None, &[directory.path().join("configuration.toml")]).unwrap();
    assert_eq!((config.qemu.default_memory, config.qemu.default_vcpus), (300, 2));
    assert_eq!(config.qemu.kernel, Some("/k".into()));
    let names: Vec<_> = config.sources.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["configuration.toml", "10.toml", "20.toml"]);
}

#[test]
fn a_guest_has_one_image() {
    let config = load_one("[hypervisor.qemu]\nimage = \"/d\"\nkernel_verity_params = \"root_hash=ab,salt=-\"").unwrap();
    assert_eq!(config.qemu.image, Some("/d".into()));
    assert_eq!(config.qemu.kernel_verity_params.as_deref(), Some("root_hash=ab,salt=-"));
    let empty = load_one("[hypervisor.qemu]\nimage = \"/d\"\nkernel_verity_params = \"\"").unwrap();
    assert_eq!(empty.qemu.kernel_verity_params, None);
    for (text, line) in [("image = \"/d\"\ninitrd = \"/i\"", 3), ("initrd = \"/i\"\n\nimage = \"/d\"", 4)] {
        let message = refusal(&format!("[hypervisor.qemu]\n{text}\n"));
        assert!(message.starts_with(&format!("{line}: `image` and `initrd` are both set")), "{message}");
    }
    let message = refusal("[hypervisor.qemu]\nkernel_verity_params = \"a=b\"\ninitrd = \"/i\"");
    assert!(message.starts_with("2: `kernel_verity_params` belong to an `image`"), "{message}");
    let message = refusal("[hypervisor.qemu]\nkernel_verity_params = \"a=b quiet\"");
    assert!(message.starts_with("2: `kernel_verity_params` must be root_hash="), "{message}");
    assert!(refusal("[hypervisor.qemu]\nimage = \"d\"").starts_with("2: `image` must be an absolute path"));
}

#[test]
fn a_later_image_replaces_the_earlier_one() {
    let base = "[hypervisor.qemu]\nimage = \"/d\"\nkernel_verity_params = \"a=b\"\n";
    let merged = |drop_in: &str| {
        let directory =
            directory(&[("configuration.toml", base), ("config.d/1.toml", &format!("[hypervisor.qemu]\n{drop_in}"))]);
        let qemu = load(None, &[directory.path().join("configuration.toml")]).map(|config| config.qemu);
        qemu.map(|qemu| (qemu.initrd, qemu.image, qemu.kernel_verity_params)).map_err(|error| error.to_string())
    };
    assert_eq!(merged("initrd = \"/i\"").unwrap(), (Some("/i".into()), None, None));
    assert_eq!(merged("image = \"/e\"").unwrap(), (None, Some("/e".into()), None), "they were another image's");
    let with_own = merged("kernel_verity_params = \"c=d\"").unwrap();
    assert_eq!(with_own, (None, Some("/d".into()), Some("c=d".into())));
    let error = merged("initrd = \"/i\"\nkernel_verity_params = \"c=d\"").unwrap_err();
    assert!(error.contains("1.toml:3: `kernel_verity_params` belong"), "{error}");
}

#[test]
fn the_first_existing_file_wins_and_only_its_drop_ins_count() {
    let first = directory(&[("config.d/a.toml", "[hypervisor.qemu]\ndefault_vcpus = 9\n")]);
    let second = directory(&[("configuration.toml", "[hypervisor.qemu]\ndefault_vcpus = 2\n")]);
    let third = directory(&[("configuration.toml", "[hypervisor.qemu]\ndefault_vcpus = 3\n")]);
    let searched = [&first, &second, &third].map(|directory| directory.path().join("configuration.toml"));
    assert_eq!(load(None, &searched).unwrap().qemu.default_vcpus, 2);
    assert_eq!(load(None, &searched[..1]).unwrap().qemu.default_vcpus, 9, "drop-ins without a file");
    let given = Some((searched[2].clone(), "named by the caller".to_owned()));
    assert_eq!(load(given, &searched).unwrap().qemu.default_vcpus, 3);
}

#[test]
fn a_named_file_must_exist() {
    let given = Some((PathBuf::from("/nowhere/c.toml"), "named by the caller".to_owned()));
    let error = load(given, &[]).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file /nowhere/c.toml (named by the caller)");
    assert!(error.source().unwrap().to_string().contains("No such file"));
}

#[test]
fn an_unknown_key_is_refused_with_line_and_choice() {
    let message = refusal("[runtime]\n\nenable_debgu = true\n");
    assert!(
        message.starts_with("3: ") && message.contains("`enable_debgu`") && message.contains("`enable_debug`"),
        "{message}"
    );
    let message = refusal("[hypervizor.qemu]\n");
    assert!(message.starts_with("1: ") && message.contains("`hypervizor`"), "{message}");
}

#[test]
fn an_upstream_key_is_refused_as_such() {
    assert_eq!(
        refusal("[hypervisor.qemu]\ndefault_vcpus = 1\nenable_iothreads = true\n"),
        "3: `enable_iothreads` is a key of upstream Kata that this version does not carry out; remove it"
    );
    for text in ["[hypervisor.clh]\npath = \"/c\"", "[hypervisor.qemu.factory]\nenable_template = true", "[factory]"] {
        assert!(refusal(text).contains("is a key of upstream Kata"), "{text}");
    }
}

#[test]
fn wrong_values_are_refused_with_key_line_and_expectation() {
    for (line, expected) in [
        ("path = \"qemu\"", "2: `path` must be an absolute path, not \"qemu\""),
        ("default_vcpus = 256", "2: `default_vcpus` must be 1 to 255 virtual CPUs, not 256"),
        ("machine_type = \"q35,smm=on\"", "2: `machine_type` must be the name of a QEMU machine"),
        ("kernel_params = \"a\\nb\"", "2: `kernel_params` must be one line"),
        ("default_memory = \"2G\"", "2: `default_memory`: invalid type: string"),
        ("virtio_fs_cache = \"none\"", "2: `virtio_fs_cache`: unknown variant `none`, expected one of `never`"),
        ("default_memory = 1\ndefault_vcpus = 1", "2: `default_memory` must be 64 to "),
    ] {
        let message = refusal(&format!("[hypervisor.qemu]\n{line}\n"));
        assert!(message.starts_with(expected), "{message}");
    }
    assert!(
        refusal("[agent.kata]\ndial_timeout = 0").starts_with("2: `dial_timeout` must be 1 to 3600 seconds, not 0")
    );
    let above = u64::from(host_memory_mib()) + 1;
    assert!(refusal(&format!("[hypervisor.qemu]\ndefault_memory = {above}")).contains("default_memory"));
    assert!(refusal("[runtime\n").starts_with("1: "), "a syntax error has its line");
}

#[test]
fn vcpus_of_zero_and_below_are_the_default_and_the_host() {
    assert_eq!(load_one("[hypervisor.qemu]\ndefault_vcpus = 0").unwrap().qemu.default_vcpus, 1);
    assert_eq!(load_one("[hypervisor.qemu]\ndefault_vcpus = -1").unwrap().qemu.default_vcpus, host_cpus());
}
