//! What is run in the lab, and with what.

/// What the machine's kernel brings for virtual machines, beyond `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// The modules of vhost are loaded.
    Vhost,
    /// They do not exist, as on hosts whose kernel was built without.
    Plain,
}

impl Flavour {
    pub const ALL: [Self; 2] = [Self::Vhost, Self::Plain];

    pub fn name(self) -> &'static str {
        match self {
            Self::Vhost => "vhost",
            Self::Plain => "plain",
        }
    }

    /// Makes the machine one of this flavour.
    pub fn set_up(self) -> &'static str {
        match self {
            Self::Vhost => "modprobe -a vhost_net vhost_vsock",
            Self::Plain => {
                "rm -r /lib/modules/*/kernel/drivers/vhost && rm -f /dev/vhost-net /dev/vhost-vsock && depmod"
            }
        }
    }
}

/// Test programs whose cases are run together.
#[derive(Debug)]
pub struct Suite {
    /// The name by which it is chosen; that of the test program in its package.
    pub name: &'static str,
    /// The package that has it.
    pub package: &'static str,
    /// Which of its tests, as parts of their names. All of them if there are none.
    pub tests: &'static [&'static str],
    /// Those that are left out.
    pub skipped: &'static [&'static str],
    /// Where it is run.
    pub flavours: &'static [Flavour],
}

impl Suite {
    /// What its program is called in the machine: two packages may call theirs alike.
    pub fn program(&self) -> String {
        format!("{}-{}", self.package, self.name)
    }
}

const fn end_to_end(name: &'static str) -> Suite {
    Suite { name, package: "e2e", tests: &[], skipped: &[], flavours: &[Flavour::Vhost] }
}

/// All of them. Where only emulation is, the same programs are run by `make test`, except for what is KVM's alone.
pub const SUITES: &[Suite] = &[
    Suite { flavours: &Flavour::ALL, ..end_to_end("kvm") },
    Suite { flavours: &Flavour::ALL, ..end_to_end("run") },
    end_to_end("lifecycle"),
    end_to_end("systemd"),
    // An emulated guest of an emulated machine is hours over so many bytes.
    Suite { skipped: &["a_quarter_gibibyte"], ..end_to_end("stdio") },
    Suite { flavours: &Flavour::ALL, ..end_to_end("network") },
    end_to_end("shares"),
    end_to_end("hooks"),
    end_to_end("admin"),
    end_to_end("faults"),
    Suite {
        name: "suite",
        package: "engines",
        tests: &["ctr::run::", "ctr::life::", "cri::pods::"],
        // Other engines are not brought along, whatever words are given; and no more guests at once than its memory is for.
        skipped: &["docker::", "podman::", "containerd_1_6", "containerd_2_1", "twenty_at_once", "several_at_once"],
        flavours: &[Flavour::Vhost],
    },
    // Chosen together with the other one of its name.
    Suite { name: "faults", package: "engines", tests: &[], skipped: &[], flavours: &[Flavour::Vhost] },
];

/// What was asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    flavours: Vec<&'static str>,
    suites: Vec<&'static str>,
    /// Parts of tests' names; only these are run.
    pub tests: Vec<String>,
}

impl Choice {
    /// Words that are a flavour or a suite choose it; others choose tests.
    pub fn of(words: &[String]) -> Self {
        let mut choice = Self::default();
        for word in words {
            let flavour = Flavour::ALL.iter().find(|flavour| flavour.name() == word);
            let suite = SUITES.iter().find(|suite| suite.name == word);
            match (flavour, suite) {
                (Some(flavour), _) => choice.flavours.push(flavour.name()),
                (_, Some(suite)) => choice.suites.push(suite.name),
                _ => choice.tests.push(word.clone()),
            }
        }
        choice
    }

    /// What is to be run on a machine of this flavour. A suite that is named is run on each flavour that is.
    pub fn suites(&self, flavour: Flavour) -> Vec<&'static Suite> {
        let named = |names: &[&str], name: &str| names.is_empty() || names.contains(&name);
        let fits = |suite: &&Suite| !self.flavours.is_empty() || suite.flavours.contains(&flavour);
        let chosen = |suite: &&Suite| named(&self.suites, suite.name) && fits(suite);
        if named(&self.flavours, flavour.name()) { SUITES.iter().filter(chosen).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(words: &[&str], flavour: Flavour) -> (Vec<&'static str>, Vec<String>) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let choice = Choice::of(&words);
        (choice.suites(flavour).iter().map(|suite| suite.name).collect(), choice.tests)
    }

    #[test]
    fn words_choose_flavours_suites_and_tests() {
        let all: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        assert_eq!(chosen(&[], Flavour::Vhost), (all.clone(), vec![]));
        assert_eq!(chosen(&[], Flavour::Plain).0, ["kvm", "run", "network"]);
        // Who names the flavour has all suites on it, and none on the other.
        assert_eq!(chosen(&["plain"], Flavour::Plain).0, all);
        assert_eq!(chosen(&["plain"], Flavour::Vhost).0, Vec::<&str>::new());
        assert_eq!(chosen(&["run", "a_limit"], Flavour::Vhost), (vec!["run"], vec!["a_limit".to_owned()]));
        assert_eq!(chosen(&["stdio", "plain"], Flavour::Plain).0, ["stdio"]);
    }
}
