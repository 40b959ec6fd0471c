//! `standin vault create`, `set-quota`, `list`, `show`.

use anyhow::Result;
use block::UnixNanos;
use dd_target::api::{NewVault, Vault, VaultFigures};
use dd_target::client::{Access, Remote, ServerUrl};
use serde_json::json;

use crate::args::{VaultArgs, VaultCommand};
use crate::commands::store::seed_line;
use crate::printer::{Printer, table};
use crate::units;

pub(crate) fn vault(args: VaultArgs, printer: &Printer) -> Result<()> {
    match args.command {
        VaultCommand::Create {
            vault,
            server,
            quota,
        } => {
            let made = open(&server)?.create_vault(&NewVault {
                name: vault.to_string(),
                quota_bytes: quota.map(agent::ByteLimit::bytes),
            })?;
            printer.answer(&made, || format!("made; its target is {server}/{vault}"));
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
        "{}: {} points, {} stored ({} chunks), quota {}\ngarbage that waits in quarantine: {}\n{}{}",
        figures.vault.name,
        figures.points,
        units::bytes(figures.stored_bytes),
        figures.chunks,
        quota(&figures.vault),
        units::bytes(figures.quarantined_bytes),
        table(&rows),
        seeds.collect::<String>()
    )
}
