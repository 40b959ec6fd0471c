//! Serves a disk in memory, or a raw file, over NBD: what the tests with real peers run against,
//! and the plain export that a protected one is measured beside.
//!
//! ```text
//! serve_memory [--listen ADDRESS]... [--size MIB] [--file PATH] [--name NAME] [--read-only]
//!              [--tls-cert CERT --tls-key KEY [--tls-ca CA] | --psk FILE] [--tls-offered]
//! ```
//!
//! Ends, draining, when its standard input does. Prints one URI per address, then nothing.

#![allow(clippy::print_stdout, reason = "the URIs are its output")]

#[path = "../tests/common/memory.rs"]
mod memory;

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use block::BlockDevice;
use export::{
    CertificateFiles, Export, Exports, Listen, Server, ServerOptions, TlsConfig, TlsPolicy,
};

use memory::MemoryDevice;

/// `--flag` or `--key value`, the last one counting, `--listen` all of them.
struct Arguments {
    listen: Vec<Listen>,
    values: HashMap<String, String>,
}

impl Arguments {
    const FLAGS: [&str; 2] = ["--read-only", "--tls-offered"];

    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut words = std::env::args().skip(1);
        let mut parsed = Self {
            listen: Vec::new(),
            values: HashMap::new(),
        };
        while let Some(word) = words.next() {
            if Self::FLAGS.contains(&word.as_str()) {
                parsed.values.insert(word, String::new());
                continue;
            }
            let value = words.next().ok_or(format!("{word} wants a value"))?;
            if word == "--listen" {
                parsed.listen.push(value.parse()?);
            } else {
                parsed.values.insert(word, value);
            }
        }
        if parsed.listen.is_empty() {
            parsed
                .listen
                .push(Listen::Tcp("127.0.0.1:10809".to_owned()));
        }
        Ok(parsed)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    fn tls(&self) -> Result<TlsPolicy, Box<dyn Error>> {
        let config = if let Some(file) = self.path("--psk") {
            TlsConfig::psk(&file)?
        } else if let Some(certificate) = self.path("--tls-cert") {
            TlsConfig::certificates(&CertificateFiles {
                certificate,
                key: self.path("--tls-key").ok_or("--tls-cert wants --tls-key")?,
                client_authority: self.path("--tls-ca"),
            })?
        } else {
            return Ok(TlsPolicy::Off);
        };
        Ok(match self.value("--tls-offered") {
            Some(_) => TlsPolicy::Offered(config),
            None => TlsPolicy::Required(config),
        })
    }

    fn exports(&self) -> Result<Exports, Box<dyn Error>> {
        let size = self.value("--size").unwrap_or("256").parse::<u64>()? << 20;
        let name = self.value("--name").unwrap_or("disk").to_owned();
        let mut bitmaps: Vec<(String, Arc<dyn block::DirtyBitmap>)> = Vec::new();
        let device: Arc<dyn BlockDevice> = if let Some(path) = self.path("--file") {
            block::open_production(&path, block::Access::ReadWrite)?.device
        } else if self.value("--read-only").is_some() {
            Arc::new(MemoryDevice::read_only(size))
        } else {
            let memory = Arc::new(MemoryDevice::new(size));
            bitmaps.push(("written".to_owned(), memory.clone()));
            memory
        };
        let exports = Exports::new();
        exports.add(Export {
            name: name.clone(),
            description: "a disk for tests".to_owned(),
            device,
            bitmaps,
            multi_conn: true,
        })?;
        exports.set_default(Some(name));
        Ok(exports)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let options = ServerOptions {
        tls: arguments.tls()?,
        ..ServerOptions::default()
    };
    let server = Server::start(&arguments.listen, arguments.exports()?, options)?;
    for address in server.local_addresses() {
        println!("{}", address.uri(""));
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.drain(Duration::from_secs(5));
    Ok(())
}
