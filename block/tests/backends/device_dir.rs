//! A directory on a bare device, against a model: whatever is done to it, killed or without power at any operation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{ByteRange, DeviceDir, DeviceDirError, Dir, File, OsDir, PageBuf, index};
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::{SimWorld, seed_from_env};

use crate::common::{LoopDevice, run, scratch, text};

const SIZE: u64 = 64 << 20;
const DEVICE: &str = "device";
/// Longest file of the model.
const LONG: u64 = 700 << 10;

type Files = BTreeMap<String, Vec<u8>>;

fn blank(seed: u64, size: u64) -> SimWorld {
    let world = SimWorld::new(seed);
    let file = world.dir().create(DEVICE).expect("created");
    file.set_len(size).expect("sized");
    file.sync_data().expect("synced");
    world.dir().sync().expect("synced");
    world
}

fn open(world: &SimWorld) -> DeviceDir {
    DeviceDir::open(world.dir(), DEVICE, "g").expect("opens")
}

/// What somebody does to a directory, and to the model of it.
struct Driver {
    rng: ChaCha8Rng,
    files: Files,
    /// Those whose content or name was changed since the last sync.
    unsynced: BTreeSet<String>,
}

impl Driver {
    fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            files: Files::new(),
            unsynced: BTreeSet::new(),
        }
    }

    fn any_name(&mut self) -> String {
        format!("file-{}", self.rng.random_range(0..6))
    }

    fn known_name(&mut self) -> Option<String> {
        self.files.keys().choose(&mut self.rng).cloned()
    }

    /// As programs do: mostly whole pages, else any bytes.
    fn any_range(&mut self) -> ByteRange {
        let rng = &mut self.rng;
        let len = match rng.random_range(0..3) {
            0 => rng.random_range(0..100),
            1 => rng.random_range(0..20_000),
            _ => rng.random_range(0..400_000),
        };
        let start = rng.random_range(0..LONG - len);
        if rng.random_bool(0.6) {
            let start = start / 4096 * 4096;
            return ByteRange::at(start, len / 4096 * 4096).expect("small");
        }
        ByteRange::at(start, len).expect("small")
    }

    /// One operation; the name that it was about. The model has it in any case.
    fn step(&mut self, dir: &dyn Dir) -> (Vec<String>, io::Result<()>) {
        let what = self.rng.random_range(0..20);
        if what == 0 {
            let done = dir.sync();
            if done.is_ok() {
                self.unsynced.clear();
            }
            return (Vec::new(), done);
        }
        let Some(name) = self.known_name().filter(|_| what > 2) else {
            let name = self.any_name();
            if self.files.contains_key(&name) {
                let error = dir.create(&name).err().map(|error| error.kind());
                assert!(error.is_some_and(|kind| kind != io::ErrorKind::NotFound));
                return (Vec::new(), Ok(()));
            }
            self.files.insert(name.clone(), Vec::new());
            self.unsynced.insert(name.clone());
            let done = dir.create(&name).map(drop);
            return (vec![name], done);
        };
        self.unsynced.insert(name.clone());
        match what {
            3 => {
                self.files.remove(&name);
                (vec![name.clone()], dir.remove(&name))
            }
            4 => {
                let to = self.any_name();
                let content = self.files.remove(&name).expect("known");
                self.files.insert(to.clone(), content);
                self.unsynced.insert(to.clone());
                let done = dir.rename(&name, &to);
                (vec![name, to], done)
            }
            _ => {
                let done = dir
                    .open(&name)
                    .and_then(|file| self.change(&*file, &name, what));
                (vec![name], done)
            }
        }
    }

    fn change(&mut self, file: &dyn File, name: &str, what: u32) -> io::Result<()> {
        let range = self.any_range();
        let (start, end) = (index(range.start()), index(range.end()));
        let content = self.files.get_mut(name).expect("known");
        match what {
            5 => {
                content.resize(start, 0);
                file.set_len(range.start())
            }
            6 | 7 => {
                let end = end.min(content.len());
                if start < end {
                    content[start..end].fill(0);
                }
                file.punch_hole(range)
            }
            8 => {
                let mut bytes = vec![1; index(range.len())];
                match file.read_exact_at(&mut bytes, range.start()) {
                    Ok(()) => assert!(bytes == content[start..end]),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        assert!(end > content.len(), "{end} of {}", content.len());
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            9 => file.sync_data(),
            _ => {
                let mut bytes = PageBuf::zeroed(index(range.len()));
                self.rng.fill(&mut bytes[..]);
                if !bytes.is_empty() {
                    content.resize(content.len().max(end), 0);
                    content[start..end].copy_from_slice(&bytes);
                }
                match self.rng.random() {
                    true => file.write_all_at(&bytes, range.start()),
                    false => file.write_past_cache(&bytes, range.start()),
                }
            }
        }
    }
}

fn content(dir: &dyn Dir) -> Files {
    let read = |name: String| {
        let file = dir.open(&name).expect("listed");
        let mut bytes = vec![0; index(file.len().expect("known"))];
        file.read_exact_at(&mut bytes, 0).expect("readable");
        (name, bytes)
    };
    dir.list().expect("listed").into_iter().map(read).collect()
}

/// The same, but for files that were being changed when it ended.
fn assert_same(found: &Files, expected: &Files, except: &[String], context: &str) {
    let names: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    for name in names {
        if !except.contains(name) {
            let (found, expected) = (found.get(name), expected.get(name));
            let len = |content: Option<&Vec<u8>>| content.map(Vec::len);
            assert!(
                found == expected,
                "{context}: {name} has {:?} bytes, expected {:?}",
                len(found),
                len(expected)
            );
        }
    }
}

#[test]
fn it_is_what_was_done_to_it_also_after_a_kill() {
    let seed = seed_from_env(1);
    for history in 0..40 {
        let context = format!("seed {seed}, history {history}");
        let mut driver = Driver::new(seed.wrapping_add(history));
        let mut world = blank(history, SIZE);
        let mut dir = open(&world);
        for _ in 0..driver.rng.random_range(1..4) {
            for _ in 0..driver.rng.random_range(0..60) {
                driver.step(&dir).1.expect("no faults");
            }
            assert_same(&content(&dir), &driver.files, &[], &context);
            world = world.kill();
            dir = open(&world);
            assert_same(&content(&dir), &driver.files, &[], &context);
        }
        let total = dir.space().expect("known").total_bytes;
        for name in dir.list().expect("listed") {
            dir.remove(&name).expect("removed");
        }
        assert_eq!(dir.space().expect("known").free_bytes, total, "{context}");
    }
}

#[test]
fn a_kill_within_an_operation_concerns_no_other_file() {
    let seed = seed_from_env(1);
    for history in 0..200 {
        let context = format!("seed {seed}, history {history}");
        let mut driver = Driver::new(seed.wrapping_add(1000 + history));
        let world = blank(history, SIZE);
        let dir = open(&world);
        world.crash_after(driver.rng.random_range(1..150));
        let touched = loop {
            let (touched, done) = driver.step(&dir);
            if done.is_err() {
                break touched;
            }
        };
        let dir = open(&world.kill());
        let found = content(&dir);
        assert_same(&found, &driver.files, &touched, &context);
    }
}

#[test]
fn what_was_synced_and_left_alone_survives_the_power() {
    let seed = seed_from_env(1);
    let mut survived = 0;
    for history in 0..200 {
        let context = format!("seed {seed}, history {history}");
        let mut driver = Driver::new(seed.wrapping_add(5000 + history));
        let mut world = blank(history, SIZE);
        for round in 0..2 {
            let dir = open(&world);
            world.crash_after(driver.rng.random_range(1..250));
            loop {
                let synced = driver.unsynced.clone();
                if driver.step(&dir).1.is_err() {
                    // One that was interrupted promises nothing, neither new nor old.
                    driver.unsynced.extend(synced);
                    break;
                }
            }
            world = world.cut_power();
            let found = content(&open(&world));
            let unsynced: Vec<_> = driver.unsynced.iter().cloned().collect();
            survived += driver.files.len().saturating_sub(unsynced.len());
            assert_same(
                &found,
                &driver.files,
                &unsynced,
                &format!("{context}, round {round}"),
            );
            // From here on with what is there.
            driver.files = found;
        }
    }
    assert!(survived > 50, "{survived} files had something to lose");
}

/// A place that a file had before must not show through where the next one wrote nothing.
#[test]
fn what_an_earlier_file_left_is_never_read() {
    let world = blank(1, SIZE);
    let dir = open(&world);
    let total = index(dir.space().expect("known").total_bytes);
    let all = dir.create("all").expect("created");
    let piece = vec![0xEE; 1 << 20];
    for at in (0..total).step_by(piece.len()) {
        let len = piece.len().min(total - at);
        all.write_all_at(&piece[..len], at as u64).expect("written");
    }
    let error = all.write_all_at(&[1], total as u64).expect_err("full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(dir.space().expect("known").free_bytes, 0);
    dir.remove("all").expect("removed");
    assert_eq!(
        dir.space().expect("known").free_bytes,
        0,
        "somebody has it open"
    );
    drop(all);
    assert_eq!(dir.space().expect("known").free_bytes, total as u64);
    let next = dir.create("next").expect("created");
    next.write_all_at(&[1], 300_000).expect("written");
    next.set_len(400_000).expect("longer");
    let one_byte = |dir: &DeviceDir| {
        let mut bytes = vec![9; 400_000];
        let next = dir.open("next").expect("there");
        next.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 1);
    };
    one_byte(&dir);
    one_byte(&open(&world.kill()));
}

#[test]
fn a_device_that_holds_anything_else_is_left_alone() {
    let refused = |world: &SimWorld, owner: &str| {
        DeviceDir::open(world.dir(), DEVICE, owner)
            .err()
            .expect("refused")
    };
    for at in [0, 600_000, SIZE - 1] {
        let world = blank(1, SIZE);
        let file = world.dir().open(DEVICE).expect("there");
        file.write_all_at(&[1], at).expect("written");
        let error = refused(&world, "g");
        assert!(matches!(error, DeviceDirError::NotBlank { .. }), "{error}");
    }
    assert!(matches!(
        refused(&blank(1, SIZE - 512), "g"),
        DeviceDirError::TooSmall { .. }
    ));

    let world = blank(1, SIZE);
    open(&world).create("precious").expect("created");
    let error = refused(&world, "another");
    assert!(
        matches!(&error, DeviceDirError::Owned { owner, .. } if owner == "g"),
        "{error}"
    );
    let file = world.dir().open(DEVICE).expect("there");
    file.set_len(SIZE - (2 << 20)).expect("smaller");
    assert!(matches!(
        refused(&world, "g"),
        DeviceDirError::Damaged { .. }
    ));
    file.set_len(SIZE * 2).expect("larger");
    assert_eq!(open(&world).list().expect("listed"), ["precious"]);
    file.write_all_at(&[1], 200).expect("rotten");
    assert!(matches!(
        refused(&world, "g"),
        DeviceDirError::Damaged { .. }
    ));
}

/// Two segments that claim one place, a file twice, an id beyond all: nothing is believed, nothing panics.
#[test]
fn records_that_contradict_each_other_are_not_believed() {
    let world = blank(1, SIZE);
    let dir = open(&world);
    let file = dir.create("file").expect("created");
    file.write_all_at(&[7; 3 * 131_072], 0).expect("written");
    drop((file, dir));
    let device = world.dir().open(DEVICE).expect("there");
    // The second slot is the first again, and the second segment claims what the first has.
    let mut slot = [0; 1024];
    device.read_exact_at(&mut slot, 4096).expect("read");
    device.write_all_at(&slot, 4096 + 1024).expect("written");
    let entries = 4096 + 8192 * 1024;
    let mut entry = [0; 32];
    device.read_exact_at(&mut entry, entries).expect("read");
    device.write_all_at(&entry, entries + 32).expect("written");
    device
        .write_all_at(&[0xff; 32], entries + 320)
        .expect("written");
    let dir = open(&world);
    let content = &content(&dir)["file"];
    let whole = |at: usize| {
        content[at * 131_072..][..131_072]
            .iter()
            .all(|byte| *byte == 7)
    };
    assert_eq!(
        [0, 1, 2].map(whole),
        [false, false, true],
        "twice, not at all, once"
    );
    dir.create("another").expect("an id is left");
    // A place that two had claimed was lost again with the next kill: both claims were still there.
    let file = dir.open("file").expect("there");
    file.write_all_at(&[8; 131_072], 0).expect("written");
    drop((file, dir));
    let world = world.kill();
    let dir = open(&world);
    let mut bytes = vec![0; 131_072];
    let file = dir.open("file").expect("there");
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 8));
    drop((file, dir));
    let mut names = open(&world).list().expect("listed");
    names.sort();
    assert_eq!(names, ["another", "file"]);
}

/// What the records of a device could not take was noted in memory as if they had, or as if nothing had been tried:
/// then a kill lost a later write that succeeded, or gave its place to two files.
#[test]
fn a_record_that_could_not_be_written_is_written_again() {
    for failing in 1..20 {
        for change in 0..3 {
            let world = blank(failing, SIZE);
            let dir = open(&world);
            let [one, two] = ["one", "two"].map(|name| dir.create(name).expect("created"));
            // In turn, so that neither has neighbours, and a change of its records is several writes.
            for at in (0..6).map(|at| at * 131_072) {
                one.write_all_at(&[1; 131_072], at).expect("written");
                two.write_all_at(&[2; 131_072], at).expect("written");
            }
            let ops = Arc::new(AtomicU64::new(0));
            let fail = Arc::clone(&ops);
            world.set_fault(Some(Arc::new(move |_: &str| {
                let this_one = fail.fetch_add(1, Ordering::Relaxed) + 1 == failing;
                this_one.then_some(io::ErrorKind::Other)
            })));
            let done = match change {
                0 => two.write_all_at(&[3; 6 * 131_072], 0),
                1 => two.punch_hole(ByteRange::at(0, 6 * 131_072).expect("small")),
                _ => dir.rename("two", "one"),
            };
            world.set_fault(None);
            let context = format!("operation {failing} of change {change} failed: {done:?}");
            let two = if change == 2 && dir.list().expect("listed") == ["one"] {
                dir.open("one").expect("renamed")
            } else {
                two
            };
            two.write_all_at(&[4; 6 * 131_072], 0).expect("written");
            let third = dir.create("three").expect("created");
            third.write_all_at(&[5; 40 << 20], 0).expect("written");
            let expected = content(&dir);
            assert!(expected["three"].iter().all(|byte| *byte == 5), "{context}");
            drop((one, two, third, dir));
            let dir = open(&world.kill());
            assert_same(&content(&dir), &expected, &[], &context);
            for name in dir.list().expect("listed") {
                dir.remove(&name).expect("removed");
            }
            let space = dir.space().expect("known");
            assert_eq!(space.free_bytes, space.total_bytes, "{context}");
        }
    }
}

/// A device says once that it lost something, and not whose it was.
#[test]
fn every_file_is_told_of_a_failure_and_once() {
    let world = blank(1, SIZE);
    let dir = open(&world);
    let [one, two] = ["one", "two"].map(|name| dir.create(name).expect("created"));
    one.check_writeback().expect("whole");
    world.set_writeback_fault(Some(Arc::new(|_: &str| Some(io::ErrorKind::Other))));
    one.check_writeback().expect_err("told");
    world.set_writeback_fault(None);
    let three = dir.create("three").expect("created");
    three.check_writeback().expect("it has lost nothing");
    dir.open("two")
        .and_then(|two| two.check_writeback())
        .expect_err("told");
    dir.sync().expect_err("a name may be lost as well");
    dir.sync().expect("told before");
    for file in [one, two, three] {
        file.check_writeback().expect("told before");
    }
}

/// A file that another replaced, and whose slot could not be freed, grew: its record was the later one, and the next
/// process took it for the file of that name.
#[test]
fn a_file_that_was_replaced_does_not_come_back_by_growing() {
    let world = blank(1, SIZE);
    let dir = open(&world);
    let [old, new] = ["name", "new"].map(|name| dir.create(name).expect("created"));
    old.write_all_at(&[1; 4096], 0).expect("written");
    new.write_all_at(&[2; 4096], 0).expect("written");
    // The name is written twice; what frees the slot of the old one fails.
    let ops = AtomicU64::new(0);
    world.set_fault(Some(Arc::new(move |_: &str| {
        (ops.fetch_add(1, Ordering::Relaxed) >= 2).then_some(io::ErrorKind::Other)
    })));
    dir.rename("new", "name").expect("it has the name");
    world.set_fault(None);
    old.write_all_at(&[1; 4096], 1 << 20)
        .expect("it has no name any more");
    drop((old, new, dir));
    let dir = open(&world.kill());
    assert_eq!(content(&dir)["name"], [2; 4096]);
}

/// On a real block device: past the cache and through it, held against the same model.
#[test]
fn a_loop_device_is_a_directory() {
    let seed = seed_from_env(1);
    let dir = scratch();
    let image = dir.path().join("device");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(SIZE))
        .expect("made");
    let device = LoopDevice::over(&image, 512);
    let (parent, name) = (Path::new("/dev"), device.path.file_name().expect("a name"));
    let name = name.to_str().expect("text");
    let open = || {
        let parent = Arc::new(OsDir::open(parent).expect("there"));
        DeviceDir::open(parent, name, "g")
    };
    let mut driver = Driver::new(seed);
    for _ in 0..4 {
        let dir = open().expect("opens");
        for _ in 0..80 {
            driver.step(&dir).1.expect("no faults");
        }
        assert_same(&content(&dir), &driver.files, &[], &format!("seed {seed}"));
        for name in dir.list().expect("listed") {
            dir.open(&name)
                .and_then(|file| file.check_writeback())
                .expect("whole");
        }
    }
    assert_same(
        &content(&open().expect("opens")),
        &driver.files,
        &[],
        "at last",
    );
    run("mkfs.ext4", &["-q", "-F", text(&device.path)]);
    let error = open().err().expect("a file system");
    assert!(matches!(error, DeviceDirError::NotBlank { .. }), "{error}");
}
