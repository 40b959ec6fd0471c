//! Runs of granules in one state.

use block::GranuleRange;

/// Granules of a sealed diff that lie side by side and are held in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which granules.
    pub granules: GranuleRange,
    /// How the diff holds them.
    pub content: RunContent,
}

/// How a diff holds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunContent {
    /// As bytes in the diff file.
    Data,
    /// As a mark that they are all zero.
    Zero,
}

/// What a dirty map knows of a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GranuleState {
    /// Not written in this generation.
    Clean,
    /// Written; the diff may not hold what production holds.
    Stale,
    /// Written; all zero.
    Zero,
    /// Written; the diff file holds it whole.
    Data,
}

/// Granules side by side in one state other than clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRun {
    pub(crate) granules: GranuleRange,
    pub(crate) state: GranuleState,
}
