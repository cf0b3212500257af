//! Tests of [`super`].

use std::ops::Range;

use super::{
    super::{gpt::tests as gpt_tests, verity::tests as verity_tests},
    *,
};

/// GUIDs as they are stored.
const LINUX_STORED: [u8; 16] = stored("0fc63daf84834772" /* - */, "8e793d69d8477de4");
const ROOT_X86: [u8; 16] = stored("4f68bce3e8cd4db1", "96e7fbcaf984b709");
const VERITY_X86: [u8; 16] = stored("2c7357edebd246d9", "aec123d437ec2bf5");
const ROOT_ARM: [u8; 16] = stored("b921b0451df041c3", "af444c6f280d3fae");
const EFI: [u8; 16] = stored("c12a7328f81f11d2", "ba4b00a0c93ec93b");

/// Turns a GUID's digits into the order they are stored in.
const fn stored(front: &str, back: &str) -> [u8; 16] {
    const fn digit(byte: u8) -> u8 {
        if byte >= b'a' { byte - b'a' + 10 } else { byte - b'0' }
    }
    const ORDER: [usize; 8] = [3, 2, 1, 0, 5, 4, 7, 6];
    let (front, back) = (front.as_bytes(), back.as_bytes());
    let mut out = [0; 16];
    let mut at = 0;
    while at < 8 {
        out[ORDER[at]] = digit(front[2 * at]) << 4 | digit(front[2 * at + 1]);
        out[8 + at] = digit(back[2 * at]) << 4 | digit(back[2 * at + 1]);
        at += 1;
    }
    out
}

/// Sectors of the partitions: 128 blocks of data, and two of hashes.
const DATA: Range<u64> = 40..40 + 128 * 8;
const TREE: Range<u64> = DATA.end..DATA.end + 16;
const SIZE: usize = TREE.end as usize * 512;

fn build(root: [u8; 16], verity: Option<[u8; 16]>) -> Vec<u8> {
    let mut partitions = vec![(root, DATA.start, DATA.end - 1)];
    partitions.extend(verity.map(|kind| (kind, TREE.start, TREE.end - 1)));
    let mut file = gpt_tests::image(SIZE, &partitions);
    let super_at = DATA.start as usize * 512 + 1024;
    file[super_at..super_at + 4].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
    if verity.is_some() {
        let head = verity_tests::superblock(128);
        let at = TREE.start as usize * 512;
        file[at..at + head.len()].copy_from_slice(&head);
    }
    file
}

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn write(&self, content: &[u8]) -> &Self {
        fs::write(self.path(), content).unwrap();
        self
    }

    fn open(&self, parameters: Option<&str>) -> std::result::Result<Disk, String> {
        Disk::open(&self.path(), parameters, Arch::X86_64).map_err(|error| error.to_string())
    }

    /// The error, without the path in front.
    fn refusal(&self, parameters: Option<&str>) -> String {
        let text = self.open(parameters).unwrap_err();
        text.split_once(&self.path().display().to_string()).map_or(text.clone(), |(_, rest)| rest.trim().into())
    }
}

#[test]
fn an_image_without_verity_is_booted_from_its_first_partition() {
    let lab = Lab::new();
    for kind in [LINUX_STORED, ROOT_X86] {
        let disk = lab.write(&build(kind, None)).open(None).unwrap();
        assert_eq!(disk.kernel_params(), "root=/dev/vda1 rootfstype=erofs ro");
    }
    let mut ext4 = build(LINUX_STORED, None);
    let at = DATA.start as usize * 512 + 1024;
    ext4[at..at + 4].fill(0);
    ext4[at + 56..at + 58].copy_from_slice(&[0x53, 0xef]);
    assert_eq!(lab.write(&ext4).open(None).unwrap().kernel_params(), "root=/dev/vda1 rootfstype=ext4 ro");
}

#[test]
fn verity_parameters_come_from_the_configuration_or_the_file_beside_it() {
    let lab = Lab::new();
    lab.write(&build(ROOT_X86, Some(VERITY_X86)));
    let text = verity_tests::text(128);
    let params = lab.open(Some(&text)).unwrap().kernel_params();
    let (start, end) = ("dm-mod.create=\"root,,,ro,0 1024 verity 1 /dev/vda1 /dev/vda2 4096 4096 128 1 sha256 ", "ro");
    assert!(params.starts_with(start) && params.ends_with(end), "{params}");
    assert!(params.contains("panic_on_corruption\" root=/dev/dm-0 rootfstype=erofs ro"), "{params}");

    let beside = parameters_file(&lab.path());
    fs::write(&beside, format!("{text}\n")).unwrap();
    assert_eq!(lab.open(None).unwrap().kernel_params(), params);
    fs::write(&beside, "nonsense").unwrap();
    assert_eq!(lab.open(Some(&text)).unwrap().kernel_params(), params, "the configuration wins");
    let error = lab.open(None).unwrap_err();
    assert!(error.starts_with(&format!("the file of verity parameters {} is malformed", beside.display())), "{error}");
}

#[test]
fn verity_cannot_be_lost_on_the_way() {
    let lab = Lab::new();
    let text = verity_tests::text(128);
    for kind in [VERITY_X86, LINUX_STORED] {
        let error = lab.write(&build(ROOT_X86, Some(kind))).refusal(None);
        assert!(error.starts_with("has a hash tree in partition 2, but the parameters"), "{error}");
        assert!(error.contains("set kernel_verity_params in the configuration, or restore "), "{error}");
    }
    let error = lab.write(&build(ROOT_X86, None)).refusal(Some(&text));
    assert!(error.starts_with("has verity parameters, but no partition 2"), "{error}");
    let error = lab.refusal(Some("root_hash=1"));
    assert!(error.starts_with("kernel_verity_params is \"root_hash=1\", but root_hash is"), "{error}");
}

#[test]
fn what_contradicts_the_root_hash_is_called_that() {
    let lab = Lab::new();
    let image = build(ROOT_X86, Some(VERITY_X86));
    lab.write(&image);
    let tampered = "does not match its root hash: ";
    for (parameters, part) in [
        (verity_tests::text(127), "contradicts the parameters in data_blocks; it is damaged or was tampered with"),
        (verity_tests::text(128).replace("0011", "0012"), "in salt;"),
    ] {
        let error = lab.refusal(Some(&parameters));
        assert!(error.starts_with(tampered) && error.contains(part), "{error}");
    }
    // Without a superblock the lengths still have to fit.
    let mut bare = image;
    bare[TREE.start as usize * 512..][..8].fill(0);
    lab.write(&bare);
    assert!(lab.open(Some(&verity_tests::text(128))).unwrap().kernel_params().contains(" 128 0 sha256 "));
    for (blocks, part) in [(129, "partition 1 is shorter than data_blocks say"), (u64::MAX, "partition 1 is shorter")] {
        let error = lab.refusal(Some(&verity_tests::text(blocks)));
        assert!(error.starts_with(tampered) && error.contains(part), "{error}");
    }
    let small = verity_tests::text(128).replace("hash_block_size=4096", "hash_block_size=512");
    let error =
        lab.refusal(Some(&small.replace("data_blocks=128", "data_blocks=1024").replace("size=4096", "size=512")));
    assert!(error.contains("partition 2 is too short for the hash tree"), "{error}");
}

#[test]
fn images_that_do_not_fit_are_refused_in_words() {
    let lab = Lab::new();
    let error = lab.write(&build(ROOT_ARM, None)).refusal(None);
    assert!(error.starts_with("is for aarch64, but the guest kernel is for x86_64; set image or initrd"), "{error}");
    let error = lab.write(&build(EFI, None)).refusal(None);
    assert!(error.contains("has a partition 1 of type c12a7328-f81f-11d2-ba4b-00a0c93ec93b: 0fc6"), "{error}");
    let error = lab.write(&build(ROOT_X86, Some(EFI))).refusal(Some(&verity_tests::text(128)));
    assert!(error.contains("has a partition 2 of type"), "{error}");
    let error = lab.write(&gpt_tests::image(SIZE, &[])).refusal(None);
    assert!(error.starts_with("has no partition 1"), "{error}");
    let error = lab.write(&gpt_tests::image(SIZE, &[(LINUX_STORED, DATA.start, DATA.end - 1)])).refusal(None);
    assert!(error.starts_with("has neither an erofs nor an ext4 file system"), "{error}");
    let error = lab.write(b"070701").refusal(None);
    assert!(error.ends_with("set initrd instead of image in the configuration"), "{error}");
    let error = lab.write(b"").refusal(None);
    assert!(error.starts_with("is no disk image: a GUID partition table was expected"), "{error}");
    fs::remove_file(lab.path()).unwrap();
    assert!(lab.refusal(None).starts_with("does not exist; set image"));
}
