//! A process's standard streams, as containerd names them.
//!
//! | name | what |
//! | --- | --- |
//! | a path, `fifo://PATH` | a FIFO that containerd or its client reads; a plain file is appended to |
//! | `file://PATH` | a file that both outputs are appended to |
//! | `binary://PROGRAM?KEY=VALUE…` | a logger ([`logger`]) |
//!
//! # Readers that go away
//!
//! An output's FIFO is opened for both directions. So it opens before there is a reader, and a reader that goes away leaves the process with
//! a full FIFO at worst, which the next reader finds as it was. What a process wrote that ended before anybody came to read it is kept for some
//! seconds. Whatever else cannot be written any more swallows what comes.
//!
//! # The end of the input
//!
//! A second, writing descriptor of the input's FIFO is held until CloseIO, so that a client that goes away does not end the process's input; after
//! it, the input ends when the last client has closed.

mod logger;
mod output;

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use rustix::fs::OFlags;
use tokio::net::unix::pipe;

use self::{
    logger::Logger,
    output::{Appended, Fifo, Output, Progress},
};
use crate::{
    Error, Result,
    backend::{Io, Sink, Source},
};

/// The names of a process's streams; empty is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// Standard input.
    pub(crate) stdin: String,
    /// Standard output, or the terminal's.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
    /// Whether the process has a terminal.
    pub(crate) terminal: bool,
}

/// What a name means.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Nothing,
    Path(PathBuf),
    File(PathBuf),
    Logger { program: PathBuf, arguments: Vec<String> },
}

impl Name {
    fn of(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::Nothing);
        }
        let Some((scheme, rest)) = name.split_once("://") else { return Ok(Self::Path(name.into())) };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(unescape(path));
        if !path.is_absolute() {
            return Err(Error::Invalid(format!("stdio {name:?} does not name an absolute path")));
        }
        match scheme {
            "fifo" => Ok(Self::Path(path)),
            "file" => Ok(Self::File(path)),
            "binary" => {
                let pairs = query.split('&').filter(|pair| !pair.is_empty());
                let arguments = pairs.flat_map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    [unescape(&key.replace('+', " ")), unescape(&value.replace('+', " "))]
                });
                Ok(Self::Logger { program: path, arguments: arguments.collect() })
            }
            other => Err(Error::Invalid(format!(
                "stdio {name:?}: {other:?} is not supported; a FIFO, file:// or binary:// is expected"
            ))),
        }
    }
}

/// Percent-encoding undone (RFC 3986, 2.1).
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'%', [a, b, ..]) => u8::from_str_radix(&String::from_utf8_lossy(&[*a, *b]), 16).ok(),
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What stays with the shim of a process's streams.
pub(crate) struct Streams {
    /// Keeps the input from ending.
    hold: RefCell<Option<File>>,
    progress: Rc<Progress>,
    logger: RefCell<Option<Logger>>,
}

impl Streams {
    /// Lets the input end when its clients close.
    pub(crate) fn close_input(&self) {
        self.hold.take();
    }

    /// Waits until all that the process wrote is where it was to go: as long as something moves, until `bound`; and `patience` after the last
    /// byte, since a process that stays behind may hold an output open for ever.
    pub(crate) async fn drained(&self, patience: Duration, bound: Duration) -> bool {
        self.progress.drained(patience, bound).await
    }

    /// Releases what is left once the process is deleted: the logger ends.
    pub(crate) async fn release(&self) {
        self.close_input();
        let logger = self.logger.take();
        if let Some(logger) = logger {
            logger.end().await;
        }
    }
}

/// Opens a process's streams. `id` and `namespace` are told to a logger.
///
/// # Errors
/// [`Error::Invalid`] for a name that is none, [`Error::Io`].
pub(crate) async fn open(names: &Names, id: &str, namespace: &str) -> Result<(Io, Streams)> {
    let progress = Progress::new();
    let mut io = Io::default();
    let mut streams = Streams { hold: RefCell::default(), progress: progress.clone(), logger: RefCell::default() };
    let stderr = if names.terminal { "" } else { names.stderr.as_str() };
    // A URL for the output is one for both outputs, as containerd's own shim has it.
    match Name::of(&names.stdout)? {
        Name::Logger { program, arguments } => {
            let (logger, stdout, stderr) = Logger::start(&program, &arguments, id, namespace).await?;
            io.stdout = Some(output("the logger", stdout, &progress));
            io.stderr = (!names.terminal).then(|| output("the logger", stderr, &progress));
            streams.logger = RefCell::new(Some(logger));
        }
        Name::File(path) => {
            if let Some(directory) = path.parent() {
                let made = std::fs::create_dir_all(directory);
                made.map_err(|e| Error::io(format!("create {} for the output", directory.display()), e))?;
            }
            io.stdout = Some(output(&path.display().to_string(), Appended::create(&path)?, &progress));
            if !names.terminal {
                io.stderr = Some(output(&path.display().to_string(), Appended::create(&path)?, &progress));
            }
        }
        Name::Path(path) => {
            io.stdout = Some(open_output(&path, &progress)?);
            io.stderr = open_stderr(stderr, &progress)?;
        }
        Name::Nothing => io.stderr = open_stderr(stderr, &progress)?,
    }
    match Name::of(&names.stdin)? {
        Name::Nothing => {}
        Name::Path(path) => {
            let (source, hold) = open_input(&path)?;
            io.stdin = Some(source);
            streams.hold = RefCell::new(Some(hold));
        }
        _ => return Err(Error::Invalid(format!("stdin {:?} is not supported; a FIFO is expected", names.stdin))),
    }
    Ok((io, streams))
}

fn open_stderr(name: &str, progress: &Rc<Progress>) -> Result<Option<Sink>> {
    match Name::of(name)? {
        Name::Nothing => Ok(None),
        Name::Path(path) => open_output(&path, progress).map(Some),
        Name::File(path) => Ok(Some(output(&path.display().to_string(), Appended::create(&path)?, progress))),
        Name::Logger { .. } => {
            Err(Error::Invalid(format!("stderr {name:?} is a logger, but stdout is not the same one")))
        }
    }
}

fn output(name: &str, to: impl tokio::io::AsyncWrite + 'static, progress: &Rc<Progress>) -> Sink {
    Box::pin(Output::new(name, Box::pin(to), progress.clone()))
}

fn open_output(path: &Path, progress: &Rc<Progress>) -> Result<Sink> {
    let failed = |e| Error::io(format!("open {} for the output", path.display()), e);
    let name = path.display().to_string();
    if std::fs::metadata(path).map_err(failed)?.file_type().is_fifo() {
        Ok(output(&name, Fifo::open(path).map_err(failed)?, progress))
    } else {
        Ok(output(&name, Appended::open(path)?, progress))
    }
}

fn open_input(path: &Path) -> Result<(Source, File)> {
    let failed = |e| Error::io(format!("open {} for the input", path.display()), e);
    let source = pipe::OpenOptions::new().open_receiver(path).map_err(failed)?;
    // There is a reader now, so this does not wait either.
    let hold = open_at_once(File::options().write(true), path).map_err(failed)?;
    Ok((Box::pin(source), hold))
}

/// Opens an end of a FIFO for ourselves, without waiting for another process to open the other one.
fn open_at_once(how: &mut OpenOptions, path: &Path) -> io::Result<File> {
    how.custom_flags((OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32).open(path)
}

#[cfg(test)]
mod tests;
