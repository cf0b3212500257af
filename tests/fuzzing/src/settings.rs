//! The configuration, and a pod's annotations to it.

use std::collections::BTreeMap;

use config::Config;

use crate::{bytes::Bytes, scratch::Scratch};

fn load(scratch: &Scratch, text: &[u8]) -> Result<Config, config::Error> {
    Config::load(Some(&scratch.file("configuration.toml", text)))
}

pub(crate) fn configuration(data: &[u8]) {
    let scratch = Scratch::new();
    match load(&scratch, data) {
        Ok(config) => {
            // The same text means the same, and every value can be explained.
            assert_eq!(format!("{config:?}"), format!("{:?}", load(&scratch, data).unwrap()));
            let explained = config.explain();
            assert!(explained.is_ok(), "{explained:?}");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("configuration.toml"), "it names no file: {text}");
            assert!(text.len() < 4096 + 4 * data.len(), "{} bytes of an error", text.len());
        }
    }
}

/// Keys of the host, which no pod may set.
fn of_the_host(config: &Config) -> String {
    let (qemu, runtime) = (&config.qemu, &config.runtime);
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        qemu.path,
        qemu.kernel,
        qemu.initrd,
        qemu.image,
        qemu.enable_annotations,
        runtime.enable_tracing,
        runtime.otlp_endpoint,
        runtime.debug_steps,
    )
}

pub(crate) fn annotations(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut config = Config::default();
    let allowed = usize::from(bytes.u8() % 4);
    config.qemu.enable_annotations = (0..allowed).map(|_| bytes.text()).collect();
    let mut annotations = BTreeMap::new();
    while !bytes.is_empty() && annotations.len() < 8 {
        let prefix =
            if bytes.u8() & 1 == 0 { "io.katacontainers.config.hypervisor." } else { "io.katacontainers.config." };
        annotations.insert(format!("{prefix}{}", bytes.text()), bytes.text());
    }
    let (before, given) = (config.clone(), annotations.len());
    match config.annotate(&annotations) {
        Ok(ignored) => {
            assert!(ignored.len() <= given);
            if ignored.len() == given {
                assert_eq!(format!("{config:?}"), format!("{before:?}"), "what is ignored has no effect");
            }
            assert_eq!(of_the_host(&config), of_the_host(&before), "a pod has set what is the host's");
            kept_text(&config, &annotations, ignored.len());
        }
        Err(error) => assert!(error.to_string().contains("io.katacontainers.config."), "{error}"),
    }
}

/// What is taken is taken as it was written.
fn kept_text(config: &Config, annotations: &BTreeMap<String, String>, ignored: usize) {
    let [(name, value)] = &annotations.iter().collect::<Vec<_>>()[..] else { return };
    if ignored == 0 && name.ends_with("hypervisor.kernel_params") {
        assert_eq!(&config.qemu.kernel_params, *value);
    }
    if ignored == 0 && name.ends_with("hypervisor.default_vcpus") {
        // 0 is the default.
        let meant =
            value.parse().map(|vcpus: u32| if vcpus == 0 { Config::default().qemu.default_vcpus } else { vcpus });
        assert_eq!(meant.ok(), Some(config.qemu.default_vcpus));
    }
}
