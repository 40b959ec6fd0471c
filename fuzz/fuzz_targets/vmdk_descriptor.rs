//! Text that claims to be a VMDK descriptor: what is accepted keeps to its own bounds.
#![no_main]

use block::vmdk::{ExtentKind, parse_descriptor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    // Most inputs would fail at the first line.
    let mut text = b"# Disk DescriptorFile\ncreateType=\"x\"\n".to_vec();
    text.extend(data);
    check(&text);
});

fn check(data: &[u8]) {
    let Ok(descriptor) = parse_descriptor(data) else {
        return;
    };
    assert!(!descriptor.extents.is_empty() && descriptor.extents.len() <= 8192);
    for extent in descriptor.extents {
        assert!(extent.size > 0 && extent.size % 512 == 0);
        match extent.kind {
            ExtentKind::Flat { file, window } => {
                assert_eq!(window.len(), extent.size);
                assert!(window.end() <= i64::MAX as u64);
                check_name(&file);
            }
            ExtentKind::Sparse { file } => check_name(&file),
            ExtentKind::Zero => {}
        }
    }
}

fn check_name(name: &str) {
    let path = std::path::Path::new(name);
    assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name));
    assert!(!name.contains('\\'));
}
