//! What the control API says: the types behind `standin status --json` and `standin cut --json`.
//!
//! `docs/operate/cli.md` documents every field. Rule: fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod gaps;
mod ladder;

pub use gaps::{ClockMove, Gap, Gaps, OlderGaps};
pub use ladder::{Cause, LadderStatus, LadderStep, Rung};

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The groups.
    pub groups: Vec<GroupStatus>,
}

/// What a group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The target has not been opened yet.
    Starting,
    /// The first copy is being made; there is no point of this history yet.
    Seeding,
    /// Every cut reaches the target.
    Protected,
    /// Cuts are made, and wait for the target.
    Lagging,
    /// Writes are not being copied: see `trouble`. No cut can be made until that ends.
    Degraded,
    /// Another process has taken over the target: nothing is shipped any more.
    Fenced,
    /// The last cut is being shipped.
    Stopping,
    /// No process protects the group.
    Stopped,
}

/// How much of the machine shipping may take from guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// What they leave.
    Low,
    /// Less than they.
    Easy,
    /// As much as they: points get old, or somebody waits for one.
    Normal,
}

/// One group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// How much of protection is kept.
    pub rung: Rung,
    /// Why, and how it came there.
    pub ladder: LadderStatus,
    /// The newest point on the target.
    pub point: Option<String>,
    /// Seconds since the cut of that point.
    pub point_age_s: Option<f64>,
    /// The gap that goes on: since when there is no point, nor will be; null if points come as they should.
    pub gap: Option<Gap>,
    /// Bytes written and not yet on the target, in whole 4 KiB granules.
    pub dirty_bytes: u64,
    /// Bytes that diffs and dirty maps occupy.
    pub diff_bytes: u64,
    /// Cuts that wait for the target.
    pub sealed: u64,
    /// The generation that takes the guest's writes.
    pub generation: u64,
    /// The history of tracking, in hex.
    pub lineage: String,
    /// Bytes re-read from production because the process before this one was killed, or because a
    /// write could not be copied.
    pub reread_bytes: u64,
    /// The first copy.
    pub seed: SeedStatus,
    /// Where points go.
    pub target: String,
    /// When cuts are made.
    pub every: String,
    /// Process id of the protecting process.
    pub pid: Option<u32>,
    /// What fails, if something does.
    pub trouble: Option<Trouble>,
    /// How much of the machine shipping may take from guests.
    pub ship_priority: Priority,
    /// At most so many bytes of diffs are shipped in a second; null for no limit.
    pub ship_bytes_per_s: Option<u64>,
    /// The audit; null if it is off.
    pub audit: Option<AuditStatus>,
    /// Cuts that this process made.
    pub cuts: u64,
    /// Moments of the schedule without a cut: the one before took so long, it failed, or the target
    /// lags and there was no room.
    pub ticks_skipped: u64,
    /// How much later than due the newest scheduled cuts were made, in microseconds.
    pub cut_lateness_us: Option<Spread>,
    /// How long guests' writes waited for the newest cuts, in microseconds.
    pub cut_pause_us: Option<Spread>,
    /// The newest cut.
    pub last_cut: Option<CutFigures>,
    /// The newest ship.
    pub last_ship: Option<ShipFigures>,
    /// The disks.
    pub disks: Vec<DiskStatus>,
    /// Where the disks are served: NBD URIs, one per disk.
    pub exports: Vec<String>,
}

/// The audit: production, where nobody wrote, against the newest point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// At most so much of production is read in a second.
    pub bytes_per_s: u64,
    /// How far this pass has come through the disks.
    pub position_bytes: u64,
    /// Bytes of the disks.
    pub total_bytes: u64,
    /// Passes that were completed.
    pub passes: u64,
    /// Bytes that were compared.
    pub bytes_checked: u64,
    /// Pieces of 1 MiB that were left out of a pass, since cuts kept coming in between.
    pub pieces_left_out: u64,
    /// Blocks of 4 KiB that differed. Anything but 0 is alarming.
    pub misses: u64,
    /// The newest of them.
    pub last_miss: Option<AuditMiss>,
    /// Why the last piece could not be compared.
    pub trouble: Option<String>,
}

/// Where production differed from the newest point though nobody had written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditMiss {
    /// The disk.
    pub disk: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// The point that it was compared with.
    pub point: String,
    /// When it was found, in nanoseconds since 1970 UTC.
    pub at_unix_ns: u64,
}

/// The first copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedStatus {
    /// Whether it is complete.
    pub complete: bool,
    /// Bytes of the disks that are behind it.
    pub done_bytes: u64,
    /// Bytes of the disks.
    pub total_bytes: u64,
    /// Bytes that this process read from production for it; holes cost nothing.
    pub read_bytes: u64,
}

/// A step that fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// Which step: `cut`, `open-target`, `seed`, `ship`, `copy`, `hook` or `ledger`.
    pub step: String,
    /// Why, with the causes.
    pub error: String,
    /// Seconds since it first failed.
    pub since_s: f64,
    /// How often it failed.
    pub attempts: u64,
}

/// How a figure was spread over the newest 1024 cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// How many there were.
    pub count: u64,
    /// The smallest.
    pub min: u64,
    /// Half of them were no larger.
    pub p50: u64,
    /// 99 of 100 were no larger.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

/// A cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutFigures {
    /// The generation that it sealed.
    pub generation: u64,
    /// When, in nanoseconds since 1970 UTC.
    pub at_unix_ns: u64,
    /// How long guests' writes waited, in microseconds.
    pub pause_us: u64,
    /// Bytes written in it, in whole 4 KiB granules.
    pub dirty_bytes: u64,
    /// The state of the guests.
    pub consistency: Consistency,
}

/// In which state a cut caught the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As a power cut at that instant would have.
    Crash,
    /// The hook before the cut had made them quiet.
    Application,
}

impl From<splitter::Consistency> for Consistency {
    fn from(of_cut: splitter::Consistency) -> Self {
        match of_cut {
            splitter::Consistency::Crash => Self::Crash,
            splitter::Consistency::Application => Self::Application,
        }
    }
}

/// A ship.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShipFigures {
    /// The point.
    pub point: String,
    /// Bytes that its diffs held.
    pub changed_bytes: u64,
    /// Bytes that it added to the target.
    pub stored_bytes: u64,
    /// From the start of the ship until the point was durable, in microseconds.
    pub took_us: u64,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes written in the open generation.
    pub dirty_bytes: u64,
    /// Bytes whose copy is missing or in the making.
    pub stale_bytes: u64,
    /// What production is.
    pub production: String,
}

/// `POST /v1/groups/{name}/cut`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutRequest {
    /// Labels of the point.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether to answer only when the point is durable on the target.
    #[serde(default)]
    pub wait: bool,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutReply {
    /// The group.
    pub group: String,
    /// The cut.
    #[serde(flatten)]
    pub cut: CutFigures,
    /// The point's id, if it was waited for.
    pub point: Option<String>,
}
