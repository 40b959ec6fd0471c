//! The audit: is production, where nobody has written since, still what the newest point says?
//!
//! ```text
//!   newest point --fingerprints--+
//!                                +--> differ? --> error, counted, marked: the next point is exact
//!   production, read at a rate --+
//!        only granules that are untouched since the point's cut, before and after the read
//! ```
//!
//! It goes round and round through all disks. A finding means that somebody changed a disk behind the
//! splitter, that the device lost a write, or that the splitter is wrong.
//!
//! Rule: no finding without proof. A write, a cut's release or a new history in between makes a
//! comparison void, not a finding.
//!
//! Rule: production is read in short pieces: some file systems hold a file's writers off for the time
//! of a read.

use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, GRANULE, GranuleRange, index};
use parking_lot::Mutex;
use splitter::{Generation, Lineage, TrackedDisk};
use store::{Fingerprint, Image, Images, PointRecord};
use tracing::{error, warn};

use crate::api::{AuditMiss, AuditStatus};
use crate::engine::{Engine, Stop};
use crate::{Error, Result};
use dd_target::{Bucket, Rate};

/// Granules that are compared at once: what a leaf of an image covers.
const PIECE_GRANULES: u64 = 256;
/// Bytes that are read at once.
const READ_BYTES: u64 = 64 << 10;
/// What a piece costs at least, of the rate: holes are not read, but looked at.
const PIECE_COST: u64 = GRANULE;
/// Until a comparison that was void is tried again.
const VOID_PAUSE: Duration = Duration::from_millis(50);
/// Comparisons of a piece that may be void before it is left out of this pass.
const VOIDS_MAX: u32 = 8;
/// Until it is looked again whether there is a point, or the target answers.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// Extents asked for at once.
const EXTENTS_MAX: usize = 64;

/// How far the audit of a group is, and what it found.
#[derive(Default)]
pub(crate) struct Audit(Mutex<State>);

#[derive(Default)]
struct State {
    /// The newest point, and how to read it.
    basis: Option<Basis>,
    position_bytes: u64,
    passes: u64,
    bytes_checked: u64,
    pieces_left_out: u64,
    misses: u64,
    last_miss: Option<AuditMiss>,
    trouble: Option<String>,
}

/// What production is compared with.
#[derive(Clone)]
struct Basis {
    point: Arc<PointRecord>,
    images: Images,
}

impl Basis {
    fn cut(&self) -> (Lineage, Generation) {
        (
            Lineage(self.point.lineage),
            Generation(self.point.generation),
        )
    }
}

impl Audit {
    /// Compares with this point from here on.
    pub(crate) fn follow(&self, point: Arc<PointRecord>, images: Images) {
        self.0.lock().basis = Some(Basis { point, images });
    }

    pub(crate) fn status(&self, rate: Rate, total_bytes: u64) -> AuditStatus {
        let state = self.0.lock();
        AuditStatus {
            bytes_per_s: rate.bytes_per_s(),
            position_bytes: state.position_bytes,
            total_bytes,
            passes: state.passes,
            bytes_checked: state.bytes_checked,
            pieces_left_out: state.pieces_left_out,
            misses: state.misses,
            last_miss: state.last_miss.clone(),
            trouble: state.trouble.clone(),
        }
    }
}

/// Audits at `rate` until the end.
pub(crate) fn run(engine: &Engine, rate: Rate) {
    let bucket = Bucket::new(rate);
    let mut auditor = Auditor::new(engine);
    while engine.stop() == Stop::No {
        let pause = match auditor.step() {
            Ok(Step::Passed { read_bytes }) => {
                auditor.note_trouble(None);
                bucket.take(read_bytes.max(PIECE_COST), engine.now())
            }
            Ok(Step::Void) => VOID_PAUSE,
            Ok(Step::Idle) => IDLE_PAUSE,
            Err(error) => {
                auditor.note_trouble(Some(error.chain()));
                auditor.advance();
                IDLE_PAUSE
            }
        };
        drop(engine.wait(Some(pause), Stop::No, |_| false));
    }
}

/// What came of one piece.
pub(crate) enum Step {
    /// It is behind us.
    Passed { read_bytes: u64 },
    /// A write or a cut came in between.
    Void,
    /// There is nothing to compare with.
    Idle,
}

/// Goes through the disks, piece by piece.
pub(crate) struct Auditor<'a> {
    engine: &'a Engine,
    disk: usize,
    granule: u64,
    voids: u32,
    /// The image of the current disk in the point that is compared with.
    image: Option<(usize, Arc<PointRecord>, Image)>,
}

impl<'a> Auditor<'a> {
    pub(crate) fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            disk: 0,
            granule: 0,
            voids: 0,
            image: None,
        }
    }

    /// Compares one piece.
    pub(crate) fn step(&mut self) -> Result<Step> {
        let basis = self.engine.audit.0.lock().basis.clone();
        let Some(basis) = basis.filter(|basis| self.applies(basis)) else {
            return Ok(Step::Idle);
        };
        let size = self.disk().size();
        let end = GranuleRange::of_size(size).end;
        let piece = GranuleRange {
            start: self.granule.min(end),
            end: (self.granule + PIECE_GRANULES).min(end),
        };
        match self.compare(&basis, piece)? {
            Some(read_bytes) => {
                self.advance();
                Ok(Step::Passed { read_bytes })
            }
            None if self.voids < VOIDS_MAX => {
                self.voids += 1;
                Ok(Step::Void)
            }
            None => {
                self.engine.audit.0.lock().pieces_left_out += 1;
                self.advance();
                Ok(Step::Void)
            }
        }
    }

    fn disk(&self) -> &Arc<TrackedDisk> {
        &self.engine.group.disks()[self.disk]
    }

    /// Whether the point is one of this history and of these disks.
    fn applies(&self, basis: &Basis) -> bool {
        let (lineage, _) = basis.cut();
        let disk = self.disk();
        let held = basis.point.disk(disk.name());
        lineage == self.engine.group.lineage() && held.is_some_and(|held| held.size == disk.size())
    }

    /// `None` if the comparison is void; else how much of production was read.
    fn compare(&mut self, basis: &Basis, piece: GranuleRange) -> Result<Option<u64>> {
        let group = &self.engine.group;
        let Some(before) = group.untouched_since(basis.cut(), self.disk, piece) else {
            return Ok(None);
        };
        if before.is_empty() {
            return Ok(Some(0));
        }
        let (content, read_bytes) = read_untouched(self.disk(), piece, &before)?;
        let differing = self.differing(basis, piece, &content)?;
        let Some(after) = group.untouched_since(basis.cut(), self.disk, piece) else {
            return Ok(None);
        };
        let mut checked = 0;
        for granules in both(&before, &after) {
            checked += granules.bytes(self.disk().size()).len();
            for missed in both(&[granules], &differing) {
                self.miss(basis, missed);
            }
        }
        self.engine.audit.0.lock().bytes_checked += checked;
        Ok(Some(read_bytes))
    }

    /// What of a piece is not as the point has it.
    fn differing(
        &mut self,
        basis: &Basis,
        piece: GranuleRange,
        content: &[u8],
    ) -> Result<Vec<GranuleRange>> {
        let engine = self.engine;
        // Nothing in here needs the group.
        let _stepped_back = engine.crew.step_back();
        let failed = self
            .engine
            .target
            .failed("read the newest point for the audit");
        let current = self
            .image
            .as_ref()
            .is_some_and(|(disk, point, _)| *disk == self.disk && Arc::ptr_eq(point, &basis.point));
        if !current {
            let held = basis.point.disk(self.disk().name());
            let held = held.expect("the point applies to this disk");
            let image = basis.images.open(&held.image).map_err(&failed)?;
            self.image = Some((self.disk, Arc::clone(&basis.point), image));
        }
        let (_, _, image) = self.image.as_ref().expect("it was just opened");
        let wanted = image.fingerprints(piece).map_err(&failed)?;
        let found = image.fingerprints_of(content).map_err(&failed)?;
        Ok(differing(piece, &found, &wanted))
    }

    fn miss(&self, basis: &Basis, granules: GranuleRange) {
        let disk = self.disk();
        let range = granules.bytes(disk.size());
        self.engine.group.distrust(self.disk, granules);
        error!(
            group = %self.engine.name, disk = %disk.name(), %range, point = %basis.point.id,
            "production differs from the newest point where nobody wrote; it is read into the next point"
        );
        let mut state = self.engine.audit.0.lock();
        state.misses += granules.count();
        state.last_miss = Some(AuditMiss {
            disk: disk.name().to_string(),
            offset: range.start(),
            length: range.len(),
            point: basis.point.id.to_string(),
            at_unix_ns: self.engine.world.clock.wall().0,
        });
    }

    /// Goes on to the next piece, after the last one to the first.
    fn advance(&mut self) {
        self.voids = 0;
        self.granule += PIECE_GRANULES;
        if self.granule >= GranuleRange::of_size(self.disk().size()).end {
            self.granule = 0;
            self.disk = (self.disk + 1) % self.engine.group.disks().len();
            self.image = None;
        }
        let disks = &self.engine.group.disks()[..self.disk];
        let before: u64 = disks.iter().map(|disk| disk.size()).sum();
        let mut state = self.engine.audit.0.lock();
        state.position_bytes = before + self.granule * GRANULE;
        state.passes += u64::from(state.position_bytes == 0);
    }

    fn note_trouble(&self, trouble: Option<String>) {
        let mut state = self.engine.audit.0.lock();
        if let Some(why) = &trouble
            && state.trouble != trouble
        {
            warn!(group = %self.engine.name, why, "part of a disk cannot be audited");
        }
        state.trouble = trouble;
    }
}

/// The content of a piece where it is untouched, whole granules, and how much was read. Holes are
/// zeroes without a read.
fn read_untouched(
    disk: &TrackedDisk,
    piece: GranuleRange,
    untouched: &[GranuleRange],
) -> Result<(Vec<u8>, u64)> {
    let failed = |source| Error::Device {
        doing: "read production for the audit",
        source,
    };
    let mut content = vec![0; index(piece.count() * GRANULE)];
    let range = piece.bytes(disk.size());
    let extents = disk.block_status(range, EXTENTS_MAX).map_err(failed)?;
    let known = extents
        .last()
        .is_some_and(|last| last.range.end() == range.end());
    if known && extents.iter().all(|extent| extent.state.reads_zero()) {
        return Ok((content, 0));
    }
    let mut read_bytes = 0;
    for granules in untouched {
        let wanted = granules.bytes(disk.size());
        let first = index(wanted.start() - range.start());
        let bytes = &mut content[first..first + index(wanted.len())];
        for (at, part) in (wanted.start()..)
            .step_by(index(READ_BYTES))
            .zip(bytes.chunks_mut(index(READ_BYTES)))
        {
            disk.read_at(part, at).map_err(failed)?;
        }
        read_bytes += wanted.len();
    }
    Ok((content, read_bytes))
}

/// What is in both lists of ranges.
fn both(a: &[GranuleRange], b: &[GranuleRange]) -> Vec<GranuleRange> {
    let common = |a: &GranuleRange, b: &GranuleRange| GranuleRange {
        start: a.start.max(b.start),
        end: a.end.min(b.end),
    };
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| common(a, b)));
    pairs.filter(|range| range.start < range.end).collect()
}

/// The runs of granules whose content has not the fingerprint that it should have. What was not read
/// is among them.
fn differing(
    piece: GranuleRange,
    found: &[Fingerprint],
    wanted: &[Fingerprint],
) -> Vec<GranuleRange> {
    let mut runs: Vec<GranuleRange> = Vec::new();
    for (granule, (found, wanted)) in (piece.start..).zip(found.iter().zip(wanted)) {
        if found == wanted {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == granule => run.end += 1,
            _ => runs.push(GranuleRange {
                start: granule,
                end: granule + 1,
            }),
        }
    }
    runs
}
