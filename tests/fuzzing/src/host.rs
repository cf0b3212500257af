//! What the host reads of the guest besides the channel, of QEMU, of containerd and of the kernel.

use hypervisor::printable;
use tokio::{io::AsyncWriteExt, net::UnixStream, runtime::Builder};

pub(crate) fn guest_text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for limit in [1, 40, 400] {
        let shown = printable(&text, limit);
        let is_plain = |c: char| c == '\n' || !(c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
        assert!(shown.chars().all(is_plain), "{shown:?}");
        assert!(shown.lines().all(|line| line.len() <= limit + 4 + 3), "{shown:?}");
        // What is fit to be shown stays as it is, but for the end of what was cut.
        if !shown.contains('…') {
            assert_eq!(printable(&shown, limit), shown);
        }
    }
    let figures = shim::monitor::of_guest(&text);
    for line in figures.lines() {
        let name = line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")).unwrap_or(line);
        assert!(name.starts_with("kata_agent_") || name.starts_with("kata_guest_"), "{line:?}");
    }
}

pub(crate) fn qmp(data: &[u8]) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let talking = async {
            // It has ended the conversation already if that fails.
            let _ = theirs.write_all(data).await;
            let _ = theirs.shutdown().await;
        };
        let (why, ()) = tokio::join!(hypervisor::qemu::converse(ours), talking);
        assert!(!why.is_empty());
    });
}

pub(crate) fn options(data: &[u8]) {
    if let Ok(options) = shim::options::Options::from_bytes(data) {
        let climbs = |path: &std::path::PathBuf| path.components().any(|part| part.as_os_str() == "..");
        assert!(options.config_path.is_none_or(|path| path.is_absolute()));
        assert!(options.shim_cgroup.is_none_or(|path| path.is_absolute() && !climbs(&path)));
    }
}

pub(crate) fn netlink(data: &[u8]) {
    fn walk(bytes: &[u8], depth: usize) -> usize {
        let mut seen = 0;
        for (_, value) in netlink::attributes(bytes) {
            seen += 4 + value.len();
            if depth < 4 {
                walk(value, depth + 1);
            }
        }
        assert!(seen <= bytes.len(), "more than there is");
        seen
    }
    walk(data, 0);
    let answer = netlink::Answer { kind: 16, payload: data.to_vec() };
    if let Some(link) = netlink::route::link(&answer) {
        assert!(link.name.len() <= 3 * data.len());
    }
}
