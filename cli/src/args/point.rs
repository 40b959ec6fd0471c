//! Options of `standin point`.

use agent::Target;
use block::Name;
use clap::{Args as ClapArgs, Subcommand};
use store::{PointId, PointRef};

use super::State;
use crate::commands::{Span, Until};

#[derive(Debug, ClapArgs)]
pub(crate) struct Point {
    #[command(subcommand)]
    pub(crate) command: PointCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// The points on a target, oldest first.
    List {
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
        /// Only those of this group.
        #[arg(long, value_name = "NAME")]
        group: Option<Name>,
    },
    /// One point.
    Show {
        /// GROUP@NUMBER or GROUP@latest.
        point: PointRef,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
    },
    /// Read and check every byte of a point.
    Verify {
        /// GROUP@NUMBER or GROUP@latest.
        #[arg(conflicts_with = "all")]
        point: Option<PointRef>,
        /// Every point on the target.
        #[arg(long)]
        all: bool,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
    },
    /// Take points off the list. For a while they can be brought back; then a collection of garbage frees what only they
    /// needed.
    Delete {
        /// GROUP@NUMBER.
        #[arg(required = true)]
        points: Vec<PointId>,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
        /// How long they can be brought back.
        #[arg(long, value_name = "TIME", default_value = "1d")]
        delay: Span,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
        /// Also the newest point of a group, which the next one builds on.
        #[arg(long)]
        even_newest: bool,
        #[command(flatten)]
        state: State,
    },
    /// Bring a deleted point back.
    Undelete {
        /// GROUP@NUMBER.
        point: PointId,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
        #[command(flatten)]
        state: State,
    },
    /// Hold a point: nothing removes it until the hold is lifted.
    Hold {
        /// GROUP@NUMBER or GROUP@latest.
        point: PointRef,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
        /// Why.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Lift the hold.
        #[arg(long)]
        lift: bool,
        #[command(flatten)]
        state: State,
    },
    /// Lock a point: nothing removes it before that time, and nothing shortens the lock.
    Lock {
        /// GROUP@NUMBER or GROUP@latest.
        point: PointRef,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
        /// Until when: a time as in 2027-01-31T00:00:00Z, or for how long from now, as in 30d.
        #[arg(long = "until", value_name = "TIME")]
        until: Until,
        #[command(flatten)]
        state: State,
    },
    /// The ranges in which two points differ, from the trees alone.
    Diff {
        /// GROUP@NUMBER or GROUP@latest.
        a: PointRef,
        /// GROUP@NUMBER or GROUP@latest.
        b: PointRef,
        /// The target: dir:PATH, s3://BUCKET/PREFIX or https://HOST:PORT/VAULT.
        #[arg(long, value_name = "URL")]
        target: Target,
    },
}
