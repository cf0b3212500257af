//! Where a root file system comes from.

use std::{path::PathBuf, str::FromStr};

use crate::{Architecture, Error, tree::Tree};

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing but the agent.
    AgentOnly,
    /// A directory on the host, taken as it is.
    Directory(PathBuf),
}

/// What the user wants otherwise than the source's definition says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The guest's processor; this machine's if not given.
    pub architecture: Option<Architecture>,
}

/// A root file system, and what is known about it.
#[derive(Debug, Default)]
pub(crate) struct Root {
    pub(crate) tree: Tree,
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source, Error> {
        match text.split_once(':') {
            None if text == "agent-only" => Ok(Source::AgentOnly),
            Some(("dir", path)) => Ok(Source::Directory(path.into())),
            _ => Err(Error::Usage(format!("there is no source {text}; there are agent-only and dir:PATH"))),
        }
    }
}

impl Source {
    pub(crate) fn root(&self, _options: &Options, _epoch: u32) -> Result<Root, Error> {
        match self {
            Source::AgentOnly => Ok(Root::default()),
            Source::Directory(path) => Ok(Root { tree: Tree::read(path)? }),
        }
    }
}
