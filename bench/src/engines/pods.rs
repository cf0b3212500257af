//! Pods: one with two containers, and many at once.

use std::{
    thread,
    time::{Duration, Instant},
};

use engines::cri::{Node, Pod};
use sandbox::timeline::Timeline;
use serde_json::json;

use super::Samples;
use crate::{progress, report::Report};

const IDLE: [&str; 2] = ["sleep", "1000"];

/// Start and end of one pod at a time.
pub fn one(nodes: &[Node<'_>; 2], runs: u32, report: &mut Report) -> Result<(), String> {
    let mut samples: [Samples; 4] = Default::default();
    let mut phases = None;
    for run in 1..=runs {
        progress(&format!("pod {run} of {runs}"));
        for (which, node) in nodes.iter().enumerate() {
            let name = format!("{}-{run}", node.handler.name());
            let mut begun = Instant::now();
            let note = |samples: &mut Samples, since: &mut Instant| {
                samples.0[which].push(since.elapsed().as_secs_f64() * 1e3);
                *since = Instant::now();
            };
            let whole = begun;
            let pod = node.pod(&name, &json!({}));
            note(&mut samples[0], &mut begun);
            pod.run("one", &IDLE, &json!({}));
            pod.run("two", &IDLE, &json!({}));
            note(&mut samples[1], &mut begun);
            samples[2].0[which].push(whole.elapsed().as_secs_f64() * 1e3);
            if node.handler.is_kata() {
                phases = Some(timeline(&pod)?);
            }
            begun = Instant::now();
            pod.remove();
            note(&mut samples[3], &mut begun);
        }
    }
    let [sandbox, containers, whole, end] = &mut samples;
    whole.tell("pod with two containers", report);
    sandbox.tell("  of it the sandbox", report);
    containers.tell("  of it the containers", report);
    end.tell("stop and remove that pod", report);
    if let Some(timeline) = phases {
        report.phases("a pod's start", &timeline);
    }
    Ok(())
}

/// Where the time of a pod's start went.
fn timeline(pod: &Pod<'_>) -> Result<Timeline, String> {
    let directory = pod.node().engine.host.seen(format!("/run/kata-containers/shim/k8s.io/{}", pod.id));
    Timeline::load(&directory).map_err(|e| e.to_string())
}

/// Many pods of one container each, asked for at the same time.
pub fn burst(nodes: &[Node<'_>; 2], count: usize, bursts: u32, report: &mut Report) -> Result<(), String> {
    let (mut starts, mut ends) = (Samples::default(), Samples::default());
    for burst in 1..=bursts {
        for (which, node) in nodes.iter().enumerate() {
            progress(&format!("{count} pods of {} at once, {burst} of {bursts}", node.handler.name()));
            let (started, ended) = all(node, count)?;
            starts.0[which].push(started.as_secs_f64() * 1e3);
            ends.0[which].push(ended.as_secs_f64() * 1e3);
        }
    }
    starts.tell(&format!("{count} pods at once, until all run"), report);
    ends.tell(&format!("{count} pods stopped and removed"), report);
    Ok(())
}

fn all(node: &Node<'_>, count: usize) -> Result<(Duration, Duration), String> {
    let begun = Instant::now();
    let started: Vec<_> = thread::scope(|scope| {
        let start = |number: usize| {
            scope.spawn(move || {
                let pod = node.pod(&format!("burst-{}-{number}", node.handler.name()), &json!({}));
                pod.run("one", &IDLE, &json!({}));
                pod
            })
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    });
    let took = begun.elapsed();
    let pods: Vec<Pod<'_>> = started.into_iter().flatten().collect();
    if pods.len() < count {
        return Err(format!("only {} of {count} pods of {} came up; see above", pods.len(), node.handler.name()));
    }
    let begun = Instant::now();
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.remove());
        }
    });
    Ok((took, begun.elapsed()))
}
