//! `plain_export DISK LISTEN...`: serves a disk with our NBD server and without a splitter, until it
//! is killed. The yardstick of `bench/cost.sh` for what stage one costs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use block::{Access, open_production};
use export::{Export, Exports, Listen, Server, ServerOptions};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().context("usage: plain_export DISK LISTEN...")?);
    let listen = args
        .map(|text| text.parse())
        .collect::<Result<Vec<Listen>, _>>()?;
    let production = open_production(&path, Access::ReadWrite)?;
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .context("a disk has a name")?;
    let exports = Exports::new();
    exports.add(Export {
        name: name.to_owned(),
        description: production.description.clone(),
        device: Arc::clone(&production.device),
        bitmaps: Vec::new(),
        multi_conn: true,
    })?;
    exports.set_default(Some(name.to_owned()));
    let _server = Server::start(&listen, exports, ServerOptions::default())?;
    loop {
        std::thread::park();
    }
}
