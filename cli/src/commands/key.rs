//! `standin store key list`, `add`, `remove`, and the making of encrypted stores.

use agent::{Error, RecoveryKey, Result, Target};
use serde_json::json;

use crate::args::{Key, KeyCommand};
use crate::commands::world;
use crate::printer::{Printer, table};
use crate::units;

pub(crate) fn key(args: Key, printer: &Printer) -> Result<()> {
    match args.command {
        KeyCommand::List { target } => list(&target, printer),
        KeyCommand::Add { target, new, label } => {
            let clock = world()?.clock;
            let (number, recovery) = agent::add_key(&target, new.chosen(), label, &clock)?;
            let document = json!({
                "target": target.to_string(),
                "number": number,
                "recovery_key": recovery.as_deref(),
            });
            let told = printer.answer_surely(&document, || {
                let mut lines = vec![format!("way {number} opens {target} from now on")];
                lines.extend(recovery.as_ref().map(recovery_lines));
                lines.join("\n")
            });
            told.map_err(untold)
        }
        KeyCommand::Remove { target, number } => {
            agent::remove_key(&target, number)?;
            let document = json!({ "target": target.to_string(), "number": number });
            printer.answer(&document, || format!("way {number} opens {target} no more"));
            Ok(())
        }
    }
}

/// Makes an encrypted store.
pub(crate) fn init_encrypted(target: &Target, recovery: bool, printer: &Printer) -> Result<()> {
    let recovery = agent::init_encrypted(target, recovery, &world()?.clock)?;
    let document = json!({
        "target": target.to_string(),
        "encrypted": true,
        "recovery_key": recovery.as_deref(),
    });
    let told = printer.answer_surely(&document, || {
        let mut lines = vec![format!("{target} is an empty, encrypted store")];
        lines.extend(recovery.as_ref().map(recovery_lines));
        lines.join("\n")
    });
    told.map_err(untold)
}

/// A recovery key that nobody has is worse than none.
pub(crate) fn untold(source: std::io::Error) -> Error {
    Error::Usage {
        what: format!("the answer, and a recovery key with it, could not be written: {source}"),
        hint: "see `standin store key list`: remove the recovery key that nobody has, and add another one",
    }
}

fn list(target: &Target, printer: &Printer) -> Result<()> {
    let slots = agent::list_keys(target)?;
    let document = json!({
        "target": target.to_string(),
        "ways": slots.iter().map(|slot| json!({
            "number": slot.number,
            "kind": kind(slot.is_passphrase),
            "label": slot.label,
            "made_at": units::rfc3339(slot.made_at),
        })).collect::<Vec<_>>(),
    });
    printer.answer(&document, || {
        let mut rows = vec![
            ["NUMBER", "KIND", "MADE", "LABEL"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(slots.iter().map(|slot| {
            let made = units::local_time(slot.made_at);
            let kind = kind(slot.is_passphrase).to_owned();
            vec![slot.number.to_string(), kind, made, slot.label.clone()]
        }));
        table(&rows)
    });
    Ok(())
}

fn kind(is_passphrase: bool) -> &'static str {
    match is_passphrase {
        true => "passphrase",
        false => "key",
    }
}

pub(crate) fn recovery_lines(key: &RecoveryKey) -> String {
    format!(
        "recovery key, told this once: write it down and lock it away, not on this machine\n  {}",
        key.as_str()
    )
}
