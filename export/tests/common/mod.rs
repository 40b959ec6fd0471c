//! What the tests of the server share: a device, a server on it, and a client that can misbehave.

#![allow(dead_code, reason = "each test file uses its part of it")]

pub(crate) mod client;
pub(crate) mod gate;
pub(crate) mod memory;
pub(crate) mod tool;

use std::path::PathBuf;
use std::sync::Arc;

use block::{BlockDevice, DirtyBitmap};
use export::{Export, Exports, Listen, Server, ServerOptions};

use client::Client;
use gate::GatedDevice;

/// A server on a Unix socket with one export, `disk`, also the default.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) exports: Exports,
    pub(crate) path: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) const SIZE: u64 = 64 << 20;

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(ServerOptions::default()).0
    }

    /// The server, and its device.
    pub(crate) fn with(options: ServerOptions) -> (Self, Arc<GatedDevice>) {
        let device = Arc::new(GatedDevice::new(SIZE));
        let bitmaps: Vec<(String, Arc<dyn DirtyBitmap>)> =
            vec![("written".to_owned(), device.clone())];
        (Self::serve(device.clone(), bitmaps, options), device)
    }

    /// A disk without traps.
    pub(crate) fn plain(size: u64, options: ServerOptions) -> Self {
        let device = Arc::new(memory::MemoryDevice::new(size));
        let bitmaps: Vec<(String, Arc<dyn DirtyBitmap>)> =
            vec![("written".to_owned(), device.clone())];
        Self::serve(device, bitmaps, options)
    }

    /// The URI of the default export.
    pub(crate) fn uri(&self) -> String {
        self.server.local_addresses()[0].uri("")
    }

    pub(crate) fn read_only() -> Self {
        let device = Arc::new(memory::MemoryDevice::read_only(SIZE));
        Self::serve(device, Vec::new(), ServerOptions::default())
    }

    fn serve(
        device: Arc<dyn BlockDevice>,
        bitmaps: Vec<(String, Arc<dyn DirtyBitmap>)>,
        options: ServerOptions,
    ) -> Self {
        let exports = Exports::new();
        let export = Export {
            name: "disk".to_owned(),
            description: "of tests".to_owned(),
            device,
            bitmaps,
            multi_conn: true,
        };
        exports.add(export).expect("the first");
        exports.set_default(Some("disk".to_owned()));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd");
        let listen = [Listen::Unix(path.clone())];
        let server = Server::start(&listen, exports.clone(), options).expect("free");
        Self {
            server,
            exports,
            path,
            dir,
        }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.path)
    }
}
