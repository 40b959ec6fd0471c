//! One test's place: a disk, a state directory, a target, and short ways to ask.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::api::{CutReply, CutRequest};
use agent::{
    Every, Format, HookOptions, ProtectOptions, Protection, Rate, RestoreOptions, StateRoot,
    Target, World, client,
};
use block::{Caching, Name};
use export::{Listen, ServerOptions};

pub(crate) const MIB: usize = 1 << 20;

/// The place; removed when dropped.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    world: World,
}

impl Bench {
    /// With a disk of `size` bytes, half of them data.
    pub(crate) fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut data: Vec<u8> = (0..size / 2)
            .map(|i| u8::try_from(i * 7 % 251).expect("small"))
            .collect();
        data.resize(size, 0);
        data[MIB / 4..MIB / 2].fill(0);
        fs::write(dir.path().join("disk.raw"), data).expect("written");
        let world = World::real().expect("a world");
        Self { dir, world }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self, group: &str, target: &str) -> ProtectOptions {
        ProtectOptions {
            group: name(group),
            disks: vec![self.path("disk.raw")],
            target: self.target(target),
            listen: vec![Listen::Unix(self.path("nbd.sock"))],
            server: ServerOptions::default(),
            every: Every::Manual,
            caching: Caching::Buffered,
            hooks: HookOptions::default(),
            audit_rate: Rate::new(1 << 30),
            ship_rate: None,
            keep: agent::KeepOptions::default(),
            limits: agent::Limits::default(),
            state: StateRoot::at(self.path("state")),
            diff_dir: None,
        }
    }

    fn target(&self, name: &str) -> Target {
        Target::directory(self.path(name))
    }

    pub(crate) fn start(&self) -> Protection {
        self.try_start().expect("starts")
    }

    /// Until there is a point; then it ends.
    pub(crate) fn protect_once(&self) {
        let protection = self.start();
        self.cut();
        protection.stop().expect("stops");
    }

    pub(crate) fn start_to(&self, target: &str) -> Protection {
        Protection::start(self.options("g", target), self.world.clone()).expect("starts")
    }

    pub(crate) fn try_start(&self) -> agent::Result<Protection> {
        self.try_start_group("g")
    }

    pub(crate) fn try_start_group(&self, group: &str) -> agent::Result<Protection> {
        Protection::start(self.options(group, "target"), self.world.clone())
    }

    pub(crate) fn start_with(&self, hooks: HookOptions) -> Protection {
        let options = ProtectOptions {
            hooks,
            ..self.options("g", "target")
        };
        Protection::start(options, self.world.clone()).expect("starts")
    }

    /// Cuts, waits for the point, and gives its id.
    pub(crate) fn cut(&self) -> String {
        let reply = self.try_cut(true).expect("a cut");
        reply.point.expect("it was waited for")
    }

    pub(crate) fn try_cut(&self, wait: bool) -> agent::Result<CutReply> {
        let place = StateRoot::at(self.path("state")).group(&name("g"));
        let labels = [("test".to_owned(), "yes".to_owned())].into();
        client::cut(&place, &CutRequest { labels, wait })
    }

    /// Writes through the export.
    pub(crate) fn write(&self, offset: usize, byte: u8, len: usize) {
        let mut stream = UnixStream::connect(self.path("nbd.sock")).expect("connects");
        let mut message = vec![0, 0, 0, 3];
        message.extend(b"IHAVEOPT");
        message.extend([0, 0, 0, 1, 0, 0, 0, 4]);
        message.extend(b"disk");
        // Transmission begins: a write, and the end.
        message.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
        message.extend((offset as u64).to_be_bytes());
        message.extend(u32::try_from(len).expect("short").to_be_bytes());
        message.extend(vec![byte; len]);
        stream.write_all(&message).expect("sent");
        // Greeting, size and flags, reply.
        let mut reply = [0; 18 + 10 + 16];
        stream.read_exact(&mut reply).expect("answered");
        assert_eq!(reply[32..36], [0; 4], "the write fails");
        let disc = [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        stream
            .write_all(&disc)
            .and_then(|()| stream.write_all(&[0; 12]))
            .expect("sent");
    }

    /// A point holds what production holds.
    pub(crate) fn check(&self, point: &str) {
        let production = fs::read(self.path("disk.raw")).expect("read");
        let restored = self.restored(point);
        let mut pairs = production.iter().zip(&restored);
        let differs = pairs.position(|(ours, theirs)| ours != theirs);
        assert_eq!(
            (differs, production.len()),
            (None, restored.len()),
            "{point}"
        );
    }

    /// The content of the only disk of a point.
    pub(crate) fn restored(&self, point: &str) -> Vec<u8> {
        let output = self.path("restored.raw");
        let options = RestoreOptions {
            point: point.parse().expect("a point"),
            disk: None,
            target: self.target("target"),
            output: output.clone(),
            format: Format::Raw,
            sparse: true,
            force: false,
        };
        agent::restore(&options, &self.world.clock, &|_, _| {}).expect("restores");
        let mut data = Vec::new();
        let mut file = File::open(&output).expect("opens");
        file.read_to_end(&mut data).expect("read");
        fs::remove_file(output).expect("removed");
        data
    }

    /// Waits until `ask` gives a value, ten seconds at most.
    pub(crate) fn wait<T>(&self, mut ask: impl FnMut() -> Option<T>) -> T {
        let clock = Arc::clone(&self.world.clock);
        let end = clock.monotonic() + std::time::Duration::from_secs(10);
        loop {
            if let Some(value) = ask() {
                return value;
            }
            assert!(clock.monotonic() < end, "waited in vain");
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
    }

    pub(crate) fn copy_dir(&self, from: &str, to: &str) {
        copy(&self.path(from), &self.path(to));
    }

    /// All files in a directory.
    pub(crate) fn files(&self, dir: &str) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.path(dir)).expect("listed");
        listed
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a kind").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}
