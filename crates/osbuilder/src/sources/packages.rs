//! Which packages a root holds, by the databases of their managers.

use std::path::Path;

use crate::{
    Error,
    tree::{Kind, Node, Tree},
};

/// A package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    /// As its manager writes it, or empty.
    pub(crate) licence: String,
    /// The kind of its manager, as package URLs write it: deb, rpm, apk.
    pub(crate) kind: &'static str,
}

/// Where dpkg and apk keep what is installed.
const DPKG: &str = "var/lib/dpkg/status";
pub(super) const APK: &str = "lib/apk/db/installed";

/// More than any database of a guest's packages, bytes.
const MOST_TEXT: u64 = 64 << 20;

/// Reads the databases that are plain text. (rpm's is not; those who made the root ask rpm itself.)
pub(crate) fn in_tree(tree: &Tree) -> Result<Vec<Package>, Error> {
    let mut packages = Vec::new();
    if let Some(text) = text(tree, DPKG)? {
        packages.extend(dpkg(&text));
    }
    if let Some(text) = text(tree, APK)? {
        packages.extend(apk(&text));
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

fn text(tree: &Tree, path: &str) -> Result<Option<String>, Error> {
    match tree.lookup(Path::new(path)) {
        Some(Node { kind: Kind::File(content), .. }) => {
            if content.length() > MOST_TEXT {
                return Err(Error::unusable(
                    path,
                    format!("it is longer than {MOST_TEXT} bytes, which no list of packages is"),
                ));
            }
            Ok(Some(String::from_utf8_lossy(&content.read()?).into_owned()))
        }
        _ => Ok(None),
    }
}

fn dpkg(text: &str) -> impl Iterator<Item = Package> {
    text.split("\n\n").filter_map(|paragraph| {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        if !field("Status:")?.ends_with(" installed") {
            return None;
        }
        Some(Package {
            name: field("Package:")?,
            version: field("Version:")?,
            architecture: field("Architecture:").unwrap_or_default(),
            licence: String::new(),
            kind: "deb",
        })
    })
}

fn apk(text: &str) -> impl Iterator<Item = Package> {
    text.split("\n\n").filter_map(|paragraph| {
        let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some(Package {
            name: field("P:")?,
            version: field("V:")?,
            architecture: field("A:").unwrap_or_default(),
            licence: field("L:").unwrap_or_default(),
            kind: "apk",
        })
    })
}

/// What `rpm -qa` says with [`RPM_FORMAT`].
pub(super) fn rpm(text: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t').map(str::to_owned);
            let (name, epoch, version, architecture) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let version = if epoch == "0" { version } else { format!("{epoch}:{version}") };
            Some(Package { name, version, architecture, licence: fields.next()?, kind: "rpm" })
        })
        // The keys that signed the others are in the same list.
        .filter(|package| package.name != "gpg-pubkey")
        .collect();
    packages.sort();
    packages
}

pub(super) const RPM_FORMAT: &str = "%{NAME}\\t%{EPOCHNUM}\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\t%{LICENSE}\\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;

    #[test]
    fn a_database_that_is_none_is_not_read_into_memory() {
        let mut tree = Tree::default();
        let huge = Content::OnDisk { path: "/nowhere".into(), length: MOST_TEXT + 1 };
        tree.install(Path::new(DPKG), Node::file(0o644, huge)).unwrap();
        let refused = in_tree(&tree).unwrap_err().to_string();
        assert!(refused.starts_with("var/lib/dpkg/status is no good: it is longer than"), "{refused}");
    }

    #[test]
    fn databases_are_read() {
        let mut tree = Tree::default();
        let dpkg = "Package: b\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\nDescription: x\n Version: no\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nVersion: 2\n";
        tree.install(Path::new(DPKG), Node::file(0o644, Content::Bytes(dpkg.into()))).unwrap();
        tree.install(Path::new(APK), Node::file(0o644, Content::Bytes("P:c\nV:3-r0\nL:MIT\n\n".into()))).unwrap();
        let found: Vec<String> = in_tree(&tree)
            .unwrap()
            .iter()
            .map(|p| format!("{} {} {} {}", p.kind, p.name, p.version, p.licence))
            .collect();
        assert_eq!(found, ["deb a 2 ".to_owned(), "deb b 1:2-3 ".into(), "apk c 3-r0 MIT".into()]);
        let found = rpm("b\t0\t1-2\tx86_64\tMIT\na\t3\t1-2\tnoarch\tGPL\ngpg-pubkey\t0\t1-1\t(none)\tpubkey\n");
        assert_eq!((found.len(), found[0].version.as_str()), (2, "3:1-2"));
    }
}
