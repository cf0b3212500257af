//! Loading the kernel's modules.

use std::io;
use std::path::Path;

use agent_api::MODULE_LIST;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Step};

/// Loads the modules of [`MODULE_LIST`] in its order. Without a list the kernel has everything built in.
///
/// # Errors
/// [`Error::Boot`] for the first module that is missing or that the kernel refuses. One that is loaded already is none.
pub fn load() -> Result<(), Error> {
    let list = match std::fs::read_to_string(MODULE_LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).step("reading", MODULE_LIST),
    };
    let dir = Path::new(MODULE_LIST).parent().unwrap_or(Path::new("/"));
    for name in names(&list) {
        let path = dir.join(name);
        let object = path.to_string_lossy();
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .step("opening", object.as_ref())?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).step("loading the kernel module", object),
        }
    }
    Ok(())
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_per_line_and_empty_lines_are_none() {
        assert_eq!(names("a.ko\n\n b.ko \n").collect::<Vec<_>>(), ["a.ko", "b.ko"]);
    }
}
