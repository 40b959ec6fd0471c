//! `standin protect`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use agent::{
    Error, HookOptions, KeepOptions, Limits, ProtectOptions, Protection, Rate, Result, disk_name,
};
use block::Caching;
use serde_json::json;

use crate::args::Protect;
use crate::commands::world;
use crate::listening::server_options;
use crate::printer::Printer;
use crate::progress::Bar;
use crate::signals::Ending;

/// How often the bar of the seed moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn protect(args: Protect, printer: &Printer) -> Result<()> {
    let signals = |source| Error::File {
        doing: "wait for signals in",
        path: "/proc/self".into(),
        source,
    };
    let mut ending = Ending::new().map_err(signals)?;
    let group = match args.group {
        Some(group) => group,
        None => disk_name(&args.disks[0])?,
    };
    let options = ProtectOptions {
        server: server_options(&args.tls, &args.listen)?,
        group: group.clone(),
        disks: args.disks,
        target: args.target,
        listen: args.listen,
        every: args.every,
        caching: if args.direct {
            Caching::Direct
        } else {
            Caching::Buffered
        },
        hooks: HookOptions {
            before: args.before_cut,
            after: args.after_cut,
            timeout: args.hook_timeout.unwrap_or_default(),
        },
        audit_rate: args.audit_rate.0,
        ship_rate: args.ship_rate.and_then(|limit| limit.0),
        limits: Limits {
            diff_bytes: args.diff_space,
            diff_latency: args.diff_latency.0,
            memory_bytes: args.memory,
        },
        keep: KeepOptions {
            rules: args.keep.rules(),
            delay: args.keep_delay.0,
            every: Some(args.upkeep_every.0).filter(|every| !every.is_zero()),
            quarantine: args.quarantine.0,
            scrub_every: Some(args.scrub_every.0).filter(|every| !every.is_zero()),
            rate: args.upkeep_rate.0.map_or(u64::MAX, Rate::bytes_per_s),
        },
        state: args.state.root(),
        diff_dir: args.diff_dir,
    };
    let protection = Protection::start(options, world()?)?;
    for uri in protection.exports() {
        let event = json!({ "event": "listening", "group": group.as_str(), "uri": uri });
        printer.event(&event, || format!("listening on {uri}"));
    }
    let (over, bar) = (AtomicBool::new(false), Bar::new(printer, "seed"));
    thread::scope(|scope| {
        if printer.is_watched() {
            scope.spawn(|| show_seed(&protection, &over, &bar));
        }
        ending.wait();
        over.store(true, Ordering::Relaxed);
    });
    printer.talk(
        "stopping: the last cut is made and shipped; a second signal leaves it to the next start",
    );
    let abandon = protection.abandon();
    ending.on_next(move || abandon.now());
    let newest = protection.stop()?;
    let event = json!({ "event": "stopped", "group": group.as_str(), "point": newest });
    printer.event(&event, || match &newest {
        Some(point) => format!("stopped; the newest point is {point}"),
        None => {
            "stopped; there is no point yet, and the first copy goes on at the next start".into()
        }
    });
    Ok(())
}

/// Moves the bar until the first copy is complete.
fn show_seed(protection: &Protection, over: &AtomicBool, bar: &Bar) {
    while !over.load(Ordering::Relaxed) {
        let seed = protection.status().seed;
        if seed.complete {
            break;
        }
        bar.tell(seed.done_bytes, seed.total_bytes);
        thread::park_timeout(BAR_INTERVAL);
    }
    bar.finish();
}
