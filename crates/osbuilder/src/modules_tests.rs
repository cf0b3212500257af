//! Tests of [`super`].

use super::*;
use crate::compression::tests::gzip;

/// A relocatable ELF file whose only section is `.modinfo` with `info`.
pub(crate) fn module(info: &[u8]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let info_at = 64;
    let names_at = info_at + info.len();
    let table_at = (names_at + names.len()).next_multiple_of(8);
    let mut out = vec![0; 64];
    out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (out[16], out[18], out[20]) = (1, 62, 1);
    out[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
    (out[52], out[58], out[60], out[62]) = (64, 64, 3, 2);
    out.extend(info);
    out.extend(names);
    out.resize(table_at + 64, 0);
    for (name, kind, at, size) in [(1u32, 1u32, info_at, info.len()), (10, 3, names_at, names.len())] {
        let mut section = [0; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[4..8].copy_from_slice(&kind.to_le_bytes());
        section[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        section[48] = 1;
        out.extend(section);
    }
    out
}

fn depending_on(names: &str) -> Vec<u8> {
    module(format!("license=GPL\0depends={names}\0softdep=pre: nothing\0name=x\0").as_bytes())
}

/// A directory like `lib/modules/VERSION`.
fn directory(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    directory
}

fn names(directory: &Path, wanted: &[&str]) -> Vec<String> {
    let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    collect(directory, &wanted).unwrap().into_iter().map(|module| module.name).collect()
}

fn refusal(directory: &Path, wanted: &str) -> String {
    collect(directory, &[wanted.to_owned()]).unwrap_err().to_string()
}

#[test]
fn dependencies_come_first_and_once_whatever_the_dash() {
    let directory = directory(&[
        ("modules.builtin", b"kernel/lib/crc-x.ko\n".to_vec()),
        ("kernel/a/top-one.ko", depending_on("middle,base-thing,crc_x")),
        ("kernel/b/middle.ko.gz", gzip(&depending_on("base_thing"))),
        ("kernel/c/base_thing.ko.zst", zstd::encode_all(&depending_on("")[..], 1).unwrap()),
        ("kernel/c/other.ko", depending_on("middle")),
        ("kernel/c/unrelated.ko", b"not even ELF".to_vec()),
    ]);
    assert_eq!(names(directory.path(), &["top_one", "other", "middle"]), ["base_thing", "middle", "top_one", "other"]);
    assert_eq!(names(directory.path(), &["crc-x"]), [""; 0], "built in");
    assert_eq!(names(directory.path(), &[]), [""; 0]);
}

#[test]
fn a_missing_module_is_named_with_who_needs_it_and_where_it_was_looked_for() {
    let directory = directory(&[("kernel/a.ko", depending_on("b"))]);
    let place = directory.path().display();
    let tail = format!("in {place}, nor is it built into that kernel");
    assert_eq!(refusal(directory.path(), "c"), format!("there is no module c {tail}"));
    assert_eq!(refusal(directory.path(), "a"), format!("there is no module b, which a depends on, {tail}"));
    assert_eq!(refusal(Path::new("/nowhere/6.1"), "a"), "cannot read /nowhere/6.1");
}

#[test]
fn a_circle_and_what_is_no_module_are_refused() {
    let directory = directory(&[
        ("a.ko", depending_on("b")),
        ("b.ko", depending_on("c")),
        ("c.ko", depending_on("b")),
        ("text.ko", b"hello".to_vec()),
        ("cut.ko.gz", gzip(&depending_on(""))[..20].to_vec()),
    ]);
    assert_eq!(refusal(directory.path(), "a"), "the modules b, c depend on each other in a circle");
    assert!(refusal(directory.path(), "text").contains("text.ko is no good: it is not an ELF file"));
    assert!(refusal(directory.path(), "cut").contains("cannot be decompressed"));
}

#[test]
fn a_signature_is_taken_off() {
    let plain = depending_on("");
    let signed = |length: u32| {
        let mut info = [0; SIGNATURE_INFO];
        info[8..].copy_from_slice(&length.to_be_bytes());
        [&plain[..], b"signature", &info, SIGNED].concat()
    };
    let directory = directory(&[("good.ko", signed(9)), ("bad.ko", signed(1 << 20))]);
    let modules = collect(directory.path(), &["good".to_owned()]).unwrap();
    assert_eq!(modules, [Module { name: "good".into(), contents: plain.clone() }]);
    assert!(refusal(directory.path(), "bad").contains("its signature is longer than itself"));
    assert_eq!(unsigned_length(SIGNED), None);
    assert_eq!(unsigned_length(&plain), Some(plain.len()));
}

#[test]
fn a_package_holds_exactly_one_set_of_modules() {
    let directory = directory(&[("usr/lib/modules/6.1/kernel/a.ko", vec![])]);
    assert_eq!(find_in_package(directory.path()).unwrap(), directory.path().join("usr/lib/modules/6.1"));
    fs::create_dir_all(directory.path().join("lib/modules/6.2")).unwrap();
    let error = find_in_package(directory.path()).unwrap_err().to_string();
    assert!(error.starts_with("expected one lib/modules/*") && error.ends_with("found 2"), "{error}");
}
