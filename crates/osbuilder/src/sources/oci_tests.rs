//! Images made by hand.

use tar::EntryType::{Regular, Symlink};

use super::*;
use crate::{
    compression::tests::{XZ, gzip},
    tree::archive::tests::archive,
};

struct Image {
    directory: TempDir,
}

impl Image {
    fn new(architecture: &str, layers: &[Vec<u8>]) -> Image {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        let image = Image { directory };
        let config = image.blob(format!("{{\"architecture\":\"{architecture}\",\"os\":\"linux\"}}").as_bytes());
        let layers: Vec<String> = layers.iter().map(|layer| image.blob(layer)).collect();
        let manifest = image.blob(format!("{{\"config\":{config},\"layers\":[{}]}}", layers.join(",")).as_bytes());
        // Through an index of its own, as buildx writes it.
        let index = image.blob(format!("{{\"manifests\":[{manifest}]}}").as_bytes());
        let index = index.replace("{\"digest", "{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"digest");
        image.file("index.json", &format!("{{\"manifests\":[{index}]}}"));
        image.file("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}");
        image
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    /// Writes a blob and returns its descriptor.
    fn blob(&self, bytes: &[u8]) -> String {
        let digest = hex(&Sha256::digest(bytes));
        fs::write(self.directory.path().join("blobs/sha256").join(&digest), bytes).unwrap();
        format!("{{\"digest\":\"sha256:{digest}\",\"size\":{}}}", bytes.len())
    }

    fn root(&self) -> Result<Root, String> {
        root(self.directory.path(), Some(Architecture::X86_64)).map_err(|error| error.to_string())
    }
}

fn layers() -> Vec<Vec<u8>> {
    let lower =
        archive(&[(Regular, "etc/a", 0o644, "a"), (Regular, "etc/b", 0o644, "b"), (Symlink, "bin", 0o777, "usr/bin")]);
    let middle = archive(&[(Regular, "etc/.wh.a", 0o644, ""), (Regular, "bin/sh", 0o755, "sh")]);
    let upper = archive(&[(Regular, "var/x", 0o644, &"x".repeat(10_000))]);
    vec![lower, gzip(&middle), zstd::encode_all(&upper[..], 1).unwrap()]
}

fn names(root: &Root) -> Vec<&str> {
    root.tree.iter().filter_map(|(path, _, _)| path.to_str()).collect()
}

const EXPECTED: [&str; 8] = ["bin", "etc", "etc/b", "usr", "usr/bin", "usr/bin/sh", "var", "var/x"];

#[test]
fn layers_of_every_compression_are_stacked() {
    assert_eq!(names(&Image::new("amd64", &layers()).root().unwrap()), EXPECTED);
}

#[test]
fn an_archive_of_a_layout_is_the_same() {
    let image = Image::new("amd64", &layers());
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut builder = tar::Builder::new(file.reopen().unwrap());
    builder.append_dir_all(".", image.directory.path()).unwrap();
    builder.finish().unwrap();
    let root = root(file.path(), Some(Architecture::X86_64)).unwrap();
    assert_eq!(names(&root), EXPECTED);
    assert!(root.tree.lookup("var/x").is_some());
}

#[test]
fn what_is_wrong_with_an_archive_names_the_archive() {
    for missing in ["index.json", "blobs/sha256"] {
        let image = Image::new("amd64", &layers());
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(file.reopen().unwrap());
        for name in ["oci-layout", "index.json"].into_iter().filter(|name| *name != missing) {
            builder.append_path_with_name(image.directory.path().join(name), name).unwrap();
        }
        builder.finish().unwrap();
        let error = root(file.path(), Some(Architecture::X86_64)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot read {}/{missing}", file.path().display())), "{error}");
    }
}

#[test]
fn layers_and_archives_in_xz_are_refused() {
    let error = Image::new("amd64", &[XZ.to_vec()]).root().unwrap_err();
    assert!(
        error.contains("/blobs/sha256/") && error.contains("it is compressed with xz, where gzip and zstd"),
        "{error}"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), XZ).unwrap();
    let error = root(file.path(), Some(Architecture::X86_64)).unwrap_err().to_string();
    assert!(error.contains("it is compressed with xz"), "{error}");
}

#[test]
fn what_is_wrong_is_told() {
    let image = Image::new("arm64", &layers());
    assert!(image.root().unwrap_err().contains("no image for linux/amd64; --arch names another"));

    let image = Image::new("amd64", &layers());
    let layer = image.directory.path().join("blobs/sha256").join(hex(&Sha256::digest(&layers()[0])));
    let mut bytes = fs::read(&layer).unwrap();
    bytes[5] ^= 1;
    fs::write(&layer, &bytes).unwrap();
    assert!(image.root().unwrap_err().contains("does not match its digest"));
    fs::write(&layer, &bytes[1..]).unwrap();
    assert!(image.root().unwrap_err().contains("may be cut off"));
    fs::remove_file(&layer).unwrap();
    assert!(image.root().unwrap_err().contains("cannot read"));

    let image = Image::new("amd64", &[b"no archive, but long enough".repeat(100)]);
    assert!(image.root().unwrap_err().contains("tar archive"));

    for (index, expected) in [
        ("{", "its index.json cannot be read"),
        ("{\"manifests\":[{\"digest\":\"sha256:../../../etc/passwd\",\"size\":1}]}", "is no SHA-256 digest"),
        ("{\"manifests\":[{\"digest\":\"sha512:00\",\"size\":1}]}", "is no SHA-256 digest"),
        ("{\"manifests\":[]}", "no image for linux/amd64"),
    ] {
        image.file("index.json", index);
        let error = image.root().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    fs::remove_file(image.directory.path().join("oci-layout")).unwrap();
    assert!(image.root().unwrap_err().contains("holds no oci-layout"));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(root(file.path(), Some(Architecture::X86_64)).unwrap_err().to_string().contains("holds no oci-layout"));
}

#[test]
fn indexes_that_name_one_another_without_end_come_to_one() {
    let image = Image::new("amd64", &layers());
    let kind = "{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"digest";
    let mut index = "{\"manifests\":[]}".to_owned();
    for _ in 0..3 {
        let one = image.blob(index.as_bytes()).replace("{\"digest", kind);
        index = format!("{{\"manifests\":[{}]}}", vec![one; 80].join(","));
    }
    image.file("index.json", &index);
    assert!(image.root().unwrap_err().contains("refer to more than 1000 images"));
}
