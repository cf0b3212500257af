//! A repository's index, and which of its packages a root needs.

use super::version::{compare, satisfies};

/// A package in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(super) name: String,
    pub(super) version: String,
    /// Where its repository is.
    pub(super) base: String,
    /// As it stands in the index.
    pub(super) text: String,
    needs: Vec<Condition>,
    /// Names that it stands for, with the version of each, where there is one.
    provides: Vec<(String, Option<String>)>,
    /// Which of several that provide the same is taken.
    priority: u64,
}

/// A name, with or without a condition on its version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    name: String,
    operator: String,
    version: String,
    /// It must not be there.
    conflict: bool,
}

impl Condition {
    fn parse(text: &str) -> Condition {
        let (conflict, text) = text.strip_prefix('!').map_or((false, text), |text| (true, text));
        let is_operator = |c: char| matches!(c, '<' | '>' | '=' | '~');
        let at = text.find(is_operator).unwrap_or(text.len());
        let (name, rest) = text.split_at(at);
        let version = rest.trim_start_matches(is_operator);
        let operator = rest.get(..rest.len() - version.len()).unwrap_or_default();
        // A trailing @tag chooses among repositories with tags, of which there are none here.
        let name = name.split('@').next().unwrap_or_default();
        Condition { name: name.into(), operator: operator.into(), version: version.into(), conflict }
    }

    fn met_by(&self, version: Option<&str>) -> bool {
        self.operator.is_empty() || version.is_some_and(|version| satisfies(version, &self.operator, &self.version))
    }
}

impl Entry {
    pub(crate) fn parse(text: &str, base: &str) -> Option<Entry> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let words = |name: &str| field(name).unwrap_or_default().split_whitespace();
        let provides = words("p:").map(|word| match word.split_once('=') {
            Some((name, version)) => (name.to_owned(), Some(version.to_owned())),
            None => (word.to_owned(), None),
        });
        let plain = |text: &str| !text.is_empty() && !text.contains(['/', '\\']) && !text.starts_with('.');
        Some(Entry {
            name: field("P:").filter(|name| plain(name))?.to_owned(),
            version: field("V:").filter(|version| plain(version))?.to_owned(),
            base: base.to_owned(),
            text: text.trim().to_owned(),
            needs: words("D:").map(Condition::parse).collect(),
            provides: provides.collect(),
            priority: field("k:").and_then(|priority| priority.parse().ok()).unwrap_or(0),
        })
    }

    /// Whether it is or stands for what is needed.
    fn meets(&self, need: &Condition) -> bool {
        (self.name == need.name && need.met_by(Some(&self.version)))
            || self.provides.iter().any(|(name, version)| *name == need.name && need.met_by(version.as_deref()))
    }
}

/// The packages of all repositories.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: Vec<Entry>,
}

impl Index {
    /// Adds the packages of the repository at `base`.
    pub(crate) fn add(&mut self, text: &str, base: &str) {
        self.entries.extend(text.split("\n\n").filter_map(|paragraph| Entry::parse(paragraph, base)));
    }

    /// All that these packages need, in the order of their names; the error says what cannot be had, and who needs it.
    pub(crate) fn resolve(&self, wanted: &[String]) -> Result<Vec<Entry>, String> {
        let mut chosen: Vec<&Entry> = Vec::new();
        let mut open: Vec<(Condition, &str)> =
            wanted.iter().rev().map(|name| (Condition::parse(name), "the definition")).collect();
        let mut conflicts = Vec::new();
        while let Some((need, by)) = open.pop() {
            if need.conflict {
                conflicts.push((need, by));
                continue;
            }
            if chosen.iter().any(|entry| entry.meets(&need)) {
                continue;
            }
            let found = self.best(&need).ok_or_else(|| {
                let condition = format!("{}{}{}", need.name, need.operator, need.version);
                format!("no package in the repositories is or provides {condition}, which {by} needs")
            })?;
            if let Some(other) = chosen.iter().find(|entry| entry.name == found.name) {
                return Err(format!(
                    "{by} needs {} {}, but {} was already chosen",
                    found.name, found.version, other.version
                ));
            }
            chosen.push(found);
            open.extend(found.needs.iter().rev().map(|need| (need.clone(), found.name.as_str())));
        }
        for (conflict, by) in conflicts {
            if let Some(entry) = chosen.iter().find(|entry| entry.name != by && entry.meets(&conflict)) {
                return Err(format!("{by} cannot be installed together with {}", entry.name));
            }
        }
        chosen.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(chosen.into_iter().cloned().collect())
    }

    /// The package of that name in its latest version, or else the one with the highest priority that provides it.
    fn best(&self, need: &Condition) -> Option<&Entry> {
        let candidates = self.entries.iter().filter(|entry| entry.meets(need));
        candidates.max_by(|a, b| {
            let rank = |entry: &Entry| (entry.name == need.name, entry.priority);
            rank(a).cmp(&rank(b)).then_with(|| b.name.cmp(&a.name)).then_with(|| compare(&a.version, &b.version))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "P:busybox\nV:1.36-r2\nD:so:libc.musl.so.1\np:cmd:sh=1.36-r2\n\nP:busybox\nV:1.35-r9\n\n\
        P:musl\nV:1.2.4-r0\np:so:libc.musl.so.1=1\n\nP:dash\nV:0.5\np:cmd:sh\nk:10\n\nP:sh-user\nV:1\nD:cmd:sh musl>=1.2 musl<2\n\n\
        P:picky\nV:1\nD:!dash cmd:sh\n\nP:new\nV:1\nD:musl>9\n\nP:../evil\nV:1\n\nP:lost\nV:1\nD:nowhere\n\nP:versioned\nV:1\nD:cmd:sh>1.30\n";

    fn resolve(wanted: &[&str]) -> Result<String, String> {
        let mut index = Index::default();
        index.add(INDEX, "base");
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let chosen = index.resolve(&wanted)?;
        Ok(chosen.iter().map(|entry| format!("{}-{}", entry.name, entry.version)).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_is_needed_comes_along() {
        assert_eq!(resolve(&["busybox"]).unwrap(), "busybox-1.36-r2 musl-1.2.4-r0");
        assert_eq!(resolve(&["busybox<1.36"]).unwrap(), "busybox-1.35-r9");
        assert_eq!(resolve(&["sh-user"]).unwrap(), "dash-0.5 musl-1.2.4-r0 sh-user-1");
        // What is already there is enough.
        assert_eq!(resolve(&["busybox", "sh-user"]).unwrap(), "busybox-1.36-r2 musl-1.2.4-r0 sh-user-1");
        assert_eq!(resolve(&["versioned"]).unwrap(), "busybox-1.36-r2 musl-1.2.4-r0 versioned-1");
    }

    #[test]
    fn what_cannot_be_had_is_told_with_who_needs_it() {
        assert!(resolve(&["none"]).unwrap_err().contains("is or provides none, which the definition needs"));
        assert!(resolve(&["lost"]).unwrap_err().contains("nowhere, which lost needs"));
        assert!(resolve(&["new"]).unwrap_err().contains("musl>9, which new needs"));
        assert!(resolve(&["picky"]).unwrap_err().contains("picky cannot be installed together with dash"));
        assert!(resolve(&["../evil"]).unwrap_err().contains("no package"));
    }
}
