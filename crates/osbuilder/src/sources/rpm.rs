//! Fedora and its relatives, by dnf.
//!
//! dnf is told everything by files of our own: what the host's configuration says has no say in an image.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use super::{Root, from, needs_root, packages, path_of};
use crate::{
    Architecture, Error,
    definition::Definition,
    run::{self, Program, Tool},
    tree::Tree,
};

const DNF: Program = Program { name: "dnf", package: "dnf" };
const RPM: Program = Program { name: "rpm", package: "rpm" };

/// A whole Fedora over a slow line.
const WITHIN: Duration = Duration::from_secs(3600);

/// What packages' scripts expect to find in the root they run in. dnf is run in a mount namespace of its own, with which these
/// mounts end. `$1` is the root; the rest is what is run.
const WITH_MOUNTS: &str = r#"set -e
root=$1
shift
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,noexec,mode=0755 dev "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
exec "$@"
"#;

pub(super) fn preconditions() -> Result<(), Error> {
    DNF.find()?;
    RPM.find()?;
    needs_root("dnf")
}

pub(super) fn root(
    definition: &Definition,
    architecture: Architecture,
    epoch: u32,
    shown: bool,
) -> Result<Root, Error> {
    let work = run::work_directory()?;
    let [root, home, repositories, keys] = ["root", "home", "repositories", "keys"].map(|name| path_of(&work, name));
    for directory in [&root, &home, &repositories, &keys, &root.join("proc"), &root.join("dev")] {
        fs::create_dir(directory).map_err(|source| Error::Write { path: directory.clone(), source })?;
    }
    let write = |path: &Path, text: &str| {
        fs::write(path, text).map_err(|source| Error::Write { path: path.to_path_buf(), source })
    };
    // Debian's rpm keeps its database in the user's home unless it is told. What is mounted in the root must not be touched.
    let database = definition.database.display();
    let macros = format!("%_dbpath {database}\n%_netsharedpath /dev:/proc:/sys\n%_install_langs C:en_US\n");
    write(&home.join(".rpmmacros"), &macros)?;
    let mut key_urls = Vec::new();
    if definition.signed {
        for key in &definition.keys {
            key_urls.push(format!("file://{}", key.file(&keys)?.display()));
        }
    }
    write(&repositories.join("all.repo"), &repository_file(definition, architecture, &key_urls))?;
    let configuration = path_of(&work, "dnf.conf");
    write(&configuration, &main_file(&work))?;

    let mut dnf = vec!["-y".to_owned(), "--noplugins".into(), format!("--config={}", configuration.display())];
    dnf.push(format!("--installroot={}", root.display()));
    dnf.push(format!("--releasever={}", definition.release));
    dnf.push(format!("--setopt=reposdir={}", repositories.display()));
    if Architecture::host() != Some(architecture) {
        dnf.push(format!("--forcearch={architecture}"));
    }
    dnf.push("install".into());
    dnf.extend(definition.packages.iter().cloned());
    let shell = Program { name: "sh", package: "dash" };
    Tool::new(&shell, from(definition, architecture))?
        .called("dnf")
        .args(["-c", WITH_MOUNTS, "sh"])
        .arg(&root)
        .arg(DNF.find()?)
        .args(dnf)
        .env("HOME", &home)
        .env("TMPDIR", work.path())
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .within(WITHIN)
        .shown(shown)
        .contained()?
        .run()?;

    let output = Tool::new(&RPM, "listing what was installed")?
        .arg(format!("--root={}", root.display()))
        .args(["-qa", "--qf", packages::RPM_FORMAT])
        .env("HOME", &home)
        .contained()?
        .run()?;
    let mut tree = Tree::read(&root)?;
    make_reproducible(&mut tree, definition);
    Ok(Root {
        tree,
        packages: packages::rpm(&String::from_utf8_lossy(&output.stdout)),
        _keep: vec![work],
        ..Root::default()
    })
}

/// The package database says when each package was installed, in a form that cannot be changed from outside, so that no two builds are
/// the same. It is left out: the bill of materials beside the image says what is in it.
fn make_reproducible(tree: &mut Tree, definition: &Definition) {
    let database = definition.database.strip_prefix("/").unwrap_or(&definition.database);
    if let Ok(found) = tree.resolve(database, true) {
        tree.empty(&found);
    }
    // Made by the dynamic loader's configuration and by chance, in this order.
    for name in ["var/cache/ldconfig", "etc/machine-id", "var/lib/systemd/random-seed"] {
        if let Ok(found) = tree.resolve(Path::new(name), true) {
            tree.remove(&found);
        }
    }
}

fn main_file(work: &tempfile::TempDir) -> String {
    let mut text = "[main]\n".to_owned();
    for (name, value) in [
        ("cachedir", path_of(work, "cache")),
        ("logdir", path_of(work, "log")),
        ("persistdir", path_of(work, "state")),
        ("varsdir", path_of(work, "variables")),
    ] {
        let _ = writeln!(text, "{name}={}", value.display());
    }
    text.push_str("install_weak_deps=False\ntsflags=nodocs\nbest=True\nskip_if_unavailable=False\nkeepcache=False\n");
    text.push_str("retries=3\ntimeout=30\n");
    text
}

fn repository_file(definition: &Definition, architecture: Architecture, keys: &[String]) -> String {
    let mut text = String::new();
    for (number, repository) in definition.repositories.iter().enumerate() {
        let url = definition.fill(&repository.url, architecture);
        let check = u8::from(definition.signed);
        let _ = writeln!(text, "[repository-{number}]\nname={url}\nbaseurl={url}\nenabled=1\ngpgcheck={check}");
        if !keys.is_empty() {
            let _ = writeln!(text, "gpgkey={}", keys.join(" "));
        }
    }
    text
}
