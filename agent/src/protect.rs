//! Protecting a group: production, splitter, export and target brought together, and taken apart.
//!
//! ```text
//!  start: lock group -> open disks -> open tracking -> (first time: open target) -> control -> serve
//!  stop:  close exports -> last cut -> ship -> close tracking
//! ```
//!
//! | fails at start | then |
//! |---|---|
//! | disk, tracking, socket | it ends with the reason; nothing was served |
//! | target, the first time with it | the same: a typing error is told at once |
//! | target, later | the disks are served, and it is tried again: guests do not wait for a target |

use std::any::Any;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use block::{Access, BlockDevice, Caching, Dir, DirtyBitmap, Identity, Name, OsDir, Production};
use export::{Export, Exports, Listen, Server, ServerOptions};
use splitter::{DiskSpec, Group, How, Surroundings};
use tracing::{error, info, warn};

use crate::control::Control;
use crate::diff_place::{DiffPlace, open_dir};
use crate::engine::{Engine, Policy, SCHEDULED_TRIES, Stop};
use crate::hooks::HookOptions;
use crate::limits::Limits;
use crate::places::{GroupPlace, Record, RecordedDisk};
use crate::schedule::Every;
use crate::serve::{is_required, uris};
use crate::world::World;
use crate::{
    Error, Result, StateRoot, Target, audit, cutter, frame_writer, keeping, stage_two, tender,
    watch,
};
use dd_target::KeepOptions;
use dd_target::Rate;

/// How long requests in flight may take when the exports are closed.
const DRAIN: Duration = Duration::from_secs(10);
/// Cuts that fail in a row before the end gives up on the last one.
const LAST_CUTS: u32 = 5;
/// Name of the bitmap of the open generation: `qemu:dirty-bitmap:standin`.
const BITMAP: &str = "standin";

/// What to protect, and how.
pub struct ProtectOptions {
    /// The group.
    pub group: Name,
    /// The disks.
    pub disks: Vec<PathBuf>,
    /// Where points go.
    pub target: Target,
    /// Where the disks are served; nowhere in particular: `STATE/GROUP/nbd.sock`.
    pub listen: Vec<Listen>,
    /// How they are served.
    pub server: ServerOptions,
    /// When to cut.
    pub every: Every,
    /// Whether the disks go through the page cache of this machine.
    pub caching: Caching,
    /// What to run around cuts.
    pub hooks: HookOptions,
    /// How fast production is compared with the newest point; not at all if there is none.
    pub audit_rate: Option<Rate>,
    /// How fast diffs are shipped at most; as fast as can be if there is none.
    pub ship_rate: Option<Rate>,
    /// What protection may take.
    pub limits: Limits,
    /// How the target is looked after.
    pub keep: KeepOptions,
    /// Where state is kept.
    pub state: StateRoot,
    /// Where diffs are kept, if not in the state: a directory, or a block device.
    pub diff_dir: Option<PathBuf>,
}

/// A group under protection. Dropped without [`stop`](Self::stop) it ends as after a kill.
pub struct Protection(Option<Running>);

struct Running {
    engine: Arc<Engine>,
    server: Server,
    control: Control,
    cutter: JoinHandle<()>,
    watch: JoinHandle<()>,
    tender: JoinHandle<()>,
    frame_writer: JoinHandle<()>,
    stage_two: JoinHandle<()>,
    keeper: JoinHandle<()>,
    audit: Option<JoinHandle<()>>,
    productions: Vec<Production>,
    how: How,
    _locks: Vec<Box<dyn Any + Send + Sync>>,
}

/// Lets another thread end a [`Protection::stop`] that takes long.
#[derive(Clone)]
pub struct Abandon(Weak<Engine>);

impl Abandon {
    /// Leaves what is not shipped yet to the next start.
    pub fn now(&self) {
        if let Some(engine) = self.0.upgrade() {
            engine.set_stop(Stop::Now);
        }
    }
}

/// A disk that was opened.
struct Opened {
    name: Name,
    path: PathBuf,
    production: Production,
}

impl Protection {
    /// Starts to protect a group. The disks are served when this returns.
    ///
    /// # Errors
    /// See the table above.
    pub fn start(options: ProtectOptions, world: World) -> Result<Self> {
        block::allow_many_open_files();
        let place = options.state.group(&options.group);
        create_private(place.dir())?;
        let mut locks = vec![lock_group(&place)?];
        let disks = open_disks(&options.disks, options.caching)?;
        let diffs = DiffPlace::open(&place, options.diff_dir.as_deref())?;
        locks.extend(diffs.lock);
        let [state, maps] = [place.tracking_dir(), place.map_dir()].map(|path| open_dir(&path));
        let group_dirs = [state?, maps?, diffs.dir];
        let (group, opened) = open_group(&options.group, &disks, group_dirs, &world)?;
        let target = options.target.absolute();
        if target.vault().is_some() && !options.keep.rules.is_empty() {
            return Err(Error::usage(
                "who adds points to a vault does not remove any",
                "leave out --keep-...; `standin retention apply` does it, with a token of the role retention",
            ));
        }
        let known = place
            .record()
            .filter(|known| known.target == target.to_string());
        let record = Record {
            lineage: known.as_ref().and_then(|known| known.lineage.clone()),
            ..record_of(&target, options.every, &disks)
        };
        let policy = Policy {
            every: options.every,
            hooks: options.hooks,
            audit_rate: options.audit_rate,
            ship_rate: options.ship_rate,
            limits: options.limits,
            keep: options.keep,
        };
        let engine = Engine::new(group, world, target, policy, place, record.clone())?;
        engine.note_began(&opened.how, known.is_some());
        let engine = Arc::new(engine);
        let store = match known {
            // It was there once: it may come back.
            Some(_) => None,
            None => Some(stage_two::open_first(&engine)?),
        };
        let place = &engine.place;
        place.save_record(&record)?;
        if record.lineage == Some(opened.lineage.to_string()) {
            engine.seeded(opened.lineage, false, false);
        }
        let described = disks.iter().map(|d| d.production.description.clone());
        let productions: Vec<_> = described.collect();
        // First: who finds the disks served finds somebody to ask as well.
        let control = Control::start(&engine, productions)?;
        let server = match serve(&engine, &disks, options.listen, options.server) {
            Ok(server) => server,
            Err(error) => {
                control.stop();
                return Err(error);
            }
        };
        let thread = |name: &str, run: Box<dyn FnOnce(&Engine) + Send>| {
            let engine = Arc::clone(&engine);
            let body = move || run(&engine);
            let spawned = Builder::new().name(name.into()).spawn(body);
            spawned.map_err(Error::file("start a thread for", place.dir()))
        };
        Ok(Self(Some(Running {
            stage_two: thread("stage-two", Box::new(move |e| stage_two::run(e, store)))?,
            keeper: thread("keeper", Box::new(keeping::run))?,
            cutter: thread("cutter", Box::new(cutter::run))?,
            watch: thread("watch", Box::new(watch::run))?,
            tender: thread("tender", Box::new(tender::run))?,
            frame_writer: thread("frame-writer", Box::new(frame_writer::run))?,
            audit: match options.audit_rate {
                None => None,
                Some(rate) => Some(thread("audit", Box::new(move |e| audit::run(e, rate)))?),
            },
            engine,
            server,
            control,
            productions: disks.into_iter().map(|disk| disk.production).collect(),
            how: opened.how,
            _locks: locks,
        })))
    }

    fn running(&self) -> &Running {
        self.0.as_ref().expect("only the end takes it")
    }

    /// NBD URIs of the disks, one per disk and place.
    #[must_use]
    pub fn exports(&self) -> &[String] {
        self.running()
            .engine
            .exports
            .get()
            .map_or(&[], Vec::as_slice)
    }

    /// How tracking came to be open.
    #[must_use]
    pub fn how(&self) -> &How {
        &self.running().how
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> crate::api::GroupStatus {
        let running = self.running();
        let described = running.productions.iter();
        let described: Vec<_> = described.map(|p| p.description.clone()).collect();
        crate::status::of_running(&running.engine, &described)
    }

    /// A way to end [`stop`](Self::stop) early.
    #[must_use]
    pub fn abandon(&self) -> Abandon {
        Abandon(Arc::downgrade(&self.running().engine))
    }

    /// Closes the exports, cuts and ships a last time, and closes tracking. Returns the newest
    /// point's id.
    ///
    /// # Errors
    /// `LeftBehind` if the last cut is not on the target; the next start ships it. `Fenced` if
    /// somebody else has taken over the target.
    pub fn stop(mut self) -> Result<Option<String>> {
        self.0.take().expect("only the end takes it").stop()
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.engine.set_stop(Stop::Now);
            drop(running.server);
            join(running.cutter, "cutter");
            join(running.watch, "watch");
            join(running.tender, "tender");
            join(running.frame_writer, "frame writer");
            join(running.stage_two, "stage two");
            join(running.keeper, "keeper");
            running
                .audit
                .into_iter()
                .for_each(|audit| join(audit, "audit"));
            running.control.stop();
        }
    }
}

impl Running {
    fn stop(self) -> Result<Option<String>> {
        let engine = self.engine;
        engine.set_stop(Stop::Closing);
        let report = self.server.drain(DRAIN);
        info!(group = %engine.name, connections = report.connections, aborted = report.aborted, "exports closed");
        join(self.cutter, "cutter");
        join(self.tender, "tender");
        join(self.keeper, "keeper");
        self.audit
            .into_iter()
            .for_each(|audit| join(audit, "audit"));
        let cut = last_cut(&engine);
        engine.set_stop(Stop::Draining);
        join(self.watch, "watch");
        join(self.frame_writer, "frame writer");
        join(self.stage_two, "stage two");
        engine.set_stop(Stop::Now);
        let shared = engine.shared.lock();
        let (newest, fenced) = (shared.newest.clone(), shared.fenced);
        let trouble = shared.troubles.first(engine.now());
        drop(shared);
        let left = engine.group.sealed().len() + usize::from(engine.group.ending().is_some());
        let target = engine.target.clone();
        self.control.stop();
        close(engine, &self.productions);
        cut?;
        if left == 0 {
            return Ok(newest.map(|point| point.id));
        }
        let why = trouble.map_or_else(|| "it was told to end at once".into(), |t| t.error);
        Err(match fenced {
            true => Error::Fenced {
                target: target.to_string(),
            },
            false => Error::LeftBehind { why },
        })
    }
}

fn create_private(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    let created = builder.recursive(true).mode(0o700).create(path);
    created.map_err(Error::file("create the state directory", path))
}

fn lock_group(place: &GroupPlace) -> Result<Box<dyn Any + Send + Sync>> {
    let dir = OsDir::open(place.dir()).map_err(Error::file("open", place.dir()))?;
    dir.lock_exclusive("lock")
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => Error::Group(splitter::OpenError::InUse {
                group: place.group().clone(),
                place: place.dir().display().to_string(),
            }),
            _ => Error::file("lock", place.dir())(source),
        })
}

fn open_disks(paths: &[PathBuf], caching: Caching) -> Result<Vec<Opened>> {
    let mut disks: Vec<Opened> = Vec::new();
    for path in paths {
        let name = disk_name(path)?;
        if let Some(other) = disks.iter().find(|disk| disk.name == name) {
            return Err(Error::usage(
                format!(
                    "`{}` and `{}` would both be disk {name}",
                    other.path.display(),
                    path.display()
                ),
                "the disks of a group need different file names",
            ));
        }
        let production = block::open_production_with(path, Access::ReadWrite, caching)?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        info!(disk = %name, size = production.device.size(), what = production.description, "opened");
        disks.push(Opened {
            name,
            path,
            production,
        });
    }
    Ok(disks)
}

/// A disk's name in its group and as an export: the stem of its file.
///
/// # Errors
/// `Usage` if that is no name.
pub fn disk_name(path: &Path) -> Result<Name> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy());
    stem.unwrap_or_default()
        .parse()
        .map_err(|error: block::InvalidName| {
            Error::usage(
                format!(
                    "the file name of disk `{}` gives it no name: {error}",
                    path.display()
                ),
                "rename the file, or make a symbolic link with another name",
            )
        })
}

fn open_group(
    name: &Name,
    disks: &[Opened],
    [state, maps, diffs]: [Arc<dyn Dir>; 3],
    world: &World,
) -> Result<(Group, splitter::Opened)> {
    let spec = |disk: &Opened| DiskSpec {
        name: disk.name.clone(),
        production: Arc::clone(&disk.production.device),
        identity: identity(&disk.production.identity, world),
        stamp: disk.production.stamp,
    };
    let around = Surroundings {
        state,
        maps,
        diffs,
        clock: Arc::clone(&world.clock),
        boot: world.boot.clone(),
        booted_at: world.booted_at,
        random: Arc::clone(&world.random),
    };
    let specs = disks.iter().map(spec).collect();
    let (group, opened) = Group::open(name.clone(), specs, around)?;
    match &opened.how {
        How::Fresh => info!(group = %name, "tracking begins"),
        How::Resumed { stale_bytes } => {
            info!(group = %name, stale_bytes, sealed = opened.sealed.len(), "tracking goes on");
        }
        How::Recovered { why, stale_bytes } => {
            warn!(group = %name, why, stale_bytes, "tracking goes on from the intent log; what it names is read again");
        }
        How::Distrusted { why } => {
            warn!(group = %name, why, "tracking begins anew; the disks are copied anew");
        }
    }
    Ok((group, opened))
}

/// On another boot, a disk that cannot be told from others is another disk.
fn identity(disk: &Identity, world: &World) -> String {
    match disk.lasts {
        true => disk.text.clone(),
        false => format!("{} on boot {}", disk.text, world.boot),
    }
}

fn record_of(target: &Target, every: Every, disks: &[Opened]) -> Record {
    let disk = |disk: &Opened| RecordedDisk {
        name: disk.name.to_string(),
        path: disk.path.clone(),
    };
    Record {
        target: target.to_string(),
        disks: disks.iter().map(disk).collect(),
        every: every.to_string(),
        lineage: None,
    }
}

fn serve(
    engine: &Engine,
    disks: &[Opened],
    listen: Vec<Listen>,
    options: ServerOptions,
) -> Result<Server> {
    let exports = Exports::new();
    for (tracked, opened) in engine.group.disks().iter().zip(disks) {
        let export = Export {
            name: tracked.name().to_string(),
            description: format!(
                "{}, protected in group {}",
                opened.production.description, engine.name
            ),
            device: Arc::clone(tracked) as Arc<dyn BlockDevice>,
            bitmaps: vec![(BITMAP.into(), Arc::clone(tracked) as Arc<dyn DirtyBitmap>)],
            multi_conn: true,
        };
        exports.add(export).map_err(|error| {
            Error::usage(
                error.to_string(),
                "a disk that is served over NBD needs a name of its own",
            )
        })?;
    }
    let names: Vec<_> = disks.iter().map(|disk| disk.name.to_string()).collect();
    if let [only] = names.as_slice() {
        exports.set_default(Some(only.clone()));
    }
    let listen = match listen.is_empty() {
        true => vec![Listen::Unix(engine.place.nbd_socket()?)],
        false => listen,
    };
    let tls = is_required(&options.tls);
    let server = Server::start(&listen, exports, options)?;
    let uris = uris(&server.local_addresses(), &names, tls);
    engine.exports.set(uris).expect("the disks are served once");
    Ok(server)
}

/// The last cut, some times over: a write that hung may have ended by now.
fn last_cut(engine: &Engine) -> Result<()> {
    let shared = engine.shared.lock();
    let pointless = !shared.seeded || shared.fenced || shared.stop == Stop::Now;
    drop(shared);
    if pointless {
        return Ok(());
    }
    let mut tried = 0;
    loop {
        tried += 1;
        match engine.cut(Default::default(), SCHEDULED_TRIES) {
            Ok(_) => return Ok(()),
            Err(error) => {
                engine.cut_fails(&error);
                if tried == LAST_CUTS || !engine.shared.lock().seeded {
                    return Err(error);
                }
            }
        }
    }
}

fn join(thread: JoinHandle<()>, name: &str) {
    if thread.join().is_err() {
        error!(thread = name, "a thread ended in a panic; this is a bug");
    }
}

/// Closes tracking, so that the next start goes on even after a restart of the machine.
fn close(engine: Arc<Engine>, productions: &[Production]) {
    let Some(engine) = Arc::into_inner(engine) else {
        warn!("somebody still waits for the group; tracking is left as after a kill");
        return;
    };
    let mut disks = engine.group.disks().iter();
    let flushed = disks.try_for_each(|disk| disk.flush());
    let stamps: std::io::Result<Vec<_>> = productions.iter().map(Production::stamp_now).collect();
    let closed = match (flushed, stamps) {
        (Ok(()), Ok(stamps)) => engine.group.close(&stamps),
        (Err(error), _) => Err(std::io::Error::other(error)),
        (_, Err(error)) => Err(error),
    };
    if let Err(error) = closed {
        warn!(%error, "tracking could not be closed cleanly; the next start recovers as after a kill");
    }
}
