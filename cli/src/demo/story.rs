//! The acts, in order. Each proves something, or the demo fails.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::{Format, Points, RestoreOptions, ServeOptions, Served, Target, World};
use anyhow::{Context, Result, bail, ensure};
use block::{Clock, index};
use export::{Listen, ServerOptions};
use store::{PointRecord, PointRef};

use super::guest::{CONNECTIONS, Guest};
use super::image;
use super::ledger::{BLOCK, Compared, Window};
use super::nbd::Client;
use super::place::Place;
use super::rng::Rng;
use super::server::{Server, socket};
use super::tale::Tale;
use crate::args::Demo;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::units;

/// Cuts under load, after the first.
const CUTS: usize = 8;
/// Acknowledged writes between two cuts.
const WRITES_BETWEEN: u64 = 250;
/// Pieces that are read from a served point.
const PIECES: usize = 64;

/// A point, and between which events it was cut.
struct Cut {
    id: String,
    window: Window,
}

/// What the acts share.
struct Stage<'a> {
    place: Place,
    printer: &'a Printer,
    world: World,
    disk: PathBuf,
    original: PathBuf,
    size: u64,
    seed: u64,
    tale: Tale,
    pauses_us: Vec<u64>,
    durable_ms: Vec<f64>,
    began: Duration,
}

/// Tells the whole story.
pub(crate) fn tell(args: &Demo, printer: &Printer) -> Result<Tale> {
    let world = World::real()?;
    let base = args
        .dir
        .clone()
        .unwrap_or_else(crate::commands::scratch_dir);
    let place = Place::new(&base, args.keep)?;
    let mut stage = Stage::set(place, printer, world, args.disk.as_deref())?;
    let mut server = stage.start_server()?;
    let mut guest = Guest::start(&socket(&stage.place), stage.size, stage.seed, stage.clock());
    stage.first_copy(&mut server, &guest)?;
    let cuts = stage.cut_under_load(&server, &guest)?;
    stage.go_back(&guest, &cuts)?;
    let server = stage.kill_and_restart(server, &mut guest)?;
    stage.quiet_end(server, &mut guest)?;
    stage.verify_all()?;
    stage.compare_points(&guest, &cuts)?;
    stage.serve(&cuts)?;
    stage.tale.figures.guest_writes = guest.ledger.lock().acked_writes();
    stage.tale.took_s = stage.now().saturating_sub(stage.began).as_secs_f64();
    if args.keep {
        printer.line(&format!("kept: {}", stage.place.dir().display()));
    }
    Ok(stage.tale)
}

impl<'a> Stage<'a> {
    /// Makes the disk, and a copy that stays as it was.
    fn set(place: Place, printer: &'a Printer, world: World, image: Option<&Path>) -> Result<Self> {
        let began = world.clock.monotonic();
        let (disk, original) = (place.path("disk.raw"), place.path("original.raw"));
        printer.line("making a disk ...");
        let what = match image {
            Some(image) => image::copy_of(image, &disk)?,
            None => image::of_this_machine(&place.path("stage"), &disk)?,
        };
        image::copy_sparse(&disk, &original).context("cannot copy the disk")?;
        let size = std::fs::metadata(&disk)?.len();
        let least = BLOCK * 256 * CONNECTIONS;
        ensure!(
            size >= least,
            "the disk is too small to show anything on ({least} bytes at least)"
        );
        let seed = world.clock.wall().0;
        let tale = Tale {
            seed,
            disk: what.clone(),
            ..Tale::default()
        };
        let stage = Self {
            place,
            printer,
            world,
            disk,
            original,
            size,
            seed,
            tale,
            pauses_us: Vec::new(),
            durable_ms: Vec::new(),
            began,
        };
        stage.say(&format!("the disk: {}, {what}", units::bytes(size)));
        Ok(stage)
    }

    fn clock(&self) -> &Arc<dyn Clock> {
        &self.world.clock
    }

    fn now(&self) -> Duration {
        self.world.clock.monotonic()
    }

    fn say(&self, text: &str) {
        let since = self.now().saturating_sub(self.began);
        self.printer
            .line(&format!("{:>5.1} s  {text}", since.as_secs_f64()));
    }

    fn proved(&mut self, claim: String) {
        self.say(&format!("    proved: {claim}"));
        self.tale.proved.push(claim);
    }

    fn target(&self) -> Target {
        Target::directory(self.place.path("target"))
    }

    fn start_server(&self) -> Result<Server> {
        Server::start(&self.place, &self.disk, &self.world)
    }

    fn points(&self) -> Result<Points> {
        Ok(Points::open(&self.target(), self.clock())?)
    }

    fn find(&self, id: &str) -> Result<Arc<PointRecord>> {
        let point: PointRef = id.parse()?;
        Ok(self.points()?.find(&point)?)
    }

    // ---- the acts ----

    fn first_copy(&mut self, server: &mut Server, guest: &Guest) -> Result<()> {
        self.say(&format!(
            "protect: the disk is served over NBD; a guest writes on {CONNECTIONS} connections while the first copy is made"
        ));
        let began = self.now();
        let bar = Bar::new(self.printer, "seed");
        let status = server.wait("complete the first copy", |server| {
            let status = server.status()?;
            bar.tell(status.seed.done_bytes, status.seed.total_bytes);
            Ok(status.point.is_some().then_some(status))
        })?;
        bar.finish();
        let figures = &mut self.tale.figures;
        figures.seed_s = self
            .world
            .clock
            .monotonic()
            .saturating_sub(began)
            .as_secs_f64();
        figures.seed_read_bytes = status.seed.read_bytes;
        figures.disk_bytes = self.size;
        let cut = self.cut(server, guest, "first")?;
        let compared = self.check(guest, &cut, "first.raw")?;
        self.proved(format!(
            "the copy made while the guest wrote is exact: {} of {} byte for byte as acknowledged",
            cut.id,
            units::bytes(compared.bytes)
        ));
        Ok(())
    }

    fn cut_under_load(&mut self, server: &Server, guest: &Guest) -> Result<Vec<Cut>> {
        self.say(&format!(
            "cut: {CUTS} points while the guest goes on writing; no snapshot anywhere"
        ));
        let mut cuts = Vec::new();
        for number in 0..CUTS {
            guest.wait_acked(WRITES_BETWEEN, self.clock())?;
            cuts.push(self.cut(server, guest, &format!("cut {number}"))?);
        }
        Ok(cuts)
    }

    fn cut(&mut self, server: &Server, guest: &Guest, label: &str) -> Result<Cut> {
        let began = self.now();
        let (reply, window) = guest.around(|| server.cut(label))?;
        let took = self.now().saturating_sub(began);
        let id = reply.point.context("a cut that waits names its point")?;
        let point = self.find(&id)?;
        self.pauses_us.push(reply.cut.pause_us);
        self.durable_ms.push(took.as_secs_f64() * 1e3);
        self.pauses_us.sort_unstable();
        self.durable_ms.sort_unstable_by(f64::total_cmp);
        let figures = &mut self.tale.figures;
        figures.cuts = self.pauses_us.len() as u64;
        figures.cut_pause_us_median = self.pauses_us[self.pauses_us.len() / 2];
        figures.cut_pause_us_max = *self.pauses_us.last().expect("one was pushed");
        figures.cut_to_durable_ms_median = self.durable_ms[self.durable_ms.len() / 2];
        figures.cut_to_durable_ms_max = *self.durable_ms.last().expect("one was pushed");
        figures.changed_bytes += reply.cut.dirty_bytes;
        figures.stored_for_changes_bytes += point.stored_new_bytes;
        Ok(Cut { id, window })
    }

    /// Restores a point of an earlier moment.
    fn go_back(&mut self, guest: &Guest, cuts: &[Cut]) -> Result<()> {
        let cut = &cuts[cuts.len() / 2];
        self.say(&format!(
            "restore: back to {}, while the guest goes on",
            cut.id
        ));
        let compared = self.check(guest, cut, "earlier.raw")?;
        self.proved(format!(
            "{}, cut in the middle of the load, is that one moment: {} compared, {} blocks written before it, {} in flight at it",
            cut.id,
            units::bytes(compared.bytes),
            compared.written_blocks,
            compared.in_flight_blocks
        ));
        Ok(())
    }

    fn kill_and_restart(&mut self, server: Server, guest: &mut Guest) -> Result<Server> {
        self.say("kill -9: in the middle of the load");
        guest.wait_acked(WRITES_BETWEEN, self.clock())?;
        self.tale.figures.dirty_at_kill_bytes = server.status()?.dirty_bytes;
        server.kill9()?;
        let began = self.now();
        let server = self.start_server()?;
        let back = self.now().saturating_sub(began);
        self.tale.figures.restart_ms = back.as_secs_f64() * 1e3;
        guest.wait_acked(WRITES_BETWEEN, self.clock())?;
        let cut = self.cut(&server, guest, "after kill -9")?;
        let reread = server.status()?.reread_bytes;
        self.tale.figures.reread_bytes = reread;
        let compared = self.check(guest, &cut, "after-kill.raw")?;
        self.proved(format!(
            "after kill -9 the guest goes on, and the next point ({}) is exact: {} compared, {} of {} re-read",
            cut.id,
            units::bytes(compared.bytes),
            units::bytes(reread),
            units::bytes(self.size)
        ));
        Ok(server)
    }

    /// The guest rests: then a point and production are the same.
    fn quiet_end(&mut self, server: Server, guest: &mut Guest) -> Result<()> {
        self.say("stop: the guest rests; SIGTERM cuts and ships a last time");
        guest.pause()?;
        server.stop()?;
        let restored = self.restore("demo@latest", "last.raw")?;
        if let Some(byte) = first_difference(&restored, &self.disk)? {
            bail!("the last point differs from production at byte {byte}");
        }
        std::fs::remove_file(restored)?;
        self.proved(
            "the last point and the production disk are the same, byte for byte".to_owned(),
        );
        Ok(())
    }

    fn verify_all(&mut self) -> Result<()> {
        let points = self.points()?;
        let all = points.list(None);
        self.say(&format!("verify: every byte of {} points", all.len()));
        let began = self.now();
        let bar = Bar::new(self.printer, "verify");
        let mut checked = 0;
        for point in &all {
            bar.restart(&format!("verify {}", point.id));
            let found = points.verify(point, &|done, all| bar.tell(done, all))?;
            ensure!(
                found.is_whole(),
                "{} is damaged: {:?}",
                point.id,
                found.disks
            );
            checked += found
                .disks
                .iter()
                .map(|disk| disk.report.data_bytes)
                .sum::<u64>();
        }
        let figures = &mut self.tale.figures;
        figures.verify_s = self
            .world
            .clock
            .monotonic()
            .saturating_sub(began)
            .as_secs_f64();
        figures.verify_bytes = checked;
        figures.target_bytes = points.figures().stored_bytes;
        figures.cuts = all.len() as u64;
        self.proved(format!(
            "all {} points read back, every chunk and tree matches its SHA-256",
            all.len()
        ));
        Ok(())
    }

    /// The trees say where two points differ: nowhere but where the guest wrote in between.
    fn compare_points(&mut self, guest: &Guest, cuts: &[Cut]) -> Result<()> {
        let (a, b) = (&cuts[1], &cuts[cuts.len() - 1]);
        let found = self
            .points()?
            .diff(&*self.find(&a.id)?, &*self.find(&b.id)?)?;
        let ranges = &found.first().context("a disk")?.1;
        let written = guest.ledger.lock().written_between(a.window, b.window);
        for range in ranges {
            let blocks = range.start() / BLOCK..range.end().div_ceil(BLOCK);
            for block in blocks {
                ensure!(
                    written.binary_search(&block).is_ok(),
                    "{} and {} differ at block {block}, which the guest did not write",
                    a.id,
                    b.id
                );
            }
        }
        let differ: u64 = ranges.iter().map(|range| range.len()).sum();
        ensure!(differ > 0, "{} and {} do not differ", a.id, b.id);
        self.proved(format!(
            "{} and {} differ in {}, all of it written by the guest in between; found without reading the disks",
            a.id,
            b.id,
            units::bytes(differ)
        ));
        Ok(())
    }

    /// A point as a disk, at once.
    fn serve(&mut self, cuts: &[Cut]) -> Result<()> {
        let cut = &cuts[cuts.len() - 1];
        self.say(&format!(
            "serve: {} as a disk, without restoring it",
            cut.id
        ));
        let restored = self.restore(&cut.id, "served.raw")?;
        let reference = File::open(&restored)?;
        let path = self.place.path("point.sock");
        for overlay in [None, Some(self.place.dir().to_owned())] {
            let writable = overlay.is_some();
            let options = ServeOptions {
                point: cut.id.parse()?,
                target: self.target(),
                listen: vec![Listen::Unix(path.clone())],
                server: ServerOptions::default(),
                overlay_dir: overlay,
            };
            let served = Served::start(options, self.clock())?;
            let mut client = Client::connect(&path)?;
            compare_pieces(&mut client, &reference, self.size, self.seed)?;
            if writable {
                let ours = vec![0xa5; index(BLOCK)];
                client.write(0, &ours)?;
                let mut back = vec![0; ours.len()];
                client.read(0, &mut back)?;
                ensure!(back == ours, "a write to the overlay does not read back");
            } else {
                ensure!(
                    client.write(0, &[0; 512]).is_err(),
                    "a point was written to"
                );
            }
            drop(client);
            served.stop();
        }
        let point = self.find(&cut.id)?;
        ensure!(
            self.points()?.verify(&point, &|_, _| {})?.is_whole(),
            "a writable point changed the point"
        );
        std::fs::remove_file(restored)?;
        self.proved(format!(
            "{} served as a disk reads as its restored copy; written to, it stays what it was",
            cut.id
        ));
        Ok(())
    }

    // ---- tools ----

    fn restore(&mut self, id: &str, name: &str) -> Result<PathBuf> {
        let output = self.place.path(name);
        let options = RestoreOptions {
            point: id.parse()?,
            disk: None,
            target: self.target(),
            output: output.clone(),
            format: Format::Raw,
            sparse: true,
            force: false,
        };
        let bar = Bar::new(self.printer, &format!("restore {id}"));
        let restored = agent::restore(&options, self.clock(), &|done, all| bar.tell(done, all))?;
        self.tale.figures.restore_bytes += restored.size;
        self.tale.figures.restore_s += restored.took.as_secs_f64();
        Ok(output)
    }

    /// Restores a point, and holds all of it against the ledger.
    fn check(&mut self, guest: &Guest, cut: &Cut, name: &str) -> Result<Compared> {
        let restored = self.restore(&cut.id, name)?;
        // A copy, so that the guest need not wait.
        let ledger = guest.ledger.lock().clone();
        let checked = ledger.check(&restored, &self.original, cut.window);
        let compared = checked.with_context(|| format!("{} is not what it must be", cut.id))?;
        std::fs::remove_file(restored)?;
        Ok(compared)
    }
}

fn compare_pieces(client: &mut Client, reference: &File, size: u64, seed: u64) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let mut rng = Rng::new(seed);
    let (mut ours, mut theirs) = (vec![0; index(PIECE)], vec![0; index(PIECE)]);
    for _ in 0..PIECES {
        let offset = rng.below((size - PIECE) / 512 + 1) * 512;
        reference.read_exact_at(&mut ours, offset)?;
        client.read(offset, &mut theirs)?;
        ensure!(ours == theirs, "the served point differs at byte {offset}");
    }
    Ok(())
}

fn first_difference(a: &Path, b: &Path) -> Result<Option<u64>> {
    const STEP: usize = 1 << 20;
    let (a, b) = (File::open(a)?, File::open(b)?);
    let size = a.metadata()?.len();
    ensure!(
        b.metadata()?.len() == size,
        "the files have different sizes"
    );
    let (mut x, mut y) = (vec![0; STEP], vec![0; STEP]);
    for start in (0..size).step_by(STEP) {
        let len = index((size - start).min(STEP as u64));
        a.read_exact_at(&mut x[..len], start)?;
        b.read_exact_at(&mut y[..len], start)?;
        if let Some(at) = x[..len].iter().zip(&y[..len]).position(|(x, y)| x != y) {
            return Ok(Some(start + at as u64));
        }
    }
    Ok(None)
}
