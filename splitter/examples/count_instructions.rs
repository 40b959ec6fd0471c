//! `count_instructions raw|tracked WRITES`: so many random 4 KiB writes from one thread, to a raw
//! file or to the same file tracked. What `bench/instructions.sh` runs under callgrind: nothing in
//! it depends on time or on chance, so that two runs execute the same instructions.
#![allow(clippy::unwrap_used, reason = "a bench may panic")]

use std::path::Path;
use std::sync::Arc;

use block::{Access, BlockDevice, Fua, OsDir, SystemClock, UnixNanos};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use splitter::{DiskSpec, Group, Surroundings};

const SIZE: u64 = 64 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let (way, writes) = (args.next().unwrap(), args.next().unwrap());
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    let raw = block::open_production(&path, Access::ReadWrite)
        .unwrap()
        .device;
    match way.as_str() {
        "raw" => write(&*raw, writes.parse().unwrap()),
        "tracked" => write(
            &*track(temp.path(), raw).disks()[0],
            writes.parse().unwrap(),
        ),
        _ => panic!("usage: count_instructions raw|tracked WRITES"),
    }
}

fn write(disk: &dyn BlockDevice, writes: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..writes {
        let at = rng.random_range(0..SIZE / 4096) * 4096;
        disk.write_at(&[0x5a; 4096], at, Fua::No).unwrap();
    }
}

fn track(dir: &Path, production: Arc<dyn BlockDevice>) -> Group {
    let around = Surroundings {
        state: Arc::new(OsDir::create_all(dir.join("state")).unwrap()),
        maps: Arc::new(OsDir::create_all(dir.join("maps")).unwrap()),
        diffs: Arc::new(OsDir::create_all(dir.join("diffs")).unwrap()),
        clock: Arc::new(SystemClock::new()),
        boot: "bench".into(),
        booted_at: UnixNanos(0),
        random: Arc::new(|| [7; 16]),
    };
    let disk = DiskSpec {
        name: "disk".parse().unwrap(),
        production,
        identity: "disk".into(),
        stamp: None,
    };
    Group::open("bench".parse().unwrap(), vec![disk], around)
        .unwrap()
        .0
}
