//! VMDKs that lie: each is refused with what is wrong, and none reaches another file of the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use block::{Access, BlockDevice, OpenError, open_production, vmdk};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::{run, scratch, sparse_content, text};

/// A directory with a flat data file of 4096 bytes, and the descriptor with these extents.
fn lying(extents: &str) -> (PathBuf, TempDir) {
    let dir = scratch();
    fs::write(dir.path().join("d-flat.vmdk"), vec![7; 4096]).expect("write");
    let path = dir.path().join("d.vmdk");
    let head = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";
    fs::write(&path, format!("{head}{extents}\n")).expect("write");
    (path, dir)
}

fn refused(path: &Path, because: &str) {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = open_production(path, access).expect_err(because);
        let error = error.to_string();
        assert!(error.contains(because), "{error}");
        assert!(
            error.contains(text(path)) || error.contains("d-flat"),
            "{error}"
        );
    }
}

#[test]
fn an_extent_must_lie_in_its_file() {
    let (path, _dir) = lying("RW 9 FLAT \"d-flat.vmdk\" 0");
    refused(
        &path,
        "should reach to byte 4608 of its file, which has 4096",
    );
    let (path, _dir) = lying("RW 1 FLAT \"d-flat.vmdk\" 8");
    refused(&path, "should reach to byte 4608");
    let (path, _dir) = lying("RW 8 FLAT \"gone-flat.vmdk\" 0");
    let error = open_production(&path, Access::ReadOnly).expect_err("missing");
    assert!(error.to_string().contains("gone-flat.vmdk"), "{error}");
}

#[test]
fn a_link_does_not_lead_out_of_the_directory() {
    let (path, dir) = lying("RW 1 FLAT \"link\" 0");
    let secret = scratch();
    fs::write(secret.path().join("secret"), vec![1; 512]).expect("write");
    symlink(secret.path().join("secret"), dir.path().join("link")).expect("link");
    refused(&path, "not a plain file");
}

#[test]
fn a_pipe_or_directory_as_extent_neither_hangs_nor_opens() {
    let (path, dir) = lying("RW 1 FLAT \"odd\" 0");
    run("mkfifo", &[text(&dir.path().join("odd"))]);
    refused(&path, "not a plain file");
    let (path, dir) = lying("RW 1 FLAT \"odd\" 0");
    fs::create_dir(dir.path().join("odd")).expect("mkdir");
    refused(&path, "not a plain file");
}

#[test]
fn extents_may_share_a_file_but_not_its_bytes() {
    let (path, _dir) = lying("RW 4 FLAT \"d-flat.vmdk\" 4\nRW 4 FLAT \"d-flat.vmdk\" 0");
    let disk = open_production(&path, Access::ReadWrite).expect("two halves of one file");
    assert_eq!(disk.device.size(), 4096);
    drop(disk);
    let (path, _dir) = lying("RW 5 FLAT \"d-flat.vmdk\" 0\nRW 4 FLAT \"d-flat.vmdk\" 4");
    refused(&path, "two extents on the same bytes");
    let (path, dir) = lying("RW 8 FLAT \"d-flat.vmdk\" 0\nRW 8 FLAT \"other\" 0");
    fs::hard_link(dir.path().join("d-flat.vmdk"), dir.path().join("other")).expect("link");
    refused(&path, "two extents on the same bytes");
}

/// The guest writes the bytes of the extent: were it the descriptor, it would choose the files.
#[test]
fn the_descriptor_is_no_extent_of_itself() {
    let (path, _dir) = lying("RW 1 FLAT \"d.vmdk\" 0");
    refused(&path, "the descriptor itself");
}

#[test]
fn a_name_that_promises_a_vmdk_must_keep_it() {
    let dir = scratch();
    let path = dir.path().join("d.vmdk");
    for content in [
        vec![0; 4096],
        b"x".to_vec(),
        Vec::new(),
        vec![b'#'; 3 << 20],
    ] {
        fs::write(&path, content).expect("write");
        refused(&path, "neither a VMDK descriptor nor a sparse VMDK");
    }
    fs::write(&path, b"COWD............").expect("write");
    refused(&path, "COWD");
}

/// A guest wrote a VMDK descriptor to the first sector of its raw disk. Had the content decided
/// what the file is, the guest would have been served the host's files at the next start.
#[test]
fn a_guest_cannot_turn_its_raw_disk_into_a_vmdk() {
    let dir = scratch();
    fs::write(dir.path().join("neighbour.img"), vec![9; 4096]).expect("write");
    let mut content = b"# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\n\
        createType=\"monolithicFlat\"\nRW 8 FLAT \"neighbour.img\" 0\n"
        .to_vec();
    content.resize(1 << 20, 0);
    for name in ["disk.img", "disk", "disk-flat.vmdk", "disk-f001.vmdk"] {
        let path = dir.path().join(name);
        fs::write(&path, &content).expect("write");
        let disk = open_production(&path, Access::ReadWrite).expect(name);
        assert_eq!(disk.device.size(), 1 << 20, "{name}");
        assert!(
            disk.description.contains("look like VMDK"),
            "{}",
            disk.description
        );
    }
}

#[test]
fn an_embedded_descriptor_must_agree_with_its_header() {
    let dir = scratch();
    let path = dir.path().join("d.vmdk");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vmdk", text(&path), "1M"],
    );
    let honest = fs::read(&path).expect("read");
    let at = honest
        .windows(7)
        .position(|w| w == b"RW 2048")
        .expect("the extent line");
    let mut file = honest.clone();
    file[at..at + 7].copy_from_slice(b"RW 4096");
    fs::write(&path, &file).expect("write");
    refused(&path, "says another size");
    let mut file = honest;
    // The capacity: 2^55 sectors, whose tables the file cannot hold.
    file[12..20].copy_from_slice(&(1_u64 << 54).to_le_bytes());
    fs::write(&path, &file).expect("write");
    let error = open_production(&path, Access::ReadOnly).expect_err("too large");
    assert!(matches!(error, OpenError::Vmdk { .. }), "{error}");
    assert!(error.to_string().contains("capacity"), "{error}");
}

fn small_image(kind: &str) -> Vec<u8> {
    let dir = scratch();
    let (raw, path) = (dir.path().join("raw"), dir.path().join("x.vmdk"));
    fs::write(&raw, sparse_content(300 << 10, 12)).expect("write");
    let option = format!("subformat={kind}");
    let arguments = [
        "convert",
        "-O",
        "vmdk",
        "-o",
        &option,
        text(&raw),
        text(&path),
    ];
    run("qemu-img", &arguments);
    fs::read(&path).expect("read")
}

/// Opens and reads whatever opens; a panic or a hang is the failure.
fn survive(file: Vec<u8>) {
    let Ok(device) = vmdk::read_sparse(file) else {
        return;
    };
    let size = device.size();
    let mut buf = vec![0; 64 << 10];
    for at in [0, size / 2, size.saturating_sub(64 << 10)] {
        let n = usize::try_from((size - at).min(64 << 10)).expect("small");
        let _ = device.read_at(&mut buf[..n], at);
    }
    if let Some(range) = block::ByteRange::at(0, size.min(1 << 30)) {
        let _ = device.block_status(range, 16);
    }
}

#[test]
fn no_damaged_byte_makes_a_reader_panic() {
    for kind in ["monolithicSparse", "streamOptimized"] {
        let image = small_image(kind);
        let damage = prop::collection::vec((0..image.len().min(70_000), any::<u8>()), 1..12);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 300,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let header = prop::collection::vec((4..90_usize, any::<u8>()), 0..3);
        let outcome = runner.run(
            &(damage, header, 0..image.len()),
            |(damage, header, len)| {
                let mut file = image.clone();
                for (at, byte) in damage.into_iter().chain(header) {
                    file[at] = byte;
                }
                survive(file.clone());
                file.truncate(len);
                survive(file);
                Ok(())
            },
        );
        outcome.expect(kind);
    }
}
