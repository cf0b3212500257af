//! The bill of materials beside an image: what is in it, as an SPDX 2.3 document in JSON.
//!
//! It says what is known: the packages that the root's package manager knows, and each file that was put in beside them (the agent, kernel
//! modules) with its digest. What the agent is made of stands in its Cargo.lock, which the document takes in when it is given. Nothing in it comes from the clock or from chance.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Architecture, Error,
    image::verity::hex,
    sources::{Package, Root},
    tree::{Kind, Tree},
};

/// A dependency of the agent, as its lock file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crate {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The package that the agent is built from.
const AGENT: &str = "kata-agent";

#[derive(Debug, serde::Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, serde::Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// What the agent depends on by a Cargo.lock, whether it ends up in the program or only helps to build and test it: the file does not
/// tell these apart.
pub(crate) fn crates(lock: &str) -> Result<Vec<Crate>, String> {
    let lock: Lock = toml::from_str(lock).map_err(|error| error.message().to_owned())?;
    let agent = lock.package.iter().position(|package| package.name == AGENT && package.source.is_none());
    let mut open = vec![agent.ok_or_else(|| format!("it does not hold {AGENT}"))?];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(number) = open.pop() {
        let Some(package) = lock.package.get(number).filter(|_| seen.insert(number)) else { continue };
        for dependency in &package.dependencies {
            // A version follows where there are several of the name.
            let mut words = dependency.split(' ');
            let (name, version) = (words.next().unwrap_or_default(), words.next());
            let found = lock.package.iter().enumerate().filter(|(_, other)| other.name == name);
            open.extend(
                found.filter(|(_, other)| version.is_none_or(|v| other.version == v)).map(|(number, _)| number),
            );
        }
    }
    let found =
        seen.into_iter().filter_map(|number| lock.package.get(number)).filter(|package| package.source.is_some());
    Ok(found
        .map(|Locked { name, version, checksum, .. }| Crate {
            name: name.clone(),
            version: version.clone(),
            checksum: checksum.clone(),
        })
        .collect())
}

/// What a document is about.
pub(crate) struct About<'a> {
    /// The image's file name.
    pub(crate) name: String,
    /// The digest of its contents.
    pub(crate) digest: [u8; 32],
    pub(crate) architecture: Architecture,
    pub(crate) root: &'a Root,
    /// The files in the root that belong to no package.
    pub(crate) files: &'a [String],
    pub(crate) crates: &'a [Crate],
    pub(crate) epoch: u32,
}

/// Writes the document.
pub(crate) fn document(about: &About) -> Result<Vec<u8>, Error> {
    let digest = hex(&about.digest);
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-Image",
        "name": about.name,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "description": format!("a guest image for {}: {}", about.architecture, about.root.description),
        "checksums": [{ "algorithm": "SHA256", "checksumValue": digest }],
    })];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    for (number, package) in about.root.packages.iter().enumerate() {
        let id = format!("SPDXRef-Package-{number}");
        packages.push(of_package(&id, package));
        relations.push(relation("SPDXRef-Image", "CONTAINS", &id));
    }
    let mut files = Vec::new();
    for (number, path) in about.files.iter().enumerate() {
        let Some(digest) = digest_of(&about.root.tree, path)? else { continue };
        let id = format!("SPDXRef-File-{number}");
        files.push(json!({
            "SPDXID": id,
            "fileName": format!("./{path}"),
            "fileTypes": [if path.ends_with("load-order") { "TEXT" } else { "BINARY" }],
            // The format asks for a SHA-1 of each file; a consumer that checks takes the better one.
            "checksums": [
                { "algorithm": "SHA1", "checksumValue": digest.sha1 },
                { "algorithm": "SHA256", "checksumValue": digest.sha256 },
            ],
            "licenseConcluded": "NOASSERTION",
            "copyrightText": "NOASSERTION",
        }));
        relations.push(relation("SPDXRef-DOCUMENT", "DESCRIBES", &id));
        // "Contains" is reserved for packages whose files are all listed.
        let mut within = relation("SPDXRef-Image", "OTHER", &id);
        within["comment"] = json!("the file is in the image, and belongs to none of its packages");
        relations.push(within);
    }
    for (number, locked) in about.crates.iter().enumerate() {
        let id = format!("SPDXRef-Crate-{number}");
        packages.push(of_crate(&id, locked));
        relations.push(relation(&id, "DEPENDENCY_OF", "SPDXRef-Image"));
    }
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": about.name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/{}-{digest}", about.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")),
        "creationInfo": {
            "created": time(about.epoch),
            "creators": [format!("Tool: kata-osbuilder-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "files": files,
        "relationships": relations,
    });
    let mut text = serde_json::to_vec_pretty(&document)
        .map_err(|error| Error::System { step: "writing the bill of materials".into(), source: error.into() })?;
    text.push(b'\n');
    Ok(text)
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

fn of_package(id: &str, package: &Package) -> Value {
    let Package { name, version, architecture, licence, kind } = package;
    let url = format!("pkg:{kind}/{}@{}?arch={}", encoded(name), encoded(version), encoded(architecture));
    let mut value = of_any(id, name, version, &url);
    if !licence.is_empty() {
        // As the distribution writes it, which need not be a licence expression.
        value["licenseComments"] = json!(format!("declared by the package: {licence}"));
    }
    value
}

fn of_crate(id: &str, locked: &Crate) -> Value {
    let mut value =
        of_any(id, &locked.name, &locked.version, &format!("pkg:cargo/{}@{}", locked.name, encoded(&locked.version)));
    if let Some(checksum) = &locked.checksum {
        value["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": checksum }]);
    }
    value
}

fn of_any(id: &str, name: &str, version: &str, url: &str) -> Value {
    json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "externalRefs": [{ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url }],
    })
}

/// As package URLs want it.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

struct Digests {
    sha1: String,
    sha256: String,
}

fn digest_of(tree: &Tree, path: &str) -> Result<Option<Digests>, Error> {
    let Some(Kind::File(content)) = tree.get(path).map(|node| &node.kind) else { return Ok(None) };
    let (mut sha1, mut sha256) = (sha1::Sha1::new(), Sha256::new());
    content.pieces(|piece| {
        sha1.update(piece);
        sha256.update(piece);
        Ok(())
    })?;
    Ok(Some(Digests { sha1: hex(&sha1.finalize()), sha256: hex(&sha256.finalize()) }))
}

/// Seconds since 1970 as a date in UTC.
fn time(epoch: u32) -> String {
    let (days, seconds) = (i64::from(epoch / 86400), epoch % 86400);
    // From days to a date by counting years from the first of March (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tree::{Content, Node};

    #[test]
    fn dates() {
        for (epoch, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (u32::MAX, "2106-02-07T06:28:15Z"),
        ] {
            assert_eq!(time(epoch), expected);
        }
    }

    #[test]
    fn a_document_says_what_is_in_the_image() {
        let mut root = Root { description: "test".into(), ..Root::default() };
        root.tree.install(Path::new("usr/bin/kata-agent"), Node::file(0o755, Content::Bytes(b"abc".to_vec()))).unwrap();
        root.packages.push(Package {
            name: "libstdc++".into(),
            version: "1:2~rc1+b2".into(),
            architecture: "amd64".into(),
            licence: "GPL".into(),
            kind: "deb",
        });
        let lock = "version = 4\n[[package]]\nname = \"kata-agent\"\nversion = \"1.0.0\"\ndependencies = [\"own\"]\n\n\
                    [[package]]\nname = \"own\"\nversion = \"1.0.0\"\ndependencies = [\"serde 1.0.2\"]\n\n\
                    [[package]]\nname = \"serde\"\nversion = \"0.9.0\"\nsource = \"x\"\n\n\
                    [[package]]\nname = \"serde\"\nversion = \"1.0.2\"\nsource = \"x\"\nchecksum = \"00ff\"\n\n\
                    [[package]]\nname = \"other\"\nversion = \"1.0.0\"\nsource = \"x\"\n";
        let crates = crates(lock).unwrap();
        let about = About {
            name: "x.img".into(),
            digest: [1; 32],
            architecture: Architecture::X86_64,
            root: &root,
            files: &["usr/bin/kata-agent".into(), "absent".into()],
            crates: &crates,
            epoch: 0,
        };
        let bytes = document(&about).unwrap();
        assert_eq!(bytes, document(&about).unwrap());
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["packages"].as_array().unwrap().len(), 3);
        let purl = |number: usize| value["packages"][number]["externalRefs"][0]["referenceLocator"].clone();
        assert_eq!(purl(1), "pkg:deb/libstdc%2B%2B@1:2~rc1%2Bb2?arch=amd64");
        assert_eq!(purl(2), "pkg:cargo/serde@1.0.2");
        assert_eq!(value["files"].as_array().unwrap().len(), 1);
        assert_eq!(value["files"][0]["checksums"][0]["checksumValue"], "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(value["documentNamespace"], format!("https://spdx.org/spdxdocs/x-img-{}", "01".repeat(32)));
        assert_eq!(value["relationships"].as_array().unwrap().len(), 5);
    }
}
