//! Configuration fragments: what of the kernel is wanted, line by line, and for which kernels.
//!
//! A line sets one option, in the form of a kernel's `.config`. What follows it after a `#` limits it to some versions or
//! architectures; a colon ends the limits and begins a remark:
//!
//! ```text
//! # Why the option is wanted.
//! CONFIG_VSOCKETS=y
//! CONFIG_NR_CPUS=240            # only on x86_64 aarch64
//! CONFIG_OLD_NAME=y             # until 6.16: 6.17 calls it NEW_NAME
//! CONFIG_NEW_NAME=y             # since 6.17, not on s390x
//! # CONFIG_MODULES is not set
//! ```

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc as Shared,
};

use crate::{Arch, Error, files, version::Series};

/// A line of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    file: Shared<PathBuf>,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// An option, the value it is to have, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Without `CONFIG_`.
    pub option: String,
    /// As after the `=` of a `.config`; `n` for what is not to be there.
    pub value: String,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Limit {
    Since(Series),
    Until(Series),
    OnlyOn(Vec<Arch>),
    NotOn(Vec<Arch>),
}

impl Limit {
    fn admits(&self, series: Series, arch: Arch) -> bool {
        match self {
            Limit::Since(first) => series >= *first,
            Limit::Until(last) => series <= *last,
            Limit::OnlyOn(list) => list.contains(&arch),
            Limit::NotOn(list) => !list.contains(&arch),
        }
    }
}

#[derive(Debug)]
struct Line {
    wanted: Wanted,
    limits: Vec<Limit>,
}

/// A file of lines.
#[derive(Debug)]
pub(crate) struct Fragment {
    lines: Vec<Line>,
}

impl Fragment {
    /// Reads a fragment, and names every line that is wrong.
    pub(crate) fn read(path: &Path) -> Result<Fragment, Error> {
        Fragment::parse(path, &files::text(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Fragment, Error> {
        let file = Shared::new(path.to_path_buf());
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        for (number, text) in text.lines().enumerate() {
            let place = Place { file: file.clone(), line: number + 1 };
            match parse_line(text) {
                Ok(None) => {}
                Ok(Some((option, value, limits))) => {
                    lines.push(Line { wanted: Wanted { option, value, place }, limits });
                }
                Err(why) => wrong.push(format!("{place}: {why}")),
            }
        }
        if wrong.is_empty() { Ok(Fragment { lines }) } else { Err(Error::Fragments { problems: wrong }) }
    }

    /// What this fragment wants of a kernel.
    pub(crate) fn of(&self, series: Series, arch: Arch) -> impl Iterator<Item = &Wanted> {
        let applies = move |line: &&Line| line.limits.iter().all(|limit| limit.admits(series, arch));
        self.lines.iter().filter(applies).map(|line| &line.wanted)
    }
}

type Setting = (String, String, Vec<Limit>);

fn parse_line(text: &str) -> Result<Option<Setting>, String> {
    let text = text.trim();
    if let Some(option) = text.strip_prefix("# CONFIG_").and_then(|rest| rest.strip_suffix(" is not set")) {
        return Ok(Some((option_name(option)?, "n".into(), Vec::new())));
    }
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let expected = "expected CONFIG_NAME=VALUE or a comment";
    let setting = text.strip_prefix("CONFIG_").ok_or_else(|| format!("{expected}, found {text:?}"))?;
    let (option, rest) = setting.split_once('=').ok_or_else(|| format!("{expected}; there is no '=' in {text:?}"))?;
    let option = option_name(option)?;
    let (value, rest) = parse_value(rest)?;
    let rest = rest.trim_start();
    let limits = match rest.strip_prefix('#') {
        Some(comment) => parse_limits(comment)?,
        None if rest.is_empty() => Vec::new(),
        None => return Err(format!("{rest:?} follows the value; expected nothing or '#' and limits")),
    };
    Ok(Some((option, value, limits)))
}

fn option_name(name: &str) -> Result<String, String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        Ok(name.into())
    } else {
        Err(format!("\"CONFIG_{name}\" is not the name of an option; expected letters, digits and '_'"))
    }
}

/// Takes the value from the front of `text`; returns it and what follows.
fn parse_value(text: &str) -> Result<(String, &str), String> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut escaped = false;
        let end = quoted.find(|character| {
            let end = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            end
        });
        let end = end.ok_or("the closing '\"' of the value is missing")?;
        return Ok((text[..end + 2].into(), &quoted[end + 1..]));
    }
    let (value, rest) = text.split_at(text.find([' ', '\t', '#']).unwrap_or(text.len()));
    let digits = value.strip_prefix('-').unwrap_or(value);
    let decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = value.strip_prefix("0x");
    let hexadecimal =
        hexadecimal.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    match value {
        "y" | "n" => Ok((value.into(), rest)),
        "m" => Err("the value is m, but these kernels have no modules; expected y or n".into()),
        _ if decimal || hexadecimal => Ok((value.into(), rest)),
        _ => Err(format!("the value is {value:?}; expected y, n, a number or a text in double quotes")),
    }
}

/// The limits behind the `#` of a line.
fn parse_limits(comment: &str) -> Result<Vec<Limit>, String> {
    let limits = comment.split_once(':').map_or(comment, |(limits, _remark)| limits);
    let mut words = limits.split([' ', '\t', ',', ';', '#']).filter(|word| !word.is_empty()).peekable();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let mut series = || words.next().unwrap_or_default().parse().map_err(|why| format!("after {word:?}: {why}"));
        found.push(match word {
            "since" => Limit::Since(series()?),
            "until" => Limit::Until(series()?),
            "only" | "not" if words.next_if_eq(&"on").is_some() => {
                let mut list = Vec::new();
                while let Some(word) = words.next_if(|word| !matches!(*word, "since" | "until" | "only" | "not")) {
                    list.push(word.parse()?);
                }
                if list.is_empty() {
                    return Err(format!("{word:?} on what? expected names of architectures"));
                }
                if word == "only" { Limit::OnlyOn(list) } else { Limit::NotOn(list) }
            }
            _ => {
                return Err(format!(
                    "expected \"since VERSION\", \"until VERSION\", \"only on ARCH\" or \"not on ARCH\" behind the value, \
                     found {word:?}; a remark goes on a line of its own, or behind a colon"
                ));
            }
        });
    }
    if found.is_empty() { Err("nothing but '#' behind the value; expected limits".into()) } else { Ok(found) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn fragment(name: &str, text: &str) -> Fragment {
        Fragment::parse(Path::new(name), text).unwrap()
    }

    fn settings(text: &str, series: &str, arch: Arch) -> Vec<String> {
        let fragment = fragment("a.conf", text);
        let wanted = fragment.of(series.parse().unwrap(), arch);
        wanted.map(|wanted| format!("{}={}", wanted.option, wanted.value)).collect()
    }

    fn problems(text: &str) -> Vec<String> {
        match Fragment::parse(Path::new("a.conf"), text) {
            Err(Error::Fragments { problems }) => problems,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let text = "# a reason\n\nCONFIG_A=y\nCONFIG_B=n\n  CONFIG_C=-4  \nCONFIG_D=0xfF\nCONFIG_E=\"\"\n\
                    CONFIG_F=\"a # b \\\" c\"\n# CONFIG_G is not set\n";
        let expected = ["A=y", "B=n", "C=-4", "D=0xfF", "E=\"\"", "F=\"a # b \\\" c\"", "G=n"];
        assert_eq!(settings(text, "6.12", Arch::X86_64), expected);
    }

    #[test]
    fn limits_choose_lines() {
        let text = "CONFIG_OLD=y # until 6.16: renamed, since that is shorter\nCONFIG_NEW=y# since 6.17\n\
                    CONFIG_X=y # only on x86_64 aarch64\nCONFIG_Z=y # not on s390x, since 6.18\nCONFIG_Q=\"#\" # not on ppc64le\n";
        assert_eq!(settings(text, "6.12", Arch::X86_64), ["OLD=y", "X=y", "Q=\"#\""]);
        assert_eq!(settings(text, "6.16", Arch::S390x), ["OLD=y", "Q=\"#\""]);
        assert_eq!(settings(text, "6.17", Arch::Ppc64le), ["NEW=y"]);
        assert_eq!(settings(text, "7.0", Arch::Aarch64), ["NEW=y", "X=y", "Z=y", "Q=\"#\""]);
        assert_eq!(settings(text, "7.0", Arch::S390x), ["NEW=y", "Q=\"#\""]);
    }

    #[test]
    fn every_wrong_line_is_named() {
        let wrong = [
            ("NET=y", "expected CONFIG_NAME=VALUE or a comment, found \"NET=y\""),
            ("CONFIG_NET", "there is no '=' in \"CONFIG_NET\""),
            ("CONFIG_A-B=y", "\"CONFIG_A-B\" is not the name of an option"),
            ("CONFIG_=y", "\"CONFIG_\" is not the name of an option"),
            ("CONFIG_A=m", "these kernels have no modules"),
            ("CONFIG_A=yes", "the value is \"yes\"; expected y, n, a number"),
            ("CONFIG_A=", "the value is \"\""),
            ("CONFIG_A = y", "\"CONFIG_A \" is not the name of an option"),
            ("CONFIG_A=\"x", "the closing '\"' of the value is missing"),
            ("CONFIG_A=y z", "\"z\" follows the value"),
            ("CONFIG_A=y #", "nothing but '#'"),
            ("CONFIG_A=y # sinc 6.1", "found \"sinc\""),
            ("CONFIG_A=y # since", "after \"since\": expected a kernel version such as 6.12, found \"\""),
            ("CONFIG_A=y # only x86_64", "found \"only\""),
            ("CONFIG_A=y # not on", "\"not\" on what?"),
            ("CONFIG_A=y # not on arm64", "arm64 is not an architecture of a guest; expected x86_64, aarch64"),
        ];
        let text: String = wrong.iter().map(|(line, _)| format!("{line}\n")).collect();
        let problems = problems(&text);
        assert_eq!(problems.len(), wrong.len());
        for (number, (problem, (_, expected))) in problems.iter().zip(wrong).enumerate() {
            assert!(problem.starts_with(&format!("a.conf:{}: ", number + 1)), "{problem}");
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
