//! `standin vault create`, `set-quota`, `list`, `show`.

use agent::{Error, RecoveryKey};
use anyhow::Result;
use block::UnixNanos;
use dd_target::api::{NewVault, Vault, VaultFigures};
use dd_target::client::{Access, Remote, ServerUrl, VaultUrl};
use serde_json::json;
use store::NewKeys;

use crate::args::{Sealed, Secret, VaultArgs, VaultCommand};
use crate::commands::key::{recovery_lines, untold};
use crate::commands::store::seed_line;
use crate::commands::world;
use crate::printer::{Printer, table};
use crate::units;

pub(crate) fn vault(args: VaultArgs, secret: &Secret, printer: &Printer) -> Result<()> {
    match args.command {
        VaultCommand::Create {
            vault,
            server,
            quota,
            sealed,
        } => {
            let quota = quota.map(agent::ByteLimit::bytes);
            create(&VaultUrl { server, vault }, quota, &sealed, secret, printer)?;
        }
        VaultCommand::SetQuota {
            vault,
            server,
            quota: asked,
        } => {
            let asked = asked.map(agent::ByteLimit::bytes);
            let set = open(&server)?.set_quota(&vault, asked)?;
            printer.answer(&set, || format!("{vault} has the quota {}", quota(&set)));
        }
        VaultCommand::List { server } => {
            let vaults = open(&server)?.vaults()?;
            printer.answer(&json!({ "vaults": vaults }), || listed(&vaults));
        }
        VaultCommand::Show { vault, server } => {
            let figures = open(&server)?.vault(&vault)?;
            printer.answer(&figures, || shown(&figures));
        }
    }
    Ok(())
}

fn create(
    url: &VaultUrl,
    quota: Option<u64>,
    sealed: &Sealed,
    secret: &Secret,
    printer: &Printer,
) -> Result<()> {
    if sealed.encrypt {
        check_new(url)?;
    }
    let (keys, recovery) = keys(sealed, secret)?;
    let made = match &keys {
        Some(keys) => agent::create_encrypted_vault(url, quota, keys)?,
        None => open(&url.server)?.create_vault(&NewVault {
            name: url.vault.to_string(),
            quota_bytes: quota,
            keys: None,
        })?,
    };
    let mut document = serde_json::to_value(&made)?;
    document["recovery_key"] = recovery.as_deref().map(String::as_str).into();
    let told = printer.answer_surely(&document, || {
        let how = if made.encrypted { ", encrypted" } else { "" };
        let mut lines = vec![format!("made{how}; its target is {url}")];
        lines.extend(recovery.as_ref().map(recovery_lines));
        lines.join("\n")
    });
    Ok(told.map_err(untold)?)
}

/// Before a key file is made that would open nothing.
fn check_new(url: &VaultUrl) -> Result<()> {
    let known = open(&url.server)?.vaults()?;
    match known.iter().any(|vault| vault.name == url.vault.as_str()) {
        false => Ok(()),
        true => Err(Error::Usage {
            what: format!("there is a vault `{url}` already; no key was made"),
            hint: "`standin vault show` says what it holds; give the new one another name",
        }
        .into()),
    }
}

/// Of a vault that is to be encrypted, and its recovery key if one is wanted.
fn keys(sealed: &Sealed, secret: &Secret) -> Result<(Option<NewKeys>, Option<RecoveryKey>)> {
    if let Some(like) = &sealed.like {
        return Ok((Some(agent::keys_like(like)?), None));
    }
    let file = secret.file()?;
    if sealed.encrypt {
        let clock = world()?.clock;
        let (keys, recovery) = agent::new_keys(file.as_ref(), !sealed.no_recovery_key, &clock)?;
        return Ok((Some(keys), recovery));
    }
    if file.is_some() {
        return Err(Error::Usage {
            what: "a key is named for a vault that would not be encrypted with it".to_owned(),
            hint: "add --encrypt, or leave the key out (STANDIN_KEY_FILE and STANDIN_PASSPHRASE_FILE, too)",
        }
        .into());
    }
    Ok((None, None))
}

fn open(server: &ServerUrl) -> Result<Remote> {
    Ok(Remote::open(server, &Access::of_this_process())?)
}

fn quota(vault: &Vault) -> String {
    vault.quota_bytes.map_or("-".to_owned(), units::bytes)
}

fn listed(vaults: &[Vault]) -> String {
    let mut rows = vec![["VAULT", "QUOTA", "MADE"].map(str::to_owned).to_vec()];
    rows.extend(vaults.iter().map(|vault| {
        let made = units::local_time(UnixNanos(vault.created_unix_ns));
        vec![vault.name.clone(), quota(vault), made]
    }));
    table(&rows)
}

fn shown(figures: &VaultFigures) -> String {
    let mut rows = vec![["GROUP", "POINTS", "NEWEST"].map(str::to_owned).to_vec()];
    rows.extend(figures.groups.iter().map(|group| {
        let newest = units::local_time(UnixNanos(group.newest_unix_ns));
        vec![group.group.clone(), group.points.to_string(), newest]
    }));
    let seeds = figures.seeds.iter().map(seed_line);
    let seeds = seeds.map(|line| format!("\nfirst copy under way: {line}"));
    format!(
        "{}: {} points, {} stored ({} chunks), quota {}{}\ngarbage that waits in quarantine: {}\n{}{}",
        figures.vault.name,
        figures.points,
        units::bytes(figures.stored_bytes),
        figures.chunks,
        quota(&figures.vault),
        if figures.encrypted { ", encrypted" } else { "" },
        units::bytes(figures.quarantined_bytes),
        table(&rows),
        seeds.collect::<String>()
    )
}
