//! `standin serve`.

use std::path::PathBuf;

use agent::{Error, Result, ServeOptions, Served};
use serde_json::json;

use crate::args::Serve;
use crate::commands::world;
use crate::listening::server_options;
use crate::printer::Printer;
use crate::signals::Ending;

pub(crate) fn serve(args: Serve, printer: &Printer) -> Result<()> {
    let mut ending = Ending::new().map_err(|source| Error::File {
        doing: "wait for signals in",
        path: "/proc/self".into(),
        source,
    })?;
    let overlay_dir = args
        .writable
        .then(|| args.overlay_dir.unwrap_or_else(scratch_dir));
    let options = ServeOptions {
        point: args.point,
        target: args.target,
        server: server_options(&args.tls, &args.listen)?,
        listen: args.listen,
        overlay_dir,
    };
    let served = Served::start(options, &world()?.clock)?;
    let point = served.point().id.to_string();
    for uri in served.exports() {
        let event = json!({
            "event": "listening",
            "point": point,
            "writable": args.writable,
            "uri": uri,
        });
        let how = if args.writable {
            "writable, changes are thrown away"
        } else {
            "read-only"
        };
        printer.event(&event, || format!("serving {point} ({how}) on {uri}"));
    }
    ending.wait();
    served.stop();
    Ok(())
}

/// Where throw-away files go: on a disk rather than in memory.
pub(crate) fn scratch_dir() -> PathBuf {
    let chosen = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    chosen.map_or_else(|| "/var/tmp".into(), PathBuf::from)
}
