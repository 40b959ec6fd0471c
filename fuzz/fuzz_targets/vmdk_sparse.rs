//! Bytes that claim to be a sparse VMDK: header, footer, directory, tables, compressed grains.
#![no_main]

use block::vmdk::read_sparse;
use block::{BlockDevice, ByteRange};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(device) = read_sparse(data.to_vec()) else {
        return;
    };
    let size = device.size();
    assert!(size > 0 && size % 512 == 0);
    let mut buf = vec![0; 200_000];
    for at in [0, size / 3, size.saturating_sub(200_000)] {
        let n = usize::try_from((size - at).min(200_000)).expect("small");
        let _ = device.read_at(&mut buf[..n], at);
    }
    let range = ByteRange::at(0, size.min(1 << 28)).expect("from zero");
    let Ok(extents) = device.block_status(range, 100) else {
        return;
    };
    let mut at = 0;
    for extent in extents {
        assert_eq!(extent.range.start(), at);
        at = extent.range.end();
    }
    assert!(at <= range.end());
});
