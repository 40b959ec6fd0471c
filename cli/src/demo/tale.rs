//! What was proved, and the figures.

use serde::Serialize;

use crate::units;

/// The answer of the demo.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tale {
    /// What everything random followed from.
    pub(crate) seed: u64,
    /// The disk.
    pub(crate) disk: String,
    /// Claims that were checked and hold.
    pub(crate) proved: Vec<String>,
    /// Figures.
    pub(crate) figures: Figures,
    /// Seconds for all of it.
    pub(crate) took_s: f64,
}

/// Figures of one run: on a shared machine, an order of magnitude.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) disk_bytes: u64,
    pub(crate) seed_read_bytes: u64,
    pub(crate) seed_s: f64,
    pub(crate) guest_writes: u64,
    pub(crate) cuts: u64,
    pub(crate) cut_pause_us_median: u64,
    pub(crate) cut_pause_us_max: u64,
    pub(crate) cut_to_durable_ms_median: f64,
    pub(crate) cut_to_durable_ms_max: f64,
    pub(crate) changed_bytes: u64,
    pub(crate) stored_for_changes_bytes: u64,
    pub(crate) target_bytes: u64,
    pub(crate) restore_bytes: u64,
    pub(crate) restore_s: f64,
    pub(crate) verify_bytes: u64,
    pub(crate) verify_s: f64,
    pub(crate) restart_ms: f64,
    pub(crate) reread_bytes: u64,
    pub(crate) dirty_at_kill_bytes: u64,
}

impl Tale {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        let figures = &self.figures;
        let rate = |bytes, seconds| units::rate(bytes, units::seconds(seconds));
        let ms = |ms: f64| units::duration(units::seconds(ms / 1e3));
        let us = |us| units::duration(std::time::Duration::from_micros(us));
        let mut lines = vec![String::new(), "Proved:".to_owned()];
        lines.extend(self.proved.iter().map(|claim| format!("  * {claim}")));
        lines.push(String::new());
        lines.push("Figures of this run:".to_owned());
        let mut say = |what: &str, text: String| lines.push(format!("  {what:<18}{text}"));
        say(
            "first copy",
            format!(
                "{} in {} ({}), while the guest wrote",
                units::bytes(figures.seed_read_bytes),
                units::duration(units::seconds(figures.seed_s)),
                rate(figures.seed_read_bytes, figures.seed_s)
            ),
        );
        say(
            "cut",
            format!(
                "made within {} (median), {} (longest of {}); no write waits for one",
                us(figures.cut_pause_us_median),
                us(figures.cut_pause_us_max),
                figures.cuts
            ),
        );
        say(
            "cut to durable",
            format!(
                "{} (median), {} (longest)",
                ms(figures.cut_to_durable_ms_median),
                ms(figures.cut_to_durable_ms_max)
            ),
        );
        say(
            "changes",
            format!(
                "{} changed, {} stored for them",
                units::bytes(figures.changed_bytes),
                units::bytes(figures.stored_for_changes_bytes)
            ),
        );
        say(
            "target",
            format!(
                "{} for {} points of a disk of {}",
                units::bytes(figures.target_bytes),
                figures.cuts,
                units::bytes(figures.disk_bytes)
            ),
        );
        say(
            "restore",
            format!(
                "{} ({})",
                units::bytes(figures.restore_bytes),
                rate(figures.restore_bytes, figures.restore_s)
            ),
        );
        say(
            "verify",
            format!(
                "{} ({})",
                units::bytes(figures.verify_bytes),
                rate(figures.verify_bytes, figures.verify_s)
            ),
        );
        say(
            "after kill -9",
            format!(
                "served again after {}; {} of production re-read, {} had been written since the cut",
                ms(figures.restart_ms),
                units::bytes(figures.reread_bytes),
                units::bytes(figures.dirty_at_kill_bytes)
            ),
        );
        lines.push(String::new());
        lines.push(format!(
            "All of it in {}.",
            units::duration(units::seconds(self.took_s))
        ));
        lines.join("\n")
    }
}
