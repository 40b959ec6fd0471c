//! Whether the server lives, whether it takes work, and what it counts.

use std::fmt::Write;
use std::time::Duration;

use axum::extract::State;
use block::UnixNanos;

use crate::server::refusal::{Answer, Refusal};
use crate::server::vaults::Hangs;
use crate::server::{Inner, Shared, blocking};

/// How long one vault is waited for, and all together.
const VAULT_MAX: Duration = Duration::from_millis(200);
const ALL_VAULTS_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn alive() -> &'static str {
    "alive\n"
}

pub(crate) async fn ready(State(shared): State<Shared>) -> Answer<&'static str> {
    match shared.is_ending() {
        true => Err(Refusal::ending()),
        false => Ok("ready\n"),
    }
}

/// In the text format of Prometheus.
pub(crate) async fn metrics(State(shared): State<Shared>) -> Answer<String> {
    blocking(move || Ok(told(&shared))).await
}

fn told(shared: &Inner) -> String {
    let mut out = String::new();
    shared.figures.tell(&mut out);
    let (drafts, held) = (shared.drafts.count(), shared.drafts.held_bytes());
    let now = shared.clock.wall();
    let mut ages = String::new();
    let mut bytes = String::new();
    let begun = shared.clock.monotonic();
    let mut answering = String::new();
    // A vault that nobody has used yet is not opened for its figures. One that hangs is waited for a little, many are not for much longer.
    for vault in shared.vaults.all() {
        let waited = shared.clock.monotonic().saturating_sub(begun);
        let most = ALL_VAULTS_MAX.saturating_sub(waited).min(VAULT_MAX);
        let answers = match vault.store_at_hand(most) {
            Ok(None) => continue,
            Ok(Some(store)) => Some(vault.figures_of(&store)),
            Err(Hangs) => None,
        };
        let (name, is_there) = (&vault.name, u8::from(answers.is_some()));
        // Writing to a text does not fail.
        let _ = writeln!(
            answering,
            "standin_target_vault_answers{{vault=\"{name}\"}} {is_there}"
        );
        let Some(figures) = answers else { continue };
        let _ = writeln!(
            bytes,
            "standin_target_stored_bytes{{vault=\"{name}\"}} {}",
            figures.stored_bytes
        );
        for group in &figures.groups {
            let age = now.since(UnixNanos(group.newest_unix_ns)).as_secs();
            let group = &group.group;
            let _ = writeln!(
                ages,
                "standin_target_point_age_seconds{{vault=\"{name}\",group=\"{group}\"}} {age}"
            );
        }
    }
    let _ = write!(
        out,
        "# HELP standin_target_drafts Images in the making.\n# TYPE standin_target_drafts gauge\nstandin_target_drafts {drafts}\n\
         # HELP standin_target_draft_bytes What they hold in memory.\n# TYPE standin_target_draft_bytes gauge\nstandin_target_draft_bytes {held}\n\
         # HELP standin_target_vault_answers Whether an open vault answers; 0 while it is being opened, or waits for its place.\n# TYPE standin_target_vault_answers gauge\n{answering}\
         # HELP standin_target_stored_bytes What an open vault takes.\n# TYPE standin_target_stored_bytes gauge\n{bytes}\
         # HELP standin_target_point_age_seconds Since the cut of a group's newest point.\n# TYPE standin_target_point_age_seconds gauge\n{ages}"
    );
    out
}
