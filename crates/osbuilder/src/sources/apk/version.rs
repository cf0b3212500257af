//! Comparing versions as apk does: numbers, a letter, suffixes such as `_rc1`, a revision.

use std::cmp::Ordering;

/// Suffixes in their order; those before the empty one come before the version without a suffix.
const SUFFIXES: [&str; 10] = ["alpha", "beta", "pre", "rc", "", "cvs", "svn", "git", "hg", "p"];

/// A version, taken apart.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    numbers: Vec<u64>,
    letter: Option<char>,
    suffixes: Vec<(usize, u64)>,
    revision: u64,
}

impl Version {
    fn parse(text: &str) -> Version {
        let (text, revision) = match text.rsplit_once("-r") {
            Some((text, revision)) => (text, revision.parse().unwrap_or(0)),
            None => (text, 0),
        };
        let mut parts = text.split('_');
        let main = parts.next().unwrap_or_default();
        let letter = main.chars().last().filter(char::is_ascii_lowercase);
        let numbers =
            main.trim_end_matches(|c: char| c.is_ascii_lowercase()).split('.').map(|n| n.parse().unwrap_or(0));
        let mut suffixes: Vec<(usize, u64)> = parts
            .map(|part| {
                let name = part.trim_end_matches(|c: char| c.is_ascii_digit());
                let number = part.get(name.len()..).and_then(|number| number.parse().ok()).unwrap_or(0);
                (SUFFIXES.iter().position(|known| *known == name).unwrap_or(SUFFIXES.len()), number)
            })
            .collect();
        // The end of the suffixes is compared too: 1_rc1 < 1 < 1_p1.
        suffixes.push((4, 0));
        Version { numbers: numbers.collect(), letter, suffixes, revision }
    }
}

/// Compares two versions.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    Version::parse(a).cmp(&Version::parse(b))
}

/// Whether `version` is what `operator` and `wanted` ask for.
pub(super) fn satisfies(version: &str, operator: &str, wanted: &str) -> bool {
    let order = compare(version, wanted);
    match operator {
        "=" => order == Ordering::Equal,
        "<" => order == Ordering::Less,
        ">" => order == Ordering::Greater,
        "<=" => order != Ordering::Greater,
        ">=" => order != Ordering::Less,
        // Any version that begins so: 1.2 takes 1.2.3 and 1.2-r4, not 1.20.
        "~" | "=~" | "~=" => {
            version.strip_prefix(wanted).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        let sorted =
            ["0.9", "1.0_alpha1", "1.0_rc2", "1.0_rc10", "1.0", "1.0-r1", "1.0a", "1.0.1", "1.2_p1", "1.10", "2"];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
        assert_eq!(compare("1.2-r3", "1.2-r3"), Ordering::Equal);
    }

    #[test]
    fn conditions() {
        for (version, operator, wanted, expected) in [
            ("1.2-r3", ">=", "1.2", true),
            ("1.2-r3", "=", "1.2-r3", true),
            ("1.2", "<", "1.2", false),
            ("1.2.5-r1", "~", "1.2", true),
            ("1.20", "~", "1.2", false),
            ("1", "?", "1", false),
        ] {
            assert_eq!(satisfies(version, operator, wanted), expected, "{version} {operator} {wanted}");
        }
    }
}
