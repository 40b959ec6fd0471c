//! How a command ends.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | usage |
//! | 3 | fenced: somebody else has taken over |
//! | 4 | try again |
//! | 5 | stored data is damaged |

use std::process::ExitCode;

use agent::{Kind, Problem};
use dd_target::client::RemoteError;

use crate::printer::Printer;

/// Tells an error, and what to exit with.
pub(crate) fn code(done: anyhow::Result<()>, printer: &Printer) -> ExitCode {
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    let problem = problem(&error);
    printer.error(&problem);
    ExitCode::from(number(problem.kind))
}

fn problem(error: &anyhow::Error) -> Problem {
    let (kind, hint) = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(known), _) => (agent::Error::kind(known), agent::Error::hint(known)),
        (_, Some(known)) => (RemoteError::kind(known), RemoteError::hint(known)),
        _ => (Kind::Failed, None),
    };
    let error = agent::chain(error.as_ref());
    Problem { error, kind, hint }
}

fn number(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::Fenced => 3,
        Kind::Retry => 4,
        Kind::Damaged => 5,
    }
}
