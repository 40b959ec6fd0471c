//! A failure as it is told to another process, with what can be done about it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store::StoreError;

/// What a caller can do about a failure. `standin` exits with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It failed; the message says why.
    Failed,
    /// What was asked for makes no sense: ask differently.
    Usage,
    /// Somebody else has taken over: stop.
    Fenced,
    /// Not now: try again.
    Retry,
    /// Stored data is damaged.
    Damaged,
}

/// A failure as the APIs tell it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What failed, with its causes.
    pub error: String,
    /// What a caller can do.
    pub kind: Kind,
    /// What a person can do.
    pub hint: Option<String>,
}

impl Kind {
    /// What a caller can do about a failure of the store.
    #[must_use]
    pub fn of_store(error: &StoreError) -> Self {
        match error.kind() {
            store::ErrorKind::Retry => Self::Retry,
            store::ErrorKind::Fenced => Self::Fenced,
            store::ErrorKind::Corrupt => Self::Damaged,
            _ => Self::Failed,
        }
    }
}

/// An error with its causes, in one line; causes that the text names already are left out.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Fenced => "fenced",
            Self::Retry => "retry",
            Self::Damaged => "damaged",
        })
    }
}
