//! The configuration that the kernel made of what was wanted, and what did not survive.

use std::{collections::HashMap, fmt, path::Path};

use crate::{Error, files, fragment::Place, kconfig::Kconfig, merge::Config, version::Version};

/// A kernel's `.config`.
#[derive(Debug)]
pub(crate) struct DotConfig {
    values: HashMap<String, String>,
}

impl DotConfig {
    /// Reads it.
    pub(crate) fn read(path: &Path) -> Result<DotConfig, Error> {
        Ok(DotConfig::parse(&files::text(path)?))
    }

    pub(crate) fn parse(text: &str) -> DotConfig {
        let setting = |line: &str| {
            let (option, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            Some((option.to_string(), value.to_string()))
        };
        DotConfig { values: text.lines().filter_map(setting).collect() }
    }

    /// The value of an option; `n` if it has none.
    pub(crate) fn value(&self, option: &str) -> &str {
        self.values.get(option).map_or("n", String::as_str)
    }

    pub(crate) fn is_on(&self, option: &str) -> bool {
        self.value(option) == "y"
    }

    /// How many options are on.
    pub(crate) fn count(&self) -> usize {
        self.values.values().filter(|value| *value == "y").count()
    }

    /// Checks that everything that was wanted is there, and otherwise says of each option why it may be missing.
    pub(crate) fn check(&self, config: &Config, version: &Version, tree: &Path, folder: &str) -> Result<(), Error> {
        let lost = config.wanted.iter().filter(|wanted| self.value(&wanted.option) != wanted.value);
        let lost: Vec<_> = lost.collect();
        if lost.is_empty() {
            return Ok(());
        }
        // Reading the thousand files that define the options takes a moment, so only when there is something to explain.
        let kconfig = Kconfig::of_tree(tree, folder);
        let describe = |wanted: &&crate::fragment::Wanted| Lost {
            option: wanted.option.clone(),
            wanted: wanted.value.clone(),
            actual: self.value(&wanted.option).to_string(),
            place: wanted.place.clone(),
            why: kconfig.why_not(&wanted.option, &wanted.value, self),
        };
        Err(Error::Lost { version: version.full.clone(), lost: lost.iter().map(describe).collect() })
    }
}

/// An option that the kernel did not take as it was wanted.
#[derive(Debug)]
pub struct Lost {
    option: String,
    wanted: String,
    actual: String,
    place: Place,
    why: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lost { option, wanted, actual, place, why } = self;
        write!(f, "{place}: CONFIG_{option} should be {wanted}, but is {actual}")?;
        why.as_ref().map_or(Ok(()), |why| write!(f, "; {why}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{fragment::Wanted, fragment::tests::fragment};

    #[test]
    fn what_did_not_survive_is_listed_with_its_place_and_a_reason() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("Kconfig"), "config A\n\tbool \"a\"\n\tdepends on B\nconfig B\n\tbool \"b\"\n")
            .unwrap();
        let text = "CONFIG_A=y\nCONFIG_C=n\nCONFIG_D=\"x\"\nCONFIG_E=4\nCONFIG_F=n\n";
        let wanted: Vec<Wanted> =
            fragment("a.conf", text).of("6.12".parse().unwrap(), crate::Arch::X86_64).cloned().collect();
        let config = Config { wanted };
        let version = Version { series: "6.12".parse().unwrap(), full: "6.12.1".into() };
        let actual = DotConfig::parse("# CONFIG_B is not set\nCONFIG_D=\"x\"\nCONFIG_E=5\nCONFIG_F=y\n");
        assert_eq!(actual.count(), 1);
        let Err(Error::Lost { lost, .. }) = actual.check(&config, &version, tree.path(), "x86") else { panic!() };
        let lost: Vec<String> = lost.iter().map(Lost::to_string).collect();
        let expected = [
            "a.conf:1: CONFIG_A should be y, but is n; it depends on B (B=n)",
            "a.conf:4: CONFIG_E should be 4, but is 5; this kernel has no such option: it may have another name",
            "a.conf:5: CONFIG_F should be n, but is y; this kernel has no such option: it may have another name",
        ];
        assert_eq!(lost, expected);
        let good = DotConfig::parse("CONFIG_A=y\nCONFIG_B=y\nCONFIG_D=\"x\"\nCONFIG_E=4\n");
        good.check(&config, &version, tree.path(), "x86").unwrap();
    }
}
