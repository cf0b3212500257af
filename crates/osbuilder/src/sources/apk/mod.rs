//! Alpine, without its package manager, which no other distribution packages.
//!
//! What is needed of it to fill an empty root is little: read the signed index ([`index`]), choose packages by what they need and
//! provide, fetch each, check it ([`package`]), and take its files. No package's script is run; what one would do that a guest needs,
//! such as busybox's links, stands in the definition.

pub(crate) mod index;
pub(crate) mod package;
mod version;

use std::{fs, path::Path, time::Duration};

use tempfile::TempDir;

use self::{
    index::{Entry, Index},
    package::Keys,
};
use super::{Root, from, packages, path_of};
use crate::{
    Architecture, Error,
    definition::Definition,
    run::{self, Program, Tool},
    tree::{Content, Node, archive::Unpacker},
};

const CURL: Program = Program { name: "curl", package: "curl" };

const WITHIN: Duration = Duration::from_secs(600);

pub(super) fn preconditions() -> Result<(), Error> {
    CURL.find()?;
    package::OPENSSL.find().map(drop)
}

pub(super) fn root(definition: &Definition, architecture: Architecture) -> Result<Root, Error> {
    let work = run::work_directory()?;
    let keys = Keys::of(definition, &work)?;
    let mut index = Index::default();
    for repository in &definition.repositories {
        let url = definition.fill(&repository.url, architecture);
        let base = format!("{}/{architecture}", url.trim_end_matches('/'));
        let url = format!("{base}/APKINDEX.tar.gz");
        let file = fetch(&url, &work, &from(definition, architecture))?;
        let bytes = fs::read(&file).map_err(|source| Error::Read { path: file, source })?;
        let text = package::index(&url, &bytes, |signature, signed| keys.verify(&url, signature, signed))?;
        index.add(&text, &base);
    }
    let chosen = index.resolve(&definition.packages).map_err(Error::Usage)?;
    let contents = path_of(&work, "contents");
    fs::create_dir(&contents).map_err(|source| Error::Write { path: contents.clone(), source })?;
    let mut unpacker = Unpacker::new(&contents);
    for entry in &chosen {
        let url = entry.url();
        let file = fetch(&url, &work, &format!("fetching {url}"))?;
        let bytes = fs::read(&file).map_err(|source| Error::Read { path: file, source })?;
        let verify = |signature: &package::Signature, signed: &[u8]| keys.verify(&url, signature, signed);
        let data = package::data(&url, &bytes, entry, verify)?;
        unpacker.add(Path::new(&url), flate2::bufread::MultiGzDecoder::new(data))?;
    }
    let mut tree = unpacker.tree;
    // The database, so that whoever scans a guest finds its packages.
    let installed: String = chosen.iter().map(|entry| format!("{}\n\n", entry.text)).collect();
    let world: String = definition.packages.iter().map(|name| format!("{name}\n")).collect();
    for (path, text) in [(packages::APK, installed), ("etc/apk/world", world)] {
        let put = tree.install(Path::new(path), Node::file(0o644, Content::Bytes(text.into_bytes())));
        put.map_err(|why| Error::unusable(path, why))?;
    }
    Ok(Root { tree, _keep: vec![work], ..Root::default() })
}

fn fetch(url: &str, work: &TempDir, step: &str) -> Result<std::path::PathBuf, Error> {
    let to = path_of(work, "fetched");
    Tool::new(&CURL, step)?
        .args(["--fail", "--silent", "--show-error", "--location", "--retry", "2", "--connect-timeout", "30"])
        // A repository must not send us to something else, and a package is not larger than this.
        .args(["--proto", "=http,https,file", "--max-filesize", "1G", "--output"])
        .arg(&to)
        .args(["--", url])
        .within(WITHIN)
        .run()?;
    Ok(to)
}

impl Entry {
    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("{}/{}-{}.apk", self.base, self.name, self.version)
    }
}
