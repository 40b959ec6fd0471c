//! A device for diffs that hangs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::any::Any;
use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use block::{BlockDevice, Dir, File, Fua, Space};
use common::{Bench, in_world};
use sim::{SimDisk, SimWorld};
use splitter::{CutNote, DiskSpec, Figures, Group, Surroundings};

/// Until a test fails rather than hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// A directory in which the next name that changes waits until it is told to go on.
struct Hanging {
    dir: Arc<dyn Dir>,
    /// Whom to tell that it waits, and for what.
    armed: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

/// A call that hangs.
struct Hang {
    entered: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
}

impl Hanging {
    fn arm(&self) -> Hang {
        let (enter, entered) = mpsc::channel();
        let (go_on, told) = mpsc::channel();
        *self.armed.lock().unwrap() = Some((enter, told));
        Hang { entered, go_on }
    }

    fn hang(&self) {
        let armed = self.armed.lock().unwrap().take();
        if let Some((enter, told)) = armed {
            enter.send(()).unwrap();
            let _ = told.recv_timeout(LIMIT);
        }
    }
}

impl Dir for Hanging {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.hang();
        self.dir.create(name)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.dir.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename_new(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.hang();
        self.dir.remove(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.dir.list()
    }
    fn sync(&self) -> io::Result<()> {
        self.dir.sync()
    }
    fn subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        self.dir.subdir(name)
    }
    fn existing_subdir(&self, name: &str) -> io::Result<Arc<dyn Dir>> {
        self.dir.existing_subdir(name)
    }
    fn lock_exclusive(&self, name: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.dir.lock_exclusive(name)
    }
    fn space(&self) -> io::Result<Space> {
        self.dir.space()
    }
    fn describe(&self) -> String {
        self.dir.describe()
    }
}

fn open(bench: &Bench) -> (Group, Arc<Hanging>) {
    let around = in_world(&bench.world, bench.around());
    let diffs = Arc::new(Hanging {
        dir: Arc::clone(&around.diffs),
        armed: Mutex::new(None),
    });
    let around = Surroundings {
        diffs: Arc::clone(&diffs) as Arc<dyn Dir>,
        ..around
    };
    let file = SimWorld::new(1).dir().create("production").unwrap();
    file.set_len(64 * 4096).unwrap();
    let spec = DiskSpec {
        name: "d".parse().unwrap(),
        production: Arc::new(SimDisk::new(file).unwrap()),
        identity: "d".into(),
        stamp: None,
    };
    let (group, _) = Group::open("g".parse().unwrap(), vec![spec], around).unwrap();
    (group, diffs)
}

/// Figures that are asked for while `turn` hangs.
fn figures_during(group: &Group, hang: &Hang, turn: impl FnOnce() + Send) -> Figures {
    thread::scope(|scope| {
        let turn = scope.spawn(turn);
        hang.entered.recv_timeout(LIMIT).unwrap();
        let (send, figures) = mpsc::channel();
        scope.spawn(move || send.send(group.figures()));
        let figures = figures.recv_timeout(LIMIT / 2);
        hang.go_on.send(()).unwrap();
        turn.join().unwrap();
        figures.expect("nobody who asks for figures waits for the device")
    })
}

/// `standin status` gave no answer in 30 s where each write of the diff device took 5: a release held the group
/// while it removed a diff. Whoever asks wants to know just then.
#[test]
fn figures_do_not_wait_for_a_release_or_a_cut() {
    let (group, diffs) = open(&Bench::new(1, &[]));
    group.disks()[0].write_at(&[1; 4096], 0, Fua::No).unwrap();
    let hang = diffs.arm();
    let during_cut = figures_during(&group, &hang, || {
        group.cut(CutNote::default()).unwrap();
    });
    assert_eq!(during_cut.sealed_count, 0);
    assert_eq!(during_cut.dirty_bytes, 4096);
    let cut = group.figures();
    assert_eq!(
        (cut.sealed_count, cut.dirty_bytes),
        (1, 4096),
        "what a turn changed is told when it ends"
    );
    let sealed = group.sealed().remove(0);
    let hang = diffs.arm();
    let during_release = figures_during(&group, &hang, || group.release(&sealed).unwrap());
    assert_eq!(during_release.sealed_count, 1);
    assert_eq!(group.figures().sealed_count, 0);
}
