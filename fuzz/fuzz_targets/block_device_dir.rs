//! Arbitrary records on a device that is a directory: whatever they say, nothing panics, no two files have one
//! place, and all of it can be had back.
#![no_main]

use block::{DeviceDir, Dir};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use sim::SimWorld;

#[derive(Arbitrary, Debug)]
enum Edit {
    Half { at: u8, id: u64, sequence: u64, len: u64, name: Vec<u8> },
    Entry { at: u8, id: u64, position: u32, pages: u32 },
    Raw { at: u32, bytes: Vec<u8> },
}

const SIZE: u64 = 64 << 20;
const SLOTS: u64 = 4096;
const ENTRIES: u64 = SLOTS + 8192 * 1024;

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

impl Edit {
    fn place(self) -> (u64, Vec<u8>) {
        match self {
            Self::Half { at, id, sequence, len, mut name } => {
                name.truncate(400);
                let mut bytes = [id, sequence, len].map(u64::to_le_bytes).concat();
                bytes.extend(u32::try_from(name.len()).expect("short").to_le_bytes());
                bytes.extend(name);
                bytes.resize(508, 0);
                (SLOTS + u64::from(at % 16) * 512, sealed(bytes))
            }
            Self::Entry { at, id, position, pages } => {
                let mut bytes = sealed([&id.to_le_bytes()[..], &position.to_le_bytes()].concat());
                bytes.extend(pages.to_le_bytes());
                (ENTRIES + u64::from(at) * 32, bytes)
            }
            Self::Raw { at, mut bytes } => {
                bytes.truncate(4096);
                (u64::from(at) % (ENTRIES + 32_768), bytes)
            }
        }
    }
}

fn made() -> SimWorld {
    let world = SimWorld::new(1);
    let device = world.dir().create("device").expect("created");
    device.set_len(SIZE).expect("sized");
    let dir = DeviceDir::open(world.dir(), "device", "g").expect("made");
    for name in ["a", "b"] {
        let file = dir.create(name).expect("created");
        file.write_all_at(&[7; 300_000], 0).expect("written");
    }
    world
}

thread_local! {
    static MADE: SimWorld = made();
}

libfuzzer_sys::fuzz_target!(|edits: Vec<Edit>| {
    let world = MADE.with(SimWorld::kill);
    let device = world.dir().open("device").expect("there");
    for (at, bytes) in edits.into_iter().map(Edit::place) {
        device.write_all_at(&bytes, at).expect("written");
    }
    let Ok(dir) = DeviceDir::open(world.dir(), "device", "g") else {
        return;
    };
    let names = dir.list().expect("listed");
    for name in &names {
        let file = dir.open(name).expect("listed");
        let len = file.len().expect("known");
        let mut bytes = vec![0; usize::try_from(len.min(1 << 20)).expect("small")];
        for at in [0, len - bytes.len() as u64] {
            file.read_exact_at(&mut bytes, at).expect("within it");
        }
        // What one file is given no other has.
        let mark = name.as_bytes()[0];
        let _ = file.write_all_at(&[mark; 200_000], 0);
    }
    for name in &names {
        let file = dir.open(name).expect("listed");
        let mut bytes = [0; 200_000];
        if file.read_exact_at(&mut bytes, 0).is_ok() && bytes[0] != 0 && bytes[0] != 7 {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        }
    }
    for name in &names {
        dir.remove(name).expect("removed");
    }
    let space = dir.space().expect("known");
    assert_eq!(space.free_bytes, space.total_bytes);
});
