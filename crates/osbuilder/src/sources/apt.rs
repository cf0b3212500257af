//! Debian and its descendants, by mmdebstrap.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use super::{Root, from, path_of};
use crate::{
    Architecture, Error,
    definition::Definition,
    run::{self, Program, Tool},
    tree::archive::Unpacker,
};

const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };

/// A whole Debian over a slow line.
const WITHIN: Duration = Duration::from_secs(3600);

pub(super) fn preconditions(definition: &Definition) -> Result<(), Error> {
    MMDEBSTRAP.find()?;
    // It runs apt-get, which mmdebstrap's package depends on, and gpgv, which apt does.
    if let Some(repository) = definition.repositories.iter().find(|repository| repository.components.is_empty()) {
        return Err(Error::Usage(format!("the repository {} needs components, such as main", repository.url)));
    }
    Ok(())
}

pub(super) fn root(
    definition: &Definition,
    architecture: Architecture,
    epoch: u32,
    shown: bool,
) -> Result<Root, Error> {
    let work = run::work_directory()?;
    let keys = path_of(&work, "keys");
    // apt verifies as a user of its own, who must get there.
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o711))
        .map_err(|source| Error::Write { path: work.path().to_path_buf(), source })?;
    fs::create_dir(&keys).map_err(|source| Error::Write { path: keys.clone(), source })?;
    let mut tool = Tool::new(&MMDEBSTRAP, from(definition, architecture))?
        .args(["--variant=custom", "--format=tar"])
        .arg(format!("--architectures={}", architecture.debian()))
        .arg(format!("--include={}", definition.packages.join(",")));
    // Named with each repository: mmdebstrap would otherwise find Debian's own keys by itself, whatever was asked for.
    let mut signers = Vec::new();
    for (number, key) in definition.keys.iter().enumerate() {
        let file = key.file(&keys)?;
        // A key given as text is known by its name; apt takes it from there.
        let text = fs::read(&file).map_err(|source| Error::Read { path: file.clone(), source })?;
        let ending = if text.starts_with(b"-----BEGIN") { "asc" } else { "gpg" };
        let copy = keys.join(format!("{number}.{ending}"));
        fs::write(&copy, text).map_err(|source| Error::Write { path: copy.clone(), source })?;
        signers.push(copy.display().to_string());
    }
    let archive = path_of(&work, "root.tar");
    // The first suite is the distribution itself.
    let suite = definition.repositories.first().and_then(|repository| repository.suites.first()).cloned();
    let suite = definition.fill(&suite.unwrap_or_default(), architecture);
    tool = tool.arg(suite).arg(&archive);
    for repository in &definition.repositories {
        for suite in &repository.suites {
            let (url, components) = (&repository.url, repository.components.join(" "));
            let line = format!("deb [signed-by={}] {url} {suite} {components}", signers.join(","));
            tool = tool.arg(definition.fill(&line, architecture));
        }
    }
    tool = tool.env("SOURCE_DATE_EPOCH", epoch.to_string()).within(WITHIN).shown(shown);
    // Who is not root has a user namespace for it, if /etc/subuid allows that; mmdebstrap says so if not.
    tool = if run::is_root() { tool.env("TMPDIR", work.path()).contained()? } else { tool };
    tool.run()?;
    let contents = path_of(&work, "contents");
    fs::create_dir(&contents).map_err(|source| Error::Write { path: contents.clone(), source })?;
    let mut unpacker = Unpacker::new(&contents);
    unpacker.add(&archive, run::open(&archive)?)?;
    let tree = unpacker.tree;
    fs::remove_file(&archive).map_err(|source| Error::Write { path: archive.clone(), source })?;
    Ok(Root { tree, _keep: vec![work], ..Root::default() })
}
