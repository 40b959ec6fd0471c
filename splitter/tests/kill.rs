//! The real thing: a process that tracks real files is killed at random moments under load; what
//! it left is opened, and the next cut is production, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use block::{Access, BlockDevice, ByteRange, Fua, GRANULE, OsDir, SystemClock, ZeroOptions, index};
use common::watched::Watched;
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use splitter::{
    CutError, CutNote, DiskSpec, Group, How, RunContent, SealedGeneration, Surroundings,
};

const DISKS: usize = 2;
const SIZE: u64 = (8 << 20) + 512;
const KILLS: u64 = 40;
const CHILD_DIR: &str = "STANDIN_TEST_KILL_DIR";
const CHILD_SEED: &str = "STANDIN_TEST_KILL_SEED";

#[test]
fn a_killed_process_leaves_what_makes_the_next_cut_exact() {
    let seed = sim::seed_from_env(1);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let temp = tempfile::tempdir().unwrap();
    for disk in 0..DISKS {
        let file = std::fs::File::create(temp.path().join(format!("disk{disk}.raw"))).unwrap();
        file.set_len(SIZE).unwrap();
    }
    let mut target = vec![vec![0; index(SIZE)]; DISKS];
    for kill in 0..KILLS {
        run_and_kill(
            temp.path(),
            seed + kill,
            Duration::from_micros(rng.random_range(0..40_000)),
        );
        let (group, how) = open(temp.path(), false);
        let fine = match &how {
            // Between the answer to a question that is answered once, and what would follow from it.
            How::Recovered { why, .. } => why.contains("was killed"),
            other => matches!(other, How::Fresh | How::Resumed { .. }),
        };
        assert!(fine, "seed {seed}, {kill}: {how:?}");
        // A cut that was killed before it was answered may lack what its diffs had in memory.
        let lacking = group.sealed().into_iter().find(|s| s.is_unfinished());
        if let Some(lacking) = lacking {
            group.fold_from(&lacking).unwrap();
        }
        group.cut(CutNote::default()).unwrap();
        for sealed in group.sealed() {
            lay_over(&mut target, &sealed);
            group.release(&sealed).unwrap();
        }
        for (disk, image) in target.iter().enumerate() {
            let production = std::fs::read(temp.path().join(format!("disk{disk}.raw"))).unwrap();
            assert!(
                production == *image,
                "seed {seed}: disk {disk} differs after kill {kill}"
            );
        }
    }
}

/// Runs [`child`] in a process of its own, and kills it `after` it said that it writes.
fn run_and_kill(dir: &Path, seed: u64, after: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .env(CHILD_SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().unwrap();
    while !said.ends_with(b"writing\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    let (_hold, waits) = std::sync::mpsc::channel::<()>();
    let _ = waits.recv_timeout(after);
    child.kill().unwrap();
    assert_eq!(
        child.wait().unwrap().signal(),
        Some(9),
        "it ended by itself"
    );
}

/// Writes and cuts until it is killed. Does nothing when it is run as a test of its own.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let seed: u64 = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    // Every other time.
    let (group, _) = open(Path::new(&dir), seed.is_multiple_of(2));
    thread::scope(|scope| {
        for thread in 0..3 {
            let disks = group.disks();
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(seed << 8 | thread);
                loop {
                    write_somewhere(&*disks[rng.random_range(0..DISKS)], &mut rng);
                }
            });
        }
        scope.spawn(|| {
            let writer = group.frame_writer();
            loop {
                writer.write(Duration::from_millis(1));
            }
        });
        println!("writing");
        loop {
            match group.cut(CutNote::default()) {
                // On a busy machine a write may take longer than a cut waits.
                Ok(_) | Err(CutError::Busy { .. }) => {
                    let _ = group.end_cut(Duration::ZERO);
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
}

fn write_somewhere(disk: &dyn BlockDevice, rng: &mut ChaCha8Rng) {
    let sector = rng.random_range(0..SIZE / 512);
    let count = rng.random_range(1..=40).min(SIZE / 512 - sector);
    let range = ByteRange::at(sector * 512, count * 512).unwrap();
    match rng.random_range(0..10) {
        0 => disk.write_zeroes(range, ZeroOptions::RELAXED).unwrap(),
        1 => disk.trim(range, Fua::No).unwrap(),
        _ => {
            let data = vec![rng.random(); index(range.len())];
            disk.write_at(&data, range.start(), Fua::No).unwrap();
        }
    }
}

fn open(dir: &Path, is_slow: bool) -> (Group, How) {
    let around = Surroundings {
        state: Arc::new(OsDir::create_all(dir.join("state")).unwrap()),
        maps: Arc::new(OsDir::create_all(dir.join("maps")).unwrap()),
        diffs: Arc::new(OsDir::create_all(dir.join("diffs")).unwrap()),
        clock: Arc::new(SystemClock::new()),
        boot: "this one".into(),
        booted_at: block::UnixNanos(0),
        random: Arc::new(rand::random),
    };
    let spec = |disk: usize| {
        let path = dir.join(format!("disk{disk}.raw"));
        let production = block::open_production(&path, Access::ReadWrite).unwrap();
        DiskSpec {
            name: format!("disk{disk}").parse().unwrap(),
            identity: production.identity.text.clone(),
            stamp: production.stamp,
            production: match is_slow {
                true => Arc::new(slow(production.device)),
                false => production.device,
            },
        }
    };
    let specs = (0..DISKS).map(spec).collect();
    let (group, opened) = Group::open("kill".parse().unwrap(), specs, around).unwrap();
    (group, opened.how)
}

fn lay_over(target: &mut [Vec<u8>], sealed: &SealedGeneration) {
    for (image, disk) in target.iter_mut().zip(&sealed.disks) {
        let reader = disk.reader().unwrap();
        for run in reader.runs() {
            let mut bytes = vec![0; index(run.granules.count() * GRANULE)];
            if run.content == RunContent::Data {
                reader.read(run.granules, &mut bytes).unwrap();
            }
            let range = run.granules.bytes(SIZE);
            let inside = &bytes[..index(range.len())];
            image[index(range.start())..index(range.end())].copy_from_slice(inside);
        }
    }
}

/// A disk that takes longer for some writes than a cut waits for them, so that it is killed with writes under way
/// before and after a cut.
fn slow(disk: Arc<dyn BlockDevice>) -> Watched {
    let mut disk = Watched::new(disk);
    disk.after_write = Box::new(|written| {
        if (written.start() / 512).is_multiple_of(64) {
            thread::park_timeout(Duration::from_millis(150));
        }
        Ok(())
    });
    disk
}
