//! The suites: where their cases are, and how some of them are run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use engines::host::Host;

use crate::podman;

/// Gives the shell command that runs a case: the file, the case. It begins in the suite's own directory and writes what the Test Anything
/// Protocol says. Each is run by itself: the means of the suites to end one that hangs disturb others.
type Command = fn(&str, &str) -> String;

/// A suite.
pub struct Suite {
    pub name: &'static str,
    /// The runtime that it was written for.
    pub control: &'static str,
    /// Where its files are, and what their names begin and end with.
    place: &'static str,
    frame: (&'static str, &'static str),
    /// Gives the name of the case that a line begins.
    case: fn(&str) -> Option<&str>,
    command: Command,
    /// The variables that name the runtime, and what is built for the suite.
    environment: fn(&Path) -> String,
    /// What its machine has besides.
    pub prepare: fn(&Host),
    /// How long a case may take.
    pub limit: Duration,
}

/// What `scripts/conformance.sh` fetched.
pub fn directory() -> PathBuf {
    let directory = e2e::cache().join("conformance");
    assert!(directory.join(".recipe").exists(), "there is no {}; run scripts/conformance.sh", directory.display());
    directory
}

pub const RUNC: Suite = Suite {
    name: "runc",
    control: "runc",
    place: "tests/integration",
    frame: ("", ".bats"),
    case: bats_case,
    command: |file, case| format!("bats --formatter tap -f {} tests/integration/{file}.bats", quote(&pattern(case))),
    environment: |runtime| format!("export RUNC={}", runtime.display()),
    prepare: |_| (),
    limit: Duration::from_secs(150),
};

pub const CRUN: Suite = Suite {
    name: "crun",
    control: "crun",
    place: "tests",
    frame: ("test_", ".py"),
    // The dictionary of cases: `    "mount-ro" : test_mount_ro,`.
    case: |line| {
        line.strip_prefix("    \"")?
            .split_once('"')
            .filter(|(_, rest)| rest.trim_start().starts_with(": test_"))
            .map(|(name, _)| name)
    },
    command: |file, case| format!("env RUN_TESTS={} python3 tests/test_{file}.py </dev/null", quote(case)),
    environment: |runtime| format!("export OCI_RUNTIME={} INIT=$PWD/tests/init", runtime.display()),
    prepare: |_| (),
    limit: Duration::from_secs(150),
};

pub const PODMAN: Suite = Suite {
    name: "podman",
    control: "runc",
    place: "test/system",
    frame: ("", ".bats"),
    case: bats_case,
    command: |file, case| format!("bats --formatter tap -f {} test/system/{file}.bats", quote(&pattern(case))),
    environment: podman::environment,
    prepare: podman::prepare,
    limit: Duration::from_secs(400),
};

/// The case that a line of bats begins.
fn bats_case(line: &str) -> Option<&str> {
    line.strip_prefix("@test \"")?.trim_end().strip_suffix("\" {").map(str::trim_end)
}

/// The regular expression for this name and no other.
fn pattern(case: &str) -> String {
    let escaped: String =
        case.chars().flat_map(|c| if r".[]{}()*+?^$|\".contains(c) { vec!['\\', c] } else { vec![c] }).collect();
    format!("^{escaped} *$")
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

impl Suite {
    /// The shell script that runs cases of a file.
    pub fn script(&self, runtime: &Path, file: &str, cases: &[String]) -> String {
        let mut script = (self.environment)(runtime);
        for case in cases {
            // Not in a group of its own, which could not read from the terminal. What it leaves behind ends with the machine.
            script += &format!("\ntimeout --foreground -k 5 {} {}", self.limit.as_secs(), (self.command)(file, case));
        }
        script
    }

    /// How a case is called in the report: a shell has read the name, and knows none of the variables in it.
    pub fn reported(case: &str) -> String {
        let mut parts = case.split('$');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |all, part| all + part.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_'))
    }

    /// Its files, without what all names begin and end with.
    pub fn files(&self) -> Vec<String> {
        let directory = directory().join(self.name).join(self.place);
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let (before, after) = self.frame;
        let mut files: Vec<String> =
            names.filter_map(|name| Some(name.strip_prefix(before)?.strip_suffix(after)?.to_owned())).collect();
        files.sort();
        files
    }

    /// The cases of a file, in its order.
    pub fn cases(&self, file: &str) -> Vec<String> {
        let (before, after) = self.frame;
        let path = directory().join(self.name).join(self.place).join(format!("{before}{file}{after}"));
        fs::read_to_string(path).unwrap().lines().filter_map(self.case).map(|name| name.replace("\\\"", "\"")).collect()
    }
}

#[test]
fn names_are_taken_literally() {
    assert_eq!(bats_case("@test \"runc run [ro tmpfs mount]\" {"), Some("runc run [ro tmpfs mount]"));
    assert_eq!(pattern("a [b] ^c"), "^a \\[b\\] \\^c *$");
    assert_eq!(Suite::reported("pod new:$POD --x"), "pod new: --x");
    assert_eq!(bats_case("@test \"no /etc/mtab \" {"), Some("no /etc/mtab"));
    assert_eq!((CRUN.case)("    \"mount-ro\" : test_mount_ro,"), Some("mount-ro"));
    assert_eq!((CRUN.case)("    \"type\" : \"mount\","), None);
}
