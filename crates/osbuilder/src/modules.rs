//! Kernel modules: which are needed, in what order, and their plain contents.
//!
//! What a module depends on stands in the module itself, in the ELF section `.modinfo`, as `depends=a,b`. So neither
//! `modules.dep` (which a package does not hold; `depmod` makes it when it is installed) nor any tool of kmod is needed. The
//! kernel takes `-` and `_` in names as equal; file names use both.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use object::{Object, ObjectSection};

use crate::{Error, compression::Compression, read};

/// More than any module, bytes: a limit for damaged ones.
const MOST: usize = 256 << 20;

/// What stands at the end of a signed module (`MODULE_SIG_STRING`, kernel/module/signing.c).
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// Size of `struct module_signature`, which stands before [`SIGNED`]; its last four bytes are the signature's length, big-endian.
const SIGNATURE_INFO: usize = 12;

/// A module, ready to be loaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name with `_`.
    pub(crate) name: String,
    /// The ELF file, neither compressed nor signed.
    pub(crate) contents: Vec<u8>,
}

/// The one `lib/modules/*` or `usr/lib/modules/*` directory of an unpacked kernel package.
///
/// # Errors
/// [`Error::Package`].
pub fn find_in_package(package: &Path) -> Result<PathBuf, Error> {
    let mut found = HashMap::new();
    for place in ["lib/modules", "usr/lib/modules"] {
        for entry in package.join(place).read_dir().into_iter().flatten().flatten() {
            found.insert(entry.file_name(), entry.path());
        }
    }
    let count = found.len();
    match found.into_values().next() {
        Some(path) if count == 1 => Ok(path),
        _ => Err(Error::Package { what: "lib/modules/*", package: package.to_path_buf(), found: count }),
    }
}

/// Reads `wanted` and all they depend on from `directory` (`lib/modules/VERSION`), dependencies first, each once, without those
/// built into the kernel.
pub(crate) fn collect(directory: &Path, wanted: &[String]) -> Result<Vec<Module>, Error> {
    let mut files = HashMap::new();
    index(directory, &mut files)?;
    let mut collector = Collector {
        directory,
        files,
        built_in: built_in(directory)?,
        done: HashSet::new(),
        path: Vec::new(),
        modules: Vec::new(),
    };
    for name in wanted {
        collector.add(&canonical(name))?;
    }
    Ok(collector.modules)
}

struct Collector<'a> {
    directory: &'a Path,
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
    done: HashSet<String>,
    /// The modules being looked at, each needed by the one before it.
    path: Vec<String>,
    modules: Vec<Module>,
}

impl Collector<'_> {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        if self.built_in.contains(name) || self.done.contains(name) {
            return Ok(());
        }
        if let Some(position) = self.path.iter().position(|above| above == name) {
            return Err(Error::Circle { names: self.path[position..].to_vec() });
        }
        let file = self.files.get(name).ok_or_else(|| Error::NoModule {
            name: name.to_owned(),
            needed_by: self.path.last().map(|above| format!(", which {above} depends on,")).unwrap_or_default(),
            directory: self.directory.to_path_buf(),
        })?;
        let contents = contents(file)?;
        let dependencies = dependencies(&contents).map_err(|why| Error::unusable(file, why))?;
        self.path.push(name.to_owned());
        for dependency in dependencies {
            self.add(&dependency)?;
        }
        self.path.pop();
        self.done.insert(name.to_owned());
        self.modules.push(Module { name: name.to_owned(), contents });
        Ok(())
    }
}

/// Maps the name of each module below `directory` to its file.
fn index(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<(), Error> {
    let failed = |source| Error::Read { path: directory.to_path_buf(), source };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // An installed kernel's directory has links to its source beside the modules; file_type does not follow them.
        if entry.file_type().map_err(failed)?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The names in `modules.builtin`, one path per line. A directory without the file has none.
fn built_in(directory: &Path) -> Result<HashSet<String>, Error> {
    let list = directory.join("modules.builtin");
    if !list.exists() {
        return Ok(HashSet::new());
    }
    let text = String::from_utf8_lossy(&read(&list)?).into_owned();
    Ok(text.lines().filter_map(|line| module_name(line.rsplit('/').next()?)).collect())
}

fn module_name(file: &str) -> Option<String> {
    let (stem, extension) = file.split_once(".ko")?;
    ["", ".gz", ".xz", ".zst"].contains(&extension).then(|| canonical(stem))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// A module's ELF file, decompressed and without its signature. Checking the signature costs the guest about a quarter of the
/// time that loading takes (35 of 120 ms for eight modules under emulation), and proves nothing: the kernel beside it
/// is not signed for the guest either, and both come from the host. The price is a taint flag in the guest's kernel.
fn contents(file: &Path) -> Result<Vec<u8>, Error> {
    let bytes = read(file)?;
    let mut bytes = match Compression::of(&bytes) {
        Some(compression) => compression
            .decompress(&bytes, MOST)
            .map_err(|error| Error::unusable(file, format!("it cannot be decompressed ({error})")))?,
        None => bytes,
    };
    let length = unsigned_length(&bytes).ok_or_else(|| Error::unusable(file, "its signature is longer than itself"))?;
    bytes.truncate(length);
    Ok(bytes)
}

/// How long a module is without its signature, if it has one.
fn unsigned_length(module: &[u8]) -> Option<usize> {
    let Some(rest) = module.strip_suffix(SIGNED) else { return Some(module.len()) };
    let length = u32::from_be_bytes(*rest.last_chunk()?) as usize;
    rest.len().checked_sub(SIGNATURE_INFO)?.checked_sub(length)
}

/// The names a module depends on.
fn dependencies(module: &[u8]) -> Result<Vec<String>, String> {
    let elf = object::File::parse(module).map_err(|error| format!("it is not an ELF file ({error})"))?;
    let section = elf.section_by_name(".modinfo").ok_or("it has no section .modinfo, so it is not a kernel module")?;
    let info = section.data().map_err(|error| format!("its section .modinfo cannot be read ({error})"))?;
    let mut names = Vec::new();
    for field in info.split(|byte| *byte == 0) {
        if let Some(list) = field.strip_prefix(b"depends=") {
            let list = String::from_utf8_lossy(list);
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(canonical));
        }
    }
    Ok(names)
}

#[cfg(test)]
#[path = "modules_tests.rs"]
pub(crate) mod tests;
