//! `plain_export [--direct] DISK... LISTEN...`: serves disks with our NBD server and without a splitter, until it
//! is killed. The yardstick of `bench/cost.sh` for what stage one costs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use block::{Access, Caching, open_production_with};
use export::{Export, Exports, Listen, Server, ServerOptions};

fn main() -> Result<()> {
    let is_address = |arg: &String| arg.parse::<Listen>().is_ok();
    let (listen, mut disks): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(is_address);
    let caching = if disks.first().is_some_and(|arg| arg == "--direct") {
        disks.remove(0);
        Caching::Direct
    } else {
        Caching::Buffered
    };
    let listen: Vec<Listen> = listen
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let exports = Exports::new();
    for disk in &disks {
        let production = open_production_with(Path::new(disk), Access::ReadWrite, caching)?;
        let name = Path::new(disk).file_stem().and_then(|stem| stem.to_str());
        exports.add(Export {
            name: name.context("a disk has a name")?.to_owned(),
            description: production.description.clone(),
            device: Arc::clone(&production.device),
            bitmaps: Vec::new(),
            multi_conn: true,
        })?;
    }
    let first = disks
        .first()
        .context("usage: plain_export [--direct] DISK... LISTEN...")?;
    let name = Path::new(first).file_stem().and_then(|stem| stem.to_str());
    exports.set_default(name.map(str::to_owned));
    let _server = Server::start(&listen, exports, ServerOptions::default())?;
    loop {
        std::thread::park();
    }
}
