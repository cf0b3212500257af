//! The command line of a shim, as containerd writes it: flags in the manner of Go's `flag` package, then one word.

use std::{ffi::OsString, path::PathBuf};

use crate::{Error, Result};

/// What containerd asked for on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`: containerd's namespace that the container is in.
    pub namespace: String,
    /// `-id`: the container, or the sandbox.
    pub id: String,
    /// `-address`: containerd's gRPC socket.
    pub address: String,
    /// `-publish-binary`: a program that publishes an event, for want of a better way.
    pub publish_binary: Option<PathBuf>,
    /// `-bundle`: the bundle, if it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// `-socket`: where to listen, instead of an inherited socket.
    pub socket: Option<PathBuf>,
    /// `-debug`.
    pub debug: bool,
    /// `-info`: describe the runtime.
    pub info: bool,
    /// `-v`: print the version.
    pub version: bool,
    /// The word after the flags: `start`, `delete`, or none.
    pub action: String,
}

impl Flags {
    /// Reads what follows the program's name.
    ///
    /// # Errors
    /// [`Error::Flags`] with the flag.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let text = argument.to_str().ok_or_else(|| Error::Flags(format!("{argument:?} is not text")))?;
            if text == "--" {
                flags.action = arguments.next().and_then(|word| word.into_string().ok()).unwrap_or_default();
                break;
            }
            // As Go's: a lone minus is a word, and one or two minuses mean the same.
            let Some(name) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|name| !name.is_empty())
            else {
                flags.action = text.into();
                break;
            };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (name, None),
            };
            flags.set(name, value, &mut arguments)?;
        }
        Ok(flags)
    }

    fn set(&mut self, name: &str, value: Option<String>, rest: &mut impl Iterator<Item = OsString>) -> Result<()> {
        let switch = match name {
            "debug" => Some(&mut self.debug),
            "info" => Some(&mut self.info),
            "v" => Some(&mut self.version),
            _ => None,
        };
        if let Some(switch) = switch {
            *switch = match value.as_deref() {
                None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
                Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
                Some(other) => return Err(Error::Flags(format!("-{name}: {other:?} is neither true nor false"))),
            };
            return Ok(());
        }
        let mut text = || {
            value.clone().map(Ok).unwrap_or_else(|| {
                let value = rest.next().ok_or_else(|| Error::Flags(format!("-{name} needs a value")))?;
                value.into_string().map_err(|value| Error::Flags(format!("-{name}: {value:?} is not text")))
            })
        };
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        match name {
            "namespace" => self.namespace = text()?,
            "id" => self.id = text()?,
            "address" => self.address = text()?,
            "publish-binary" => self.publish_binary = path(text()?),
            "bundle" => self.bundle = path(text()?),
            "socket" => self.socket = path(text()?),
            // There is no profiler to listen there.
            "debug-socket" => drop(text()?),
            other => return Err(Error::Flags(format!("unknown flag -{other}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags> {
        Flags::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_lines_of_all_containerds_are_understood() {
        let flags = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc -debug start",
        )
        .unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.action.as_str()), ("k8s.io", "abc", "start"));
        assert!(flags.debug);
        let flags = parse("-namespace default -address /a -publish-binary /c -id x -bundle /b delete").unwrap();
        assert_eq!(flags.bundle, Some("/b".into()));
        assert_eq!(flags.action, "delete");
        assert!(parse("-info").unwrap().info);
        assert!(parse("-v").unwrap().version);
    }

    #[test]
    fn both_spellings_of_go_are_understood() {
        let flags = parse("--namespace=a -debug=false --id=b").unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.debug), ("a", "b", false));
        assert_eq!(flags.action, "");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(parse("-nosuch").unwrap_err().to_string().contains("-nosuch"));
        assert!(parse("-id").unwrap_err().to_string().contains("-id needs a value"));
        assert!(parse("-debug=maybe").unwrap_err().to_string().contains("maybe"));
    }
}
