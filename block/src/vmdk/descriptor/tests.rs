//! What descriptors are read, and that those that lie are refused with the line that lies.

use super::*;

fn with_extents(extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"custom\"\n{extents}\n"
    )
}

fn parse(extents: &str) -> Result<Vec<ExtentLine>, VmdkError> {
    parse_descriptor(with_extents(extents).as_bytes()).map(|d| d.extents)
}

fn refused(extents: &str, because: &str) {
    let error = parse(extents).expect_err(extents).to_string();
    assert!(error.contains(because), "{extents}: {error}");
}

#[test]
fn the_extents_of_all_flat_kinds_are_read() {
    let extents = parse(
        "RW 4192256 FLAT \"a b-f001.vmdk\" 0\nRDONLY 2 VMFS \"x-flat.vmdk\"\nRW 1 ZERO\n\
         RW 8 SPARSE \"s.vmdk\"\nRW 1 FLAT \"y\" 7",
    )
    .expect("legal");
    let window = |start, len| ByteRange::at(start, len).expect("in range");
    let flat = |file: &str, window| ExtentKind::Flat {
        file: file.to_owned(),
        window,
    };
    let kinds: Vec<_> = extents.iter().map(|e| e.kind.clone()).collect();
    assert_eq!(kinds[0], flat("a b-f001.vmdk", window(0, 4_192_256 * 512)));
    assert_eq!(kinds[1], flat("x-flat.vmdk", window(0, 1024)));
    assert_eq!(kinds[2], ExtentKind::Zero);
    let file = "s.vmdk".to_owned();
    assert_eq!(kinds[3], ExtentKind::Sparse { file });
    assert_eq!(kinds[4], flat("y", window(3584, 512)));
    let writable: Vec<_> = extents.iter().map(|e| e.writable).collect();
    assert_eq!(writable, [true, false, true, true, true]);
}

#[test]
fn an_extent_cannot_name_a_file_elsewhere() {
    for name in [
        "/etc/shadow",
        "../x",
        "a/b",
        "a\\b",
        "..",
        ".",
        "",
        "a\tb",
        "/dev/sda",
    ] {
        refused(&format!("RW 1 FLAT \"{name}\" 0"), "line 5");
    }
    refused(&format!("RW 1 FLAT \"{}\" 0", "x".repeat(256)), "too long");
    refused("RW 1 FLAT x 0", "quotes");
}

#[test]
fn numbers_that_lie_are_refused() {
    refused("RW 0 FLAT \"x\" 0", "out of range");
    refused("RW 18446744073709551615 FLAT \"x\" 0", "out of range");
    refused("RW 18446744073709551616 FLAT \"x\" 0", "no number");
    refused("RW -1 FLAT \"x\" 0", "no number");
    refused("RW 18014398509481983 FLAT \"x\" 1", "place");
    refused("RW 1 FLAT \"x\" 36028797018963968", "place");
    refused("RW 1 FLAT \"x\" 0 0", "more on the line");
    refused(&"RW 1 ZERO\n".repeat(8193), "too many");
}

#[test]
fn what_is_not_served_is_named() {
    refused("RW 1 SESPARSE \"x\"", "SESPARSE");
    refused("RW 1 VMFSRDM \"x\"", "VMFSRDM");
    refused("RW 1 ODD \"x\"", "unknown");
    refused("NOACCESS 1 FLAT \"x\" 0", "without access");
    refused("", "names no extent");
    refused("parentCID=1234abcd\nRW 1 ZERO", "1234abcd");
}

#[test]
fn bytes_that_are_no_descriptor_are_refused() {
    let refused = |bytes: &[u8], because: &str| {
        let error = parse_descriptor(bytes).expect_err(because).to_string();
        assert!(error.contains(because), "{error}");
    };
    refused(b"", "neither");
    refused(b"# Something else\nRW 1 ZERO\n", "neither");
    refused(b"# Disk DescriptorFile\n\xff\xfe\n", "UTF-8");
    refused(&vec![b'#'; (1 << 20) + 1], "1 MiB");
    refused(b"# Disk DescriptorFile\nRW 1 ZERO\n", "createType");
    let mut padded = with_extents("RW 1 ZERO").into_bytes();
    padded.extend([0; 100]);
    padded.extend(b"\xff");
    parse_descriptor(&padded).expect("padding is ignored");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(?s).{0,400}", extent in "RW [0-9]{1,22} (FLAT|SPARSE|ZERO) \"[ -~]{0,20}\" ?[0-9]{0,22}") {
        let _ = parse_descriptor(text.as_bytes());
        let _ = parse(&extent);
        let _ = parse(&text);
    }
}
