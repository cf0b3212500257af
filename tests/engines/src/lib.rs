//! What the tests of the engines share: engines on machines of their own, images, and cases that are run through two runtimes.
//!
//! `scripts/engines.sh` (part of `make test`) unpacks the engines. A *case* is a function that drives one of them and tells what it
//! observed. It is run through runc's runtime first: what it asserts must hold there. Where the shim is staged, it is run through ours
//! next, and what was observed must be the same, but for what [`DIFFERENCES`] names with a reason. After each run the machine must be as
//! it was.
//!
//! `KATA_ENGINES=runc` (or `kata`) leaves the other runtime out. Every case is run with containerd 1.7 or Docker 28; with the others only
//! what could differ there ([`EVERYWHERE`], [`DOCKER_26`]), unless `KATA_ENGINES_VERSIONS=all`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod client;
pub mod commands;
pub mod containerd;
pub mod cri;
mod differences;
pub mod docker;
pub mod grpc;
pub mod host;
pub mod images;
pub mod names;
pub mod outcome;
pub mod podman;
pub mod proto;
pub mod registry;
pub mod stream;
pub mod terminal;
mod wait;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
};

pub use client::Client;
pub use containerd::{Containerd, Version};
pub use differences::DIFFERENCES;
pub use docker::{Docker, Door, Release};
pub use podman::Podman;
use serde_json::Value;
pub use wait::{seen, wait_until};

/// A runtime of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// The reference.
    Runc,
    /// Ours.
    Kata,
}

impl Handler {
    /// Its type, as containerd names it.
    pub fn runtime(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Kata => "io.containerd.kata.v2",
        }
    }

    /// Its name in Kubernetes and Docker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Kata => "kata",
        }
    }

    /// Whether it is ours.
    pub fn is_kata(self) -> bool {
        self == Self::Kata
    }
}

/// Where our programs are, if the shim is among them.
pub fn kata_programs() -> Option<PathBuf> {
    let programs = e2e::stage_directory().join("bin");
    programs.join("containerd-shim-kata-v2").exists().then_some(programs)
}

/// The runtimes that a case is to be run through.
pub fn handlers() -> Vec<Handler> {
    let only = env::var("KATA_ENGINES").ok();
    let wanted = |handler: &Handler| only.as_deref().is_none_or(|only| only == handler.name());
    let mut handlers = vec![Handler::Runc, Handler::Kata];
    handlers.retain(wanted);
    assert!(!handlers.is_empty(), "KATA_ENGINES is {only:?}; expected runc or kata");
    if kata_programs().is_none() {
        eprintln!("skipped with kata: the stage has no containerd-shim-kata-v2");
        handlers.retain(|handler| *handler == Handler::Runc);
    }
    handlers
}

/// What is run with every version of containerd: whatever depends on what a version asks of a shim, and how. A name stands for all that begin so.
pub const EVERYWHERE: &[&str] = &[
    "ctr::daemon::",
    "ctr::life::",
    "ctr::files::overlayfs",
    "ctr::files::blockfile",
    "ctr::files::erofs",
    "ctr::files::output_to_a",
    "ctr::run::output_and_code",
    "ctr::run::input_reaches_the_end",
    "ctr::run::terminal",
    "cri::pods::a_pod_with_one_container",
    "cri::pods::containers_share_what_the_pod_is",
    "cri::pods::containerd_comes_back",
    "cri::pods::the_shim_is_killed",
    "cri::sandboxer::",
    "cri::streams::",
    "cri::limits::out_of_memory",
    "cri::limits::an_update_in_place",
];

fn is_run_with(version: Version, name: &str) -> bool {
    version == Version::V1_7 || EVERYWHERE.iter().any(|everywhere| name.starts_with(everywhere)) || is_everything_run()
}

/// A case for containerd.
pub type Case = fn(&Containerd, Handler) -> Value;

/// Runs a case through each runtime and compares what was observed.
#[track_caller]
pub fn compare(version: Version, name: &str, case: Case) {
    compare_configured(version, "", name, case);
}

/// The same on a containerd with more configuration.
#[track_caller]
pub fn compare_configured(version: Version, settings: &str, name: &str, case: Case) {
    if !is_run_with(version, name) {
        eprintln!("skipped with {version:?}: {name} is run with 1.7 only; KATA_ENGINES_VERSIONS=all runs all");
        return;
    }
    compare_on(name, |_| Containerd::configured(version, settings), case);
}

/// What is run with Docker 26 as well as with 28: what they ask of a shim differently, which is how a container comes by its network.
pub const DOCKER_26: &[&str] =
    &["docker::network::", "docker::run::output_and_code", "docker::life::exec", "docker::shared::the_first"];

/// The same on Docker.
#[track_caller]
pub fn compare_docker(release: Release, name: &str, case: docker::Case) {
    if release == Release::V26 && !DOCKER_26.iter().any(|some| name.starts_with(some)) && !is_everything_run() {
        eprintln!("skipped with {release:?}: {name} is run with 28 only; KATA_ENGINES_VERSIONS=all runs all");
        return;
    }
    compare_on(name, |_| Docker::start(release, Door::Shim), case);
}

fn is_everything_run() -> bool {
    env::var_os("KATA_ENGINES_VERSIONS").is_some_and(|versions| versions == "all")
}

/// What Docker 20.10 is driven through by the runtime's path in `make test`; `make docker` runs everything, on all releases.
pub const BY_PATH: &[&str] = &["docker::run::output_and_code", "docker::life::exec", "docker::network::bridge"];

/// The same on a Docker that calls the runtime by its path.
#[track_caller]
pub fn compare_docker_by_path(release: Release, name: &str, case: docker::Case) {
    if !is_everything_run() && (release != Release::V20 || !BY_PATH.contains(&name)) {
        eprintln!("skipped by path with {release:?}: {name}; `make docker` runs all");
        return;
    }
    compare_on(&format!("by path: {name}"), |_| Docker::start(release, Door::Path), case);
}

/// What is run with Podman unless `KATA_ENGINES_VERSIONS=all`: what a container is given, what looks at its process, pods, and deaths.
pub const PODMAN: &[&str] = &[
    "podman::run::podman::output_and_code",
    "podman::life::podman::copied_files",
    "podman::pods::podman::a_pod",
    "podman::deaths::podman::one_after_another",
];

/// The same on Podman.
#[track_caller]
pub fn compare_podman(name: &str, case: podman::Case) {
    if !PODMAN.contains(&name) && !is_everything_run() {
        eprintln!("skipped: {name} is run by `make podman`, or with KATA_ENGINES_VERSIONS=all");
        return;
    }
    compare_on(name, Podman::start, case);
}

/// What a case is run on.
trait Engine {
    fn host(&self) -> &host::Host;
    fn log(&self) -> String;
}

impl Engine for Containerd {
    fn host(&self) -> &host::Host {
        &self.host
    }

    fn log(&self) -> String {
        self.log()
    }
}

impl Engine for Docker {
    fn host(&self) -> &host::Host {
        &self.host
    }

    fn log(&self) -> String {
        Client::log(self)
    }
}

impl Engine for Podman {
    fn host(&self) -> &host::Host {
        &self.host
    }

    fn log(&self) -> String {
        Client::log(self)
    }
}

#[track_caller]
fn compare_on<E: Engine>(name: &str, start: impl Fn(Handler) -> E, case: fn(&E, Handler) -> Value) {
    let mut seen: Option<Value> = None;
    for handler in handlers() {
        let engine = start(handler);
        let before = engine.host().traces();
        let mut observed = panic::catch_unwind(AssertUnwindSafe(|| {
            let observed = case(&engine, handler);
            // A killed shim of runc leaves its socket, and under containerd 2.1 the container runs on; without its monitor under Podman it
            // may, too, and keeps its groups. That is runc's business.
            let kills = ["the_shim_is_killed", "podman::deaths::podman::killed"].iter().any(|end| name.ends_with(end));
            let runcs = |_: &str| !handler.is_kata() && kills;
            engine.host().expect_traces(&before, runcs);
            observed
        }))
        .unwrap_or_else(|reason| {
            eprintln!("{name} with {} failed; the engine's log ends:\n{}", handler.name(), engine.log());
            panic::resume_unwind(reason);
        });
        differences::leave_out(name, &mut observed);
        match &seen {
            None => seen = Some(observed),
            Some(reference) => assert_eq!(observed, *reference, "{name}: ours is the first, runc's the second"),
        }
    }
}

/// Makes each named function of its module a test for each version: `MODULE::CASE::containerd_1_7`.
#[macro_export]
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        $($crate::versions! { $case: containerd_1_6 V1_6, containerd_1_7 V1_7, containerd_2_1 V2_1 })*
    };
}

/// Makes a function a test for the named versions.
#[macro_export]
macro_rules! versions {
    ($case:ident: $($test:ident $version:ident),*) => {
        mod $case {
            $(
                #[test]
                fn $test() {
                    let path = module_path!();
                    let name = path.split_once("::").map_or(path, |(_, name)| name);
                    $crate::compare($crate::Version::$version, name, super::$case);
                }
            )*
        }
    };
}

/// Makes each named function of its module a test for each version of Docker: `MODULE::CASE::docker_26`.
#[macro_export]
macro_rules! docker_cases {
    ($($case:ident),* $(,)?) => {
        $(
            mod $case {
                $crate::docker_cases! { @test $case docker_26 V26 compare_docker }
                $crate::docker_cases! { @test $case docker_28 V28 compare_docker }
                $crate::docker_cases! { @test $case docker_20_by_path V20 compare_docker_by_path }
                $crate::docker_cases! { @test $case docker_26_by_path V26 compare_docker_by_path }
                $crate::docker_cases! { @test $case docker_28_by_path V28 compare_docker_by_path }
            }
        )*
    };
    (@test $case:ident $test:ident $release:ident $compare:ident) => {
        #[test]
        fn $test() {
            let path = module_path!();
            let name = path.split_once("::").map_or(path, |(_, name)| name);
            $crate::$compare($crate::Release::$release, name, super::$case);
        }
    };
}

/// Makes each named function of its module a test for Podman: `MODULE::CASE`.
#[macro_export]
macro_rules! podman_cases {
    ($($case:ident),* $(,)?) => {
        mod podman {
            $(
                #[test]
                fn $case() {
                    let path = module_path!();
                    let name = path.split_once("::").map_or(path, |(_, name)| name);
                    $crate::compare_podman(&format!("{name}::{}", stringify!($case)), super::$case);
                }
            )*
        }
    };
}
