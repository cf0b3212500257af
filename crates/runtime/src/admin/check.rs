//! `check`: what this host can do, by trying it where that can be done without leaving anything behind; and the remedy for what it cannot.

pub(super) mod host;
mod product;

use std::process::ExitCode;

use config::Config;
use serde::Serialize;

use super::json;
use crate::{
    Error, Result,
    cli::{Context, output},
};

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is as it should be.
    Works(String),
    /// Containers run, but slower or with less.
    Lacks {
        /// What is the matter.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// No container runs.
    Fails {
        /// What is the matter.
        found: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Verdict {
    fn works(found: impl Into<String>) -> Self {
        Self::Works(found.into())
    }

    fn lacks(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Lacks { found: found.into(), remedy: remedy.into() }
    }

    fn fails(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Fails { found: found.into(), remedy: remedy.into() }
    }
}

/// Whose business a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// The machine and its kernel.
    Host,
    /// What is installed and configured on it, and who asks.
    Product,
}

/// A check.
struct Check {
    name: &'static str,
    of: Of,
    /// What is looked at.
    what: &'static str,
    run: fn(&Subject) -> Verdict,
}

/// What is checked.
pub(crate) struct Subject {
    /// As it is; or why it cannot be read.
    config: std::result::Result<Config, String>,
}

impl Subject {
    /// The configuration, or what would hold without one that cannot be read.
    fn config(&self) -> Config {
        self.config.clone().unwrap_or_default()
    }
}

const CHECKS: &[Check] = &[
    Check { name: "cpu", of: Of::Host, what: "the processor's architecture", run: host::cpu },
    Check { name: "kernel", of: Of::Host, what: "the host's kernel is new enough", run: host::kernel },
    Check { name: "kvm", of: Of::Host, what: "a guest's code runs on /dev/kvm", run: host::kvm },
    Check { name: "memory", of: Of::Host, what: "there is memory for a guest", run: host::memory },
    Check { name: "cgroups", of: Of::Host, what: "sandboxes can be accounted for", run: host::cgroups },
    Check { name: "seccomp", of: Of::Host, what: "system calls of the helpers can be filtered", run: host::seccomp },
    Check { name: "tap", of: Of::Host, what: "an interface can be passed on to a guest", run: host::tap },
    Check { name: "vhost-net", of: Of::Host, what: "the kernel carries guests' frames", run: host::vhost_net },
    Check { name: "vhost-vsock", of: Of::Host, what: "the other way to the agent", run: host::vhost_vsock },
    Check { name: "user-namespaces", of: Of::Host, what: "users without root can run containers", run: host::users },
    Check { name: "privilege", of: Of::Product, what: "who asks may start containers", run: product::privilege },
    Check {
        name: "configuration",
        of: Of::Product,
        what: "the configuration can be read",
        run: product::configuration,
    },
    Check { name: "qemu", of: Of::Product, what: "QEMU is there, and new enough", run: product::qemu },
    Check { name: "guest-kernel", of: Of::Product, what: "the guest's kernel is there", run: product::guest_kernel },
    Check {
        name: "guest-image",
        of: Of::Product,
        what: "the guest's image is there, and fits",
        run: product::guest_image,
    },
    Check { name: "virtio-fs", of: Of::Product, what: "the file server starts in its jail", run: product::virtio_fs },
    Check { name: "passt", of: Of::Product, what: "passt is there, if it is asked for", run: product::passt },
    Check { name: "shim", of: Of::Product, what: "containerd finds its shim", run: product::shim },
];

/// How a check went.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    name: &'static str,
    /// `works`, `lacks` or `fails`.
    pub verdict: &'static str,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    #[serde(skip)]
    of_host: bool,
}

impl Outcome {
    fn new(check: &Check, verdict: Verdict) -> Self {
        let (verdict, found, remedy) = match verdict {
            Verdict::Works(found) => ("works", found, None),
            Verdict::Lacks { found, remedy } => ("lacks", found, Some(remedy)),
            Verdict::Fails { found, remedy } => ("fails", found, Some(remedy)),
        };
        Self { name: check.name, verdict, found, remedy, of_host: check.of == Of::Host }
    }

    fn is_bad(&self, strict: bool) -> bool {
        self.verdict == "fails" || (strict && self.verdict == "lacks")
    }
}

/// Runs these checks, or all.
pub(crate) fn run(context: &Context, names: &[String]) -> Vec<Outcome> {
    let config = Config::load(context.config_file.as_deref()).map_err(|error| sandbox::chain(&error));
    let subject = Subject { config };
    let chosen = CHECKS.iter().filter(|check| names.is_empty() || names.iter().any(|name| name == check.name));
    chosen.map(|check| Outcome::new(check, (check.run)(&subject))).collect()
}

#[derive(Serialize)]
struct Report<'a> {
    capable: bool,
    can_create: bool,
    checks: &'a [Outcome],
}

/// `check`.
pub(crate) fn check(context: &Context, names: &[String], strict: bool, as_json: bool) -> Result<ExitCode> {
    let names = match names {
        [all] if all == "all" => &[],
        [list] if list == "list" => return output(context, &list_of(CHECKS)),
        names => names,
    };
    if let Some(unknown) = names.iter().find(|name| CHECKS.iter().all(|check| check.name != **name)) {
        let known: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        return Err(Error::refused(format!("there is no check {unknown:?}; there are {}", known.join(", "))));
    }
    let outcomes = run(context, names);
    let (capable, can_create) = verdicts(&outcomes, strict);
    if as_json {
        output(context, &json(&Report { capable, can_create, checks: &outcomes })?)?;
    } else {
        output(context, &(lines(&outcomes) + &conclusion(capable, can_create)))?;
    }
    Ok(if capable && can_create { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the host is capable, and whether containers can be created now.
pub(crate) fn verdicts(outcomes: &[Outcome], strict: bool) -> (bool, bool) {
    let good = |of_host: bool| !outcomes.iter().any(|outcome| outcome.of_host == of_host && outcome.is_bad(strict));
    (good(true), good(true) && good(false))
}

/// The words that scripts look for.
pub(crate) fn conclusion(capable: bool, can_create: bool) -> String {
    let capable = if capable { "System is capable of" } else { "System is not capable of" };
    let create = if can_create { "System can currently create" } else { "System cannot currently create" };
    format!("{capable} running Kata Containers\n{create} Kata Containers\n")
}

fn list_of(checks: &[Check]) -> String {
    checks.iter().map(|check| format!("{:<16} {}\n", check.name, check.what)).collect()
}

/// A line for each, and one for its remedy.
pub(crate) fn lines(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for Outcome { name, verdict, found, remedy, .. } in outcomes {
        text.push_str(&format!("{verdict:<6} {name:<16} {found}\n"));
        if let Some(remedy) = remedy {
            text.push_str(&format!("{:<23} remedy: {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(verdicts: [Verdict; 2]) -> Vec<Outcome> {
        let checks = [&CHECKS[0], &CHECKS[12]];
        checks.into_iter().zip(verdicts).map(|(check, verdict)| Outcome::new(check, verdict)).collect()
    }

    #[test]
    fn a_lack_counts_only_in_earnest_and_the_host_is_told_from_what_is_installed() {
        let lacking = outcomes([Verdict::lacks("slow", "be quick"), Verdict::works("here")]);
        assert_eq!((verdicts(&lacking, false), verdicts(&lacking, true)), ((true, true), (false, false)));
        let failing = outcomes([Verdict::works("x86_64"), Verdict::fails("gone", "install it")]);
        assert_eq!(verdicts(&failing, false), (true, false));
        assert_eq!(
            lines(&failing) + &conclusion(true, false),
            "works  cpu              x86_64\n\
             fails  qemu             gone\n                        remedy: install it\n\
             System is capable of running Kata Containers\n\
             System cannot currently create Kata Containers\n"
        );
    }

    #[test]
    fn names_are_unique_and_listed() {
        let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(list_of(CHECKS).lines().count(), names.len());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }
}
