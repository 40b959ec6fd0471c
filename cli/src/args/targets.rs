//! The targets that a command line names, so that what opens them is told to all of them in one place.

use agent::Target;

use super::{Command, KeyCommand, PointCommand, RetentionCommand, StoreCommand};

impl Command {
    /// The target that is opened with a key, if it needs one; `None` if the command has none.
    pub(crate) fn target(&mut self) -> Option<&mut Target> {
        Some(match self {
            Self::Protect(args) => &mut args.target,
            Self::Point(args) => of_point(&mut args.command),
            Self::Store(args) => of_store(&mut args.command),
            Self::Retention(args) => match &mut args.command {
                RetentionCommand::Preview(asked) | RetentionCommand::Apply { asked, .. } => {
                    &mut asked.target
                }
            },
            Self::Import(args) => &mut args.target,
            Self::Restore(args) => &mut args.target,
            Self::Serve(args) => &mut args.target,
            // What is encrypted travels as it is: replication opens nothing.
            Self::Replicate(_) => return None,
            Self::Cut(_)
            | Self::Status(_)
            | Self::Gaps(_)
            | Self::Target(_)
            | Self::Vault(_)
            | Self::Token(_)
            | Self::Demo(_) => return None,
        })
    }
}

fn of_point(command: &mut PointCommand) -> &mut Target {
    match command {
        PointCommand::List { target, .. }
        | PointCommand::Show { target, .. }
        | PointCommand::Verify { target, .. }
        | PointCommand::Delete { target, .. }
        | PointCommand::Undelete { target, .. }
        | PointCommand::Hold { target, .. }
        | PointCommand::Lock { target, .. }
        | PointCommand::Diff { target, .. } => target,
    }
}

fn of_store(command: &mut StoreCommand) -> &mut Target {
    match command {
        StoreCommand::Init { target, .. }
        | StoreCommand::Status { target }
        | StoreCommand::Explain { target, .. }
        | StoreCommand::Gc { target, .. }
        | StoreCommand::Scrub { target, .. }
        | StoreCommand::Check { target, .. }
        | StoreCommand::Repair { target, .. }
        | StoreCommand::DropSeed { target, .. }
        | StoreCommand::RebuildIndex { target, .. } => target,
        StoreCommand::Key(key) => match &mut key.command {
            KeyCommand::List { target }
            | KeyCommand::Add { target, .. }
            | KeyCommand::Remove { target, .. } => target,
        },
    }
}
