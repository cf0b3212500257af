//! Many fragments, one configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    Arch, Error, console, files,
    fragment::{Fragment, Wanted},
    version::Series,
};

/// All fragments for one architecture.
#[derive(Debug)]
pub(crate) struct Fragments {
    /// The project's: the common ones and the architecture's.
    common: Vec<Fragment>,
    /// The user's own, which win over the others.
    own: Vec<Fragment>,
}

impl Fragments {
    /// Reads `*.conf` of the directory, `arch/NAME.conf` in it, and the files named.
    pub(crate) fn read(directory: &Path, own: &[PathBuf], arch: Arch) -> Result<Fragments, Error> {
        let mut paths = files::list(directory)?;
        paths.retain(|path| path.extension().is_some_and(|end| end == "conf"));
        if paths.is_empty() {
            return Err(Error::NoFragments { directory: directory.to_path_buf() });
        }
        paths.push(directory.join(format!("arch/{arch}.conf")));
        let mut problems = Vec::new();
        let mut read = |paths: &[PathBuf]| -> Result<Vec<Fragment>, Error> {
            let mut fragments = Vec::new();
            for path in paths {
                match Fragment::read(path) {
                    Ok(fragment) => fragments.push(fragment),
                    Err(Error::Fragments { problems: more }) => problems.extend(more),
                    Err(other) => return Err(other),
                }
            }
            Ok(fragments)
        };
        let fragments = Fragments { common: read(&paths)?, own: read(own)? };
        if problems.is_empty() { Ok(fragments) } else { Err(Error::Fragments { problems }) }
    }

    /// The configuration they ask for together.
    pub(crate) fn merge(&self, series: Series, arch: Arch) -> Result<Config, Error> {
        let mut options: BTreeMap<&str, &Wanted> = BTreeMap::new();
        let mut problems = Vec::new();
        let mut remarks = Vec::new();
        for fragment in &self.common {
            for wanted in fragment.of(series, arch) {
                let Some(first) = options.insert(&wanted.option, wanted) else { continue };
                let Wanted { option, value, place } = wanted;
                problems.push(if first.value == *value {
                    format!("{place}: CONFIG_{option} is set to the same value at {} already; drop one", first.place)
                } else {
                    format!("{place}: CONFIG_{option} is set to {value}, but to {} at {}", first.value, first.place)
                });
            }
        }
        let mut own: BTreeMap<&str, &Wanted> = BTreeMap::new();
        for wanted in self.own.iter().flat_map(|fragment| fragment.of(series, arch)) {
            let Wanted { option, value, place } = wanted;
            match own.insert(option, wanted) {
                Some(first) if first.value != *value => {
                    problems.push(format!(
                        "{place}: CONFIG_{option} is set to {value}, but to {} at {}",
                        first.value, first.place
                    ));
                }
                _ => {}
            }
            if let Some(first) = options.insert(option, wanted).filter(|first| first.value != *value) {
                remarks.push(format!(
                    "{place} sets CONFIG_{option} to {value} instead of {} ({})",
                    first.value, first.place
                ));
            }
        }
        if let Some(modules) = options.get("MODULES").filter(|wanted| wanted.value != "n") {
            problems.push(format!("{}: CONFIG_MODULES must stay n: what is built here has no modules", modules.place));
        }
        if !problems.is_empty() {
            return Err(Error::Fragments { problems });
        }
        remarks.iter().for_each(|remark| console::say(remark));
        Ok(Config { wanted: options.into_values().cloned().collect() })
    }
}

/// What is wanted of a kernel, each option once, in the order of their names.
#[derive(Debug)]
pub(crate) struct Config {
    pub wanted: Vec<Wanted>,
}

impl Config {
    /// In the form that the kernel's own configuration reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for Wanted { option, value, .. } in &self.wanted {
            match value.as_str() {
                "n" => text.push_str(&format!("# CONFIG_{option} is not set\n")),
                value => text.push_str(&format!("CONFIG_{option}={value}\n")),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fragment::tests::fragment;

    fn merge(common: &[(&str, &str)], own: &[(&str, &str)]) -> Result<String, Vec<String>> {
        let read = |list: &[(&str, &str)]| list.iter().map(|(name, text)| fragment(name, text)).collect();
        let fragments = Fragments { common: read(common), own: read(own) };
        match fragments.merge("6.12".parse().unwrap(), Arch::X86_64) {
            Ok(config) => Ok(config.text()),
            Err(Error::Fragments { problems }) => Err(problems),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn fragments_become_one_text_in_the_order_of_names() {
        let text = merge(&[("a", "CONFIG_NET=y\nCONFIG_MODULES=n\n"), ("b", "CONFIG_HZ=100\n")], &[]).unwrap();
        assert_eq!(text, "CONFIG_HZ=100\n# CONFIG_MODULES is not set\nCONFIG_NET=y\n");
        assert_eq!(merge(&[("b", "CONFIG_HZ=100"), ("a", "CONFIG_MODULES=n\nCONFIG_NET=y")], &[]).unwrap(), text);
    }

    #[test]
    fn contradictions_and_repetitions_are_named_with_both_places() {
        let problems = merge(&[("a", "CONFIG_A=y\nCONFIG_B=y\n"), ("b", "CONFIG_A=n\nCONFIG_B=y\n")], &[]).unwrap_err();
        let expected = [
            "b:1: CONFIG_A is set to n, but to y at a:1",
            "b:2: CONFIG_B is set to the same value at a:2 already; drop one",
        ];
        assert_eq!(problems, expected);
        assert!(merge(&[("a", "CONFIG_A=y # until 6.1\n"), ("b", "CONFIG_A=n\n")], &[]).is_ok());
    }

    #[test]
    fn the_users_own_fragments_win() {
        let common = [("a", "CONFIG_A=y\nCONFIG_B=y\n")];
        assert_eq!(
            merge(&common, &[("u", "CONFIG_A=n\nCONFIG_B=y\n")]).unwrap(),
            "# CONFIG_A is not set\nCONFIG_B=y\n"
        );
        let problems = merge(&common, &[("u", "CONFIG_A=n\n"), ("v", "CONFIG_A=y\n")]).unwrap_err();
        assert_eq!(problems, ["v:1: CONFIG_A is set to y, but to n at u:1"]);
        assert!(merge(&common, &[("u", "CONFIG_MODULES=y\n")]).unwrap_err()[0].starts_with("u:1: CONFIG_MODULES must"));
    }

    #[test]
    fn a_directory_of_fragments_is_read_and_all_wrong_lines_are_collected() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let error = Fragments::read(directory.path(), &[], Arch::X86_64).unwrap_err();
        assert!(matches!(error, Error::NoFragments { .. }));
        fs::create_dir(at("arch")).unwrap();
        fs::write(at("b.conf"), "CONFIG_B=y\n").unwrap();
        fs::write(at("README"), "no fragment").unwrap();
        let error = Fragments::read(directory.path(), &[], Arch::X86_64).unwrap_err().to_string();
        assert!(error.contains("arch/x86_64.conf"), "{error}");
        fs::write(at("arch/x86_64.conf"), "CONFIG_X=y\n").unwrap();
        let fragments = Fragments::read(directory.path(), &[], Arch::X86_64).unwrap();
        assert_eq!(fragments.merge("6.12".parse().unwrap(), Arch::X86_64).unwrap().text(), "CONFIG_B=y\nCONFIG_X=y\n");
        fs::write(at("b.conf"), "B\n").unwrap();
        fs::write(at("u"), "C\n").unwrap();
        let error = Fragments::read(directory.path(), &[at("u")], Arch::X86_64).unwrap_err();
        assert!(matches!(error, Error::Fragments { problems } if problems.len() == 2));
    }
}
