//! What programs in a pod get of files that the host shares with it, and of the network: `bench/probe`, run in a pod of each runtime.

use std::{
    fs,
    path::{Path, PathBuf},
};

use engines::{
    Handler,
    cri::{Node, Pod, number},
};
use serde_json::json;

use super::Samples;
use crate::{progress, report::Report};

/// Where the probe's files are on the engine's machine: in memory, so that no disk is measured.
const FILES: &str = "/run/bench";
/// Sizes of the probe's blocks, as it names its files, and how many of them each file has. An emulated guest takes a millisecond for one.
const BLOCKS: [(usize, usize); 2] = [(4 << 10, 1024), (1 << 20, 32)];
/// Files that are asked for, and made.
const SMALL_FILES: usize = 200;
const PORT: u16 = 5201;

/// What is to be measured.
#[derive(Clone, Copy)]
pub struct What {
    /// Reads, writes and names of files.
    pub files: bool,
    /// Streams and requests.
    pub network: bool,
}

/// Builds the probe.
pub fn probe() -> Result<PathBuf, String> {
    progress("building the probe");
    e2e::static_program("kata-probe")
}

/// Measures both pods against a server in a third one, which is runc's.
pub fn measure(nodes: &[Node<'_>; 2], probe: &Path, what: What, runs: u32, report: &mut Report) -> Result<(), String> {
    let engine = nodes[0].engine;
    let programs = engine.host.directory().join("probe");
    fs::create_dir(&programs).and_then(|()| fs::copy(probe, programs.join("kata-probe"))).map_err(failed(&programs))?;
    engine.host.sh(&format!("mkdir -p {FILES}/kata {FILES}/runc"));

    let pods: Vec<(Pod<'_>, String)> = nodes.iter().map(|node| idle(node, node.handler.name(), &programs)).collect();
    let runc = nodes.iter().find(|node| node.handler == Handler::Runc).ok_or("runc is not among the runtimes")?;
    let (server, address) = serve(runc, &programs)?;
    let mut measured: Vec<(String, Samples)> = Vec::new();
    // The first fills caches with the probe itself.
    for run in 0..=runs {
        progress(&format!("files and network, {run} of {runs}"));
        for (which, (node, (_, container))) in nodes.iter().zip(&pods).enumerate() {
            let mut lines = String::new();
            if what.files {
                let directory = node.handler.name();
                fill(&engine.host.seen(FILES).join(directory))?;
                lines += &ask(node, container, &["files", "/files"])?;
            }
            if what.network {
                lines += &ask(node, container, &["network", &address])?;
            }
            if run > 0 {
                note(&lines, which, &mut measured)?;
            }
        }
    }
    measured.iter_mut().for_each(|(name, samples)| samples.tell(name, report));
    pods.into_iter().for_each(|(pod, _)| pod.remove());
    server.remove();
    Ok(())
}

/// A pod that waits to be asked for measurements.
fn idle<'a>(node: &'a Node<'a>, directory: &str, programs: &Path) -> (Pod<'a>, String) {
    let pod = node.pod(&format!("inside-{directory}"), &json!({}));
    let mounts = json!({"mounts": [
        {"container_path": "/probe", "host_path": programs, "readonly": true},
        {"container_path": "/files", "host_path": format!("{FILES}/{directory}")},
    ]});
    let container = pod.run("probe", &["sleep", "100000"], &mounts);
    (pod, container)
}

fn serve<'a>(node: &'a Node<'a>, programs: &Path) -> Result<(Pod<'a>, String), String> {
    let pod = node.pod("server", &json!({}));
    let mounts = json!({"mounts": [{"container_path": "/probe", "host_path": programs, "readonly": true}]});
    pod.run("server", &["/probe/kata-probe", "serve", &format!("0.0.0.0:{PORT}")], &mounts);
    let addresses = pod.addresses();
    let address = addresses.iter().find(|address| address.contains('.')).ok_or("the server has no IPv4 address")?;
    let address = format!("{address}:{PORT}");
    Ok((pod, address))
}

/// Fills a directory anew, so that no guest has anything of it in its caches.
fn fill(directory: &Path) -> Result<(), String> {
    let failed = failed(directory);
    for entry in fs::read_dir(directory).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(&failed)?;
    }
    for (size, count) in BLOCKS {
        let content = vec![b'h'; size * count];
        for kind in ["in-sequential", "in-random", "over"] {
            fs::write(directory.join(format!("{kind}-{size}")), &content).map_err(&failed)?;
        }
    }
    let small = directory.join("small");
    fs::create_dir(&small).map_err(&failed)?;
    (0..SMALL_FILES).try_for_each(|number| fs::write(small.join(number.to_string()), "small")).map_err(&failed)
}

fn failed(at: &Path) -> impl Fn(std::io::Error) -> String {
    let at = at.display().to_string();
    move |error| format!("prepare {at}: {error}")
}

fn ask(node: &Node<'_>, container: &str, arguments: &[&str]) -> Result<String, String> {
    let failed = |problem: &str| format!("kata-probe {arguments:?} in the pod of {}: {problem}", node.handler.name());
    let command = [&["/probe/kata-probe"], arguments].concat();
    let request = json!({"container_id": container, "cmd": command, "timeout": e2e::DEADLINE.as_secs() - 10});
    let answer = node.call("ExecSync", &request).map_err(|failure| failed(&failure.to_string()))?;
    let text = |name: &str| answer[name].as_str().unwrap_or_default();
    if number(&answer["exit_code"]) == 0 {
        return Ok(text("stdout").into());
    }
    Err(failed(text("stderr")))
}

/// Takes down the probe's lines: microseconds for one unit.
fn note(lines: &str, which: usize, measured: &mut Vec<(String, Samples)>) -> Result<(), String> {
    for line in lines.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, nanoseconds, units] = fields[..] else { return Err(format!("the probe says {line:?}")) };
        let number = |text: &str| text.parse::<f64>().map_err(|e| format!("the probe says {line:?}: {e}"));
        let each = number(nanoseconds)? / number(units)?.max(1.0) / 1e3;
        let place = match measured.iter().position(|(known, _)| known == name) {
            Some(place) => place,
            None => {
                measured.push((name.into(), Samples::default()));
                measured.len() - 1
            }
        };
        measured[place].1.0[which].push(each);
    }
    Ok(())
}
