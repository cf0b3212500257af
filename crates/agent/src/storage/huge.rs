//! Huge pages, which have to be reserved before they can be used.

use std::path::{Path, PathBuf};

use agent_api::Fault;

use crate::fault::{Context, internal, invalid};

const SIZES: &str = "/sys/kernel/mm/hugepages";

/// Refuses sizes that make no sense.
pub fn check(page_size: u64, size: u64) -> Result<(), Fault> {
    if page_size == 0 || !page_size.is_multiple_of(1024) || size == 0 || !size.is_multiple_of(page_size) {
        return Err(invalid(format!(
            "{size} bytes of huge pages of {page_size} bytes are asked for, expected a multiple of the size of a page"
        )));
    }
    Ok(())
}

/// Reserves pages in addition to those that are reserved.
///
/// # Errors
/// When the guest has no pages of this size or not enough memory in one piece; then the reservation is as before.
pub fn reserve(page_size: u64, size: u64) -> Result<(), Fault> {
    reserve_at(Path::new(SIZES), page_size, size)
}

fn reserve_at(sizes: &Path, page_size: u64, size: u64) -> Result<(), Fault> {
    let file = file(sizes, page_size);
    if !file.exists() {
        let there: Vec<String> = std::fs::read_dir(sizes)
            .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        return Err(invalid(format!("the guest has no huge pages of {page_size} bytes, only {there:?}")));
    }
    let (before, more) = (number(&file)?, size / page_size);
    write(&file, before + more)?;
    let after = number(&file)?;
    if after < before + more {
        let _ = write(&file, before);
        return Err(internal(format!(
            "the guest's memory has room for {} of {more} more huge pages of {page_size} bytes: give the pod more memory",
            after.saturating_sub(before)
        )));
    }
    Ok(())
}

/// Gives pages back to the guest.
///
/// # Errors
/// When the kernel refuses.
pub fn give_back(page_size: u64, size: u64) -> Result<(), Fault> {
    let file = file(Path::new(SIZES), page_size);
    write(&file, number(&file)?.saturating_sub(size / page_size))
}

fn file(sizes: &Path, page_size: u64) -> PathBuf {
    sizes.join(format!("hugepages-{}kB", page_size / 1024)).join("nr_hugepages")
}

fn number(file: &Path) -> Result<u64, Fault> {
    let text = std::fs::read_to_string(file).context(|| format!("read {}", file.display()))?;
    text.trim_end().parse().map_err(|_| internal(format!("{} is {text:?}, expected a number", file.display())))
}

fn write(file: &Path, pages: u64) -> Result<(), Fault> {
    std::fs::write(file, pages.to_string()).context(|| format!("write \"{pages}\" to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_added_to_those_that_are_reserved() {
        let top = std::env::temp_dir().join(format!("kata-agent-huge-{}", std::process::id()));
        let dir = top.join("hugepages-2048kB");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("nr_hugepages"), "3\n").unwrap();
        reserve_at(&top, 2 << 20, 8 << 20).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("nr_hugepages")).unwrap(), "7");
        let message = reserve_at(&top, 1 << 30, 1 << 30).unwrap_err().message;
        assert!(message.contains("hugepages-2048kB"), "{message}");
        std::fs::remove_dir_all(top).unwrap();
        assert!(check(2 << 20, 3 << 20).is_err() && check(0, 1).is_err());
        check(2 << 20, 4 << 20).unwrap();
    }
}
