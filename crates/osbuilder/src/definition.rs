//! What a distribution's root file system is made of, as a file that users can copy.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use crate::{Architecture, Error};

/// The definitions that come along, by the name of their source.
const BUILT_IN: [(&str, &str); 5] = [
    ("debian", include_str!("../definitions/debian.toml")),
    ("fedora", include_str!("../definitions/fedora.toml")),
    ("centos:7", include_str!("../definitions/centos-7.toml")),
    ("clearlinux", include_str!("../definitions/clearlinux.toml")),
    ("alpine", include_str!("../definitions/alpine.toml")),
];

/// The keys that come along.
const KEYS: [(&str, &str); 3] = [
    ("centos-7.asc", include_str!("../definitions/keys/centos-7.asc")),
    ("fedora-44.asc", include_str!("../definitions/keys/fedora-44.asc")),
    (
        "alpine-devel@lists.alpinelinux.org-6165ee59.rsa.pub",
        include_str!("../definitions/keys/alpine-devel@lists.alpinelinux.org-6165ee59.rsa.pub"),
    ),
];

/// The sources that come along as definitions.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BUILT_IN.into_iter().map(|(name, _)| name).collect()
}

/// The text of a definition that comes along.
#[must_use]
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.into_iter().find(|(known, _)| *known == name).map(|(_, text)| text)
}

/// Which tool makes a root of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Apt,
    Rpm,
    Apk,
}

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Repository {
    pub(crate) url: String,
    /// Of apt only.
    #[serde(default)]
    pub(crate) suites: Vec<String>,
    /// Of apt only.
    #[serde(default)]
    pub(crate) components: Vec<String>,
}

/// A file that no package brings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) executable: bool,
}

/// A link that no package brings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    pub(crate) path: PathBuf,
    pub(crate) target: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    description: String,
    kind: Kind,
    release: String,
    #[serde(default)]
    architectures: Option<Spanned<Vec<String>>>,
    packages: Spanned<Vec<String>>,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    signed: Option<Spanned<bool>>,
    #[serde(default)]
    database: Option<PathBuf>,
    #[serde(default)]
    remove: Vec<String>,
    repository: Vec<Spanned<Repository>>,
    #[serde(default)]
    file: Vec<File>,
    #[serde(default)]
    link: Vec<Link>,
}

/// A definition, checked, with what the user wants otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    pub(crate) description: String,
    pub(crate) kind: Kind,
    pub(crate) release: String,
    pub(crate) architectures: Vec<Architecture>,
    pub(crate) packages: Vec<String>,
    pub(crate) keys: Vec<Key>,
    /// Whether packages must be signed by one of the keys.
    pub(crate) signed: bool,
    pub(crate) database: PathBuf,
    pub(crate) remove: Vec<String>,
    pub(crate) repositories: Vec<Repository>,
    pub(crate) files: Vec<File>,
    pub(crate) links: Vec<Link>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    File(PathBuf),
    BuiltIn { name: &'static str, text: &'static str },
}

impl Key {
    fn find(name: &str, beside: Option<&Path>) -> Key {
        let beside = beside.map(|directory| directory.join(name)).filter(|path| path.exists());
        if let Some(path) = beside {
            return Key::File(path);
        }
        match KEYS.into_iter().find(|(known, _)| *known == name) {
            Some((name, text)) => Key::BuiltIn { name, text },
            None => Key::File(name.into()),
        }
    }

    /// The key in a file: its own, or one made in `directory`.
    ///
    /// # Errors
    /// [`Error::Read`] if it is not there; [`Error::Write`].
    pub(crate) fn file(&self, directory: &Path) -> Result<PathBuf, Error> {
        match self {
            Key::File(path) => {
                fs::File::open(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                std::path::absolute(path).map_err(|source| Error::Read { path: path.clone(), source })
            }
            Key::BuiltIn { name, text } => {
                let path = directory.join(name);
                fs::write(&path, text).map_err(|source| Error::Write { path: path.clone(), source })?;
                Ok(path)
            }
        }
    }
}

/// What the user wants otherwise than a definition says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The guest's processor; this machine's if not given.
    pub architecture: Option<Architecture>,
    /// The distribution's release.
    pub release: Option<String>,
    /// Instead of the definition's repositories.
    pub repositories: Vec<String>,
    /// Instead of the definition's keys.
    pub keys: Vec<PathBuf>,
    /// Besides the definition's packages.
    pub packages: Vec<String>,
}

impl Definition {
    /// Reads `text`, which is from `file` or, without one, comes along as `name`.
    pub(crate) fn parse(name: &str, file: Option<&Path>, text: &str, options: &Options) -> Result<Definition, Error> {
        let place = file.map_or_else(|| PathBuf::from(format!("the definition {name}")), Path::to_path_buf);
        let bad = |at: Option<usize>, why: String| {
            let line = at.map(|at| text.get(..at).unwrap_or_default().matches('\n').count() + 1);
            Error::Definition { path: place.clone(), line: line.map_or(String::new(), |line| format!(":{line}")), why }
        };
        let written: Written = toml::from_str(text)
            .map_err(|error| bad(error.span().map(|span| span.start), error.message().trim().replace('\n', "; ")))?;

        let architectures = match &written.architectures {
            None => Architecture::ALL.to_vec(),
            Some(names) => names
                .get_ref()
                .iter()
                .map(|name| name.parse().map_err(|why| bad(Some(names.span().start), format!("{name}: {why}"))))
                .collect::<Result<_, _>>()?,
        };
        if written.packages.get_ref().is_empty() {
            return Err(bad(Some(written.packages.span().start), "packages is empty; name at least one".into()));
        }
        // A name that begins with a dash would be an option to the tools.
        let names = written.packages.get_ref().iter().chain(&options.packages);
        if let Some(name) =
            names.clone().find(|name| name.is_empty() || name.starts_with('-') || name.contains(char::is_whitespace))
        {
            return Err(bad(Some(written.packages.span().start), format!("{name:?} is no package's name")));
        }
        let mut repositories = Vec::new();
        for repository in &written.repository {
            let apt = written.kind == Kind::Apt;
            if apt == repository.get_ref().suites.is_empty() {
                let why = if apt {
                    "a repository of kind apt needs suites"
                } else {
                    "only repositories of kind apt have suites"
                };
                return Err(bad(Some(repository.span().start), why.into()));
            }
            repositories.push(repository.get_ref().clone());
        }
        let Some(first) = repositories.first().cloned() else {
            return Err(bad(None, "it names no repository".into()));
        };
        if !options.repositories.is_empty() {
            let instead = options.repositories.iter().map(|url| instead_of(&first, url));
            repositories = instead.collect();
        }
        let beside = file.map(|file| file.parent().unwrap_or(Path::new("")));
        let keys: Vec<Key> = if options.keys.is_empty() {
            written.keys.iter().map(|name| Key::find(name, beside)).collect()
        } else {
            options.keys.iter().cloned().map(Key::File).collect()
        };
        let signed = !options.keys.is_empty() || written.signed.as_ref().is_none_or(|signed| *signed.get_ref());
        if signed && keys.is_empty() {
            return Err(bad(None, "it names no keys; name some, or say signed = false and why".into()));
        }
        if !signed && written.kind != Kind::Rpm {
            let at = written.signed.as_ref().map(|signed| signed.span().start);
            return Err(bad(at, "only kind rpm can do without signatures".into()));
        }
        Ok(Definition {
            description: written.description,
            kind: written.kind,
            release: options.release.clone().unwrap_or(written.release),
            architectures,
            packages: names.cloned().collect(),
            keys,
            signed,
            database: written.database.unwrap_or_else(|| "/var/lib/rpm".into()),
            remove: written.remove.iter().flat_map(|pattern| alternatives(pattern)).collect(),
            repositories,
            files: written.file,
            links: written.link,
        })
    }

    /// `text` with `{release}` and `{arch}` filled in.
    pub(crate) fn fill(&self, text: &str, architecture: Architecture) -> String {
        text.replace("{release}", &self.release).replace("{arch}", architecture.name())
    }
}

/// A repository that the user named: `URL`, or, for apt, `URL SUITE COMPONENT…`. What is not said is as in the definition's first.
fn instead_of(first: &Repository, named: &str) -> Repository {
    let mut words = named.split_whitespace().map(str::to_owned);
    let url = words.next().unwrap_or_default();
    let suites = words.next().map_or_else(|| first.suites.clone(), |suite| vec![suite]);
    let components: Vec<String> = words.collect();
    Repository { url, suites, components: if components.is_empty() { first.components.clone() } else { components } }
}

/// A pattern with `{a,b}` as one pattern for each.
fn alternatives(pattern: &str) -> Vec<String> {
    let parts = pattern.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    let Some((before, (inside, after))) = parts else { return vec![pattern.to_owned()] };
    inside.split(',').flat_map(|choice| alternatives(&format!("{before}{choice}{after}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, options: &Options) -> Result<Definition, String> {
        Definition::parse("x", Some(Path::new("dir/x.toml")), text, options).map_err(|error| error.to_string())
    }

    const GOOD: &str = "kind = \"rpm\"\nrelease = \"9\"\npackages = [\"a\"]\nkeys = [\"k\"]\n[[repository]]\nurl = \"u/{release}/{arch}\"\n";

    #[test]
    fn all_that_come_along_are_good() {
        for name in names() {
            let definition = Definition::parse(name, None, built_in(name).unwrap(), &Options::default()).unwrap();
            assert!(!definition.description.is_empty());
            for key in definition.keys {
                assert!(matches!(key, Key::BuiltIn { .. }) || name == "debian", "{name}: {key:?}");
            }
        }
    }

    #[test]
    fn a_mistake_is_told_with_file_and_line() {
        for (text, expected) in [
            (GOOD.replace("release =", "relase ="), "dir/x.toml:2: unknown field `relase`"),
            (GOOD.replace("rpm", "pacman"), "dir/x.toml:1: unknown variant `pacman`"),
            (GOOD.replace("[\"a\"]", "[]"), "dir/x.toml:3: packages is empty"),
            (GOOD.replace("\"a\"", "\"--nogpgcheck\""), "dir/x.toml:3: \"--nogpgcheck\" is no package's name"),
            (GOOD.replace("rpm", "apt"), "dir/x.toml:5: a repository of kind apt needs suites"),
            (GOOD.replace("[\"k\"]", "[]"), "dir/x.toml: it names no keys"),
            (format!("architectures = [\"vax\"]\n{GOOD}"), "dir/x.toml:1: vax: guests are built for"),
            (format!("signed = false\n{}", GOOD.replace("rpm", "apk")), "dir/x.toml:1: only kind rpm"),
            ("kind = ".into(), "dir/x.toml:1: "),
        ] {
            let error = parse(&text, &Options::default()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_user_may_want_it_otherwise() {
        let options = Options {
            release: Some("10".into()),
            repositories: vec!["file:///r/{arch}".into()],
            keys: vec!["mine".into()],
            packages: vec!["b".into()],
            ..Options::default()
        };
        let text = GOOD.replace("keys = [\"k\"]", "signed = false");
        let definition = parse(&text, &options).unwrap();
        assert!(definition.signed, "who gives a key wants it to be checked");
        assert_eq!(definition.packages, ["a", "b"]);
        assert_eq!(definition.keys, [Key::File("mine".into())]);
        let url = definition.fill(&definition.repositories[0].url, Architecture::S390x);
        assert_eq!((url.as_str(), definition.release.as_str()), ("file:///r/s390x", "10"));
        let apt = Repository { url: "a".into(), suites: vec!["s".into()], components: vec!["main".into()] };
        assert_eq!(instead_of(&apt, "b").components, ["main"]);
        assert_eq!(instead_of(&apt, "b sid contrib").suites, ["sid"]);
    }

    #[test]
    fn alternatives_in_patterns() {
        assert_eq!(alternatives("/a/{b,c}/{d}"), ["/a/b/d", "/a/c/d"]);
        assert_eq!(alternatives("/a/{b"), ["/a/{b"]);
    }
}
