//! Finding QEMU, the guest kernel and the guest image.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Qemu};

/// What a guest boots from; every path is absolute and existed when it was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFiles {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest image.
    pub image: GuestImage,
}

/// A guest image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestImage {
    /// An initial RAM disk.
    Initrd(PathBuf),
    /// A disk.
    Disk {
        /// The file.
        path: PathBuf,
        /// `kernel_verity_params`.
        verity: Option<String>,
    },
}

/// Names of the kernel and of both kinds of images in a `share/kata-containers` directory.
const KERNEL: &str = "vmlinux.container";
const INITRD: &str = "kata-containers-initrd.img";
const IMAGE: &str = "kata-containers.img";

/// Where those directories are after the one that belongs to this program.
const SHARES: [&str; 3] =
    ["/usr/share/kata-containers", "/usr/local/share/kata-containers", "/opt/kata/share/kata-containers"];

/// Where a QEMU of our own is looked for, and before it, where KVM works, one without an emulator: below the prefix that
/// this program is installed in, and below the usual ones.
const OWN: &str = "lib/kata-containers/qemu/bin";
const OWN_KVM: &str = "lib/kata-containers/qemu-kvm/bin";
const PREFIXES: [&str; 3] = ["/usr", "/usr/local", "/opt/kata"];

/// Where QEMU is looked for after `PATH`, which a daemon's environment may lack.
const PROGRAMS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/opt/kata/bin"];

impl Qemu {
    /// Finds what the guest boots from. A configured path is taken as it is. Otherwise kernel and image are looked for in
    /// `../share/kata-containers` as seen from this program's real path, and in the usual places.
    ///
    /// # Errors
    /// [`Error::Missing`] for the first that does not exist, a configured QEMU program included.
    pub fn locate_guest(&self) -> Result<GuestFiles, Error> {
        self.locate_guest_from(env::current_exe().ok().as_deref())
    }

    /// Finds the QEMU program: the configured one, or else `name` of a QEMU of our own if one is installed, or else in `PATH` and
    /// the usual directories of programs. `package` is what Debian has it in, for the error; `kvm` says that it need not be
    /// able to emulate.
    ///
    /// # Errors
    /// [`Error::Missing`] if it does not exist.
    pub fn locate_program(&self, name: &str, package: &str, kvm: bool) -> Result<PathBuf, Error> {
        let here = env::current_exe().ok();
        self.locate_program_from(here.as_deref(), name, package, kvm, &env::var_os("PATH").unwrap_or_default())
    }

    fn locate_guest_from(&self, program: Option<&Path>) -> Result<GuestFiles, Error> {
        // What somebody wrote is told to be wrong before what nobody wrote is told to be missing.
        if self.path.is_some() {
            self.choose_program(Vec::new(), String::new())?;
        }
        let own = program.and_then(|program| Some(program.parent()?.parent()?.join("share/kata-containers")));
        let shares: Vec<PathBuf> = own.into_iter().chain(SHARES.map(PathBuf::from)).collect();
        let in_shares = |names: &[&str]| -> Vec<PathBuf> {
            shares.iter().flat_map(|share| names.iter().map(|name| share.join(name))).collect()
        };
        let find = |what, configured: Option<&PathBuf>, names: &[&str], key| {
            let remedy = format!("install the guest's files (`make install`), or set `{key}` in [hypervisor.qemu]");
            choose(what, configured, in_shares(names), key, remedy, Path::is_file)
        };
        let kernel = find("the guest kernel", self.kernel.as_ref(), &[KERNEL], "kernel")?;
        let what = "the guest image";
        let disk = |path| GuestImage::Disk { path, verity: self.kernel_verity_params.clone() };
        let image = match (&self.image, &self.initrd) {
            (Some(image), _) => disk(find(what, Some(image), &[], "image")?),
            (None, Some(initrd)) => GuestImage::Initrd(find(what, Some(initrd), &[], "initrd")?),
            // Parameters to check an image by are a demand for one that can be checked.
            (None, None) if self.kernel_verity_params.is_some() => disk(find(what, None, &[IMAGE], "image")?),
            (None, None) => match find(what, None, &[INITRD, IMAGE], "initrd")? {
                path if path.ends_with(IMAGE) => disk(path),
                path => GuestImage::Initrd(path),
            },
        };
        Ok(GuestFiles { kernel, image })
    }

    fn locate_program_from(
        &self,
        here: Option<&Path>,
        name: &str,
        package: &str,
        kvm: bool,
        path: &OsStr,
    ) -> Result<PathBuf, Error> {
        let prefix = here.and_then(|program| Some(program.parent()?.parent()?.to_owned()));
        let mut prefixes: Vec<PathBuf> = prefix.into_iter().chain(PREFIXES.map(PathBuf::from)).collect();
        prefixes.dedup();
        let flavours = if kvm { &[OWN_KVM, OWN][..] } else { &[OWN] };
        let own = prefixes.iter().flat_map(|prefix| flavours.iter().map(|flavour| prefix.join(flavour)));
        let mut programs: Vec<PathBuf> = own.collect();
        programs.extend(env::split_paths(path).filter(|directory| directory.is_absolute()));
        for directory in PROGRAMS.map(PathBuf::from) {
            if !programs.contains(&directory) {
                programs.push(directory);
            }
        }
        let programs = programs.into_iter().map(|directory| directory.join(name)).collect();
        let remedy = format!("install QEMU (Debian: {package}), or set `path` in [hypervisor.qemu]");
        self.choose_program(programs, remedy)
    }

    fn choose_program(&self, programs: Vec<PathBuf>, remedy: String) -> Result<PathBuf, Error> {
        choose("the QEMU program", self.path.as_ref(), programs, "path", remedy, is_program)
    }
}

fn choose(
    what: &'static str,
    configured: Option<&PathBuf>,
    candidates: Vec<PathBuf>,
    key: &str,
    remedy: String,
    good: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Error> {
    let (candidates, remedy) = match configured {
        Some(path) => (vec![path.clone()], format!("correct `{key}` in [hypervisor.qemu]")),
        None => (candidates, remedy),
    };
    if let Some(found) = candidates.iter().find(|path| good(path)) {
        return Ok(found.clone());
    }
    let looked_at = candidates.iter().map(|path| path.display().to_string()).collect();
    Err(Error::Missing { what, looked_at, remedy })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn files_are_found_beside_the_program_and_qemu_in_path() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let qemu = at("q/qemu-system-z");
        executable(&qemu);
        fs::create_dir_all(at("share/kata-containers")).unwrap();
        fs::write(at("share/kata-containers/vmlinux.container"), "").unwrap();
        fs::write(at("share/kata-containers/kata-containers-initrd.img"), "").unwrap();
        let found = Qemu::default().locate_guest_from(Some(&at("bin/kata-runtime"))).unwrap();
        assert_eq!(found.kernel, at("share/kata-containers/vmlinux.container"));
        let initrd = at("share/kata-containers/kata-containers-initrd.img");
        assert_eq!(found.image, GuestImage::Initrd(initrd.clone()));
        let here = at("bin/kata-runtime");
        let program = |kvm| {
            Qemu::default()
                .locate_program_from(Some(&here), "qemu-system-z", "qemu-z", kvm, at("q").as_os_str())
                .unwrap()
        };
        assert_eq!((program(false), program(true)), (qemu.clone(), qemu));

        let image = at("share/kata-containers/kata-containers.img");
        fs::write(&image, "").unwrap();
        let image_of = |qemu: &Qemu| qemu.locate_guest_from(Some(&at("bin/kata-runtime"))).unwrap().image;
        assert_eq!(image_of(&Qemu::default()), GuestImage::Initrd(initrd.clone()), "as before");
        let verity = Some("a=b".to_owned());
        let qemu = Qemu { kernel_verity_params: verity.clone(), ..Qemu::default() };
        assert_eq!(image_of(&qemu), GuestImage::Disk { path: image.clone(), verity });
        fs::remove_file(initrd).unwrap();
        assert_eq!(image_of(&Qemu::default()), GuestImage::Disk { path: image, verity: None });
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let here = Some(Path::new("/usr/bin/kata-runtime"));
        let error =
            Qemu::default().locate_program_from(here, "qemu-system-z", "qemu-z", false, OsStr::new("/n")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the QEMU program was not found: looked at /usr/lib/kata-containers/qemu/bin/qemu-system-z, \
             /usr/local/lib/kata-containers/qemu/bin/qemu-system-z, /opt/kata/lib/kata-containers/qemu/bin/qemu-system-z, \
             /n/qemu-system-z, /usr/bin/qemu-system-z, /usr/local/bin/qemu-system-z, /opt/kata/bin/qemu-system-z; install \
             QEMU (Debian: qemu-z), or set `path` in [hypervisor.qemu]"
        );
    }

    #[test]
    fn a_qemu_of_our_own_is_preferred_and_the_one_without_an_emulator_only_where_kvm_works() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let here = at("bin/kata-runtime");
        let find = |kvm| {
            Qemu::default().locate_program_from(Some(&here), "qemu-system-z", "p", kvm, at("q").as_os_str()).unwrap()
        };
        let distribution = at("q/qemu-system-z");
        executable(&distribution);
        let kvm_only = at("lib/kata-containers/qemu-kvm/bin/qemu-system-z");
        executable(&kvm_only);
        assert_eq!((find(false), find(true)), (distribution, kvm_only.clone()));
        let own = at("lib/kata-containers/qemu/bin/qemu-system-z");
        executable(&own);
        assert_eq!((find(false), find(true)), (own, kvm_only));
    }

    #[test]
    fn a_configured_path_is_the_only_one_looked_at() {
        let qemu = Qemu { path: Some("/nowhere/qemu".into()), ..Qemu::default() };
        let error = qemu.locate_program_from(None, "q", "p", false, OsStr::new("/usr/bin")).unwrap_err().to_string();
        assert_eq!(
            error,
            "the QEMU program was not found: looked at /nowhere/qemu; correct `path` in [hypervisor.qemu]"
        );
    }

    #[test]
    fn a_missing_kernel_names_every_place_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let qemu = Qemu { kernel: Some(directory.path().join("k")), ..Qemu::default() };
        let error = qemu.locate_guest_from(None).unwrap_err().to_string();
        assert!(error.contains("correct `kernel`"), "{error}");
        let looked =
            choose("the guest kernel", None, vec!["/a/k".into(), "/b/k".into()], "kernel", "do".into(), |_| false);
        assert_eq!(looked.unwrap_err().to_string(), "the guest kernel was not found: looked at /a/k, /b/k; do");
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_not_a_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("q");
        fs::write(&path, "").unwrap();
        assert!(!is_program(&path) && !is_program(directory.path()));
    }
}
