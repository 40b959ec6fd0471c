//! Serve: a point's disks over NBD, at once, without restoring them.
//!
//! Rule: the point is never written. With `writable`, changes go to a file that has no name and goes
//! with the process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, Clock, Dir, File, OsDir, Overlay};
use export::{Export, Exports, Listen, LocalAddress, Server, ServerOptions, TlsPolicy};
use store::{PointRecord, PointRef};

use crate::points::Points;
use crate::{Error, Result, Target};

/// How long requests in flight may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// What to serve, and where.
pub struct ServeOptions {
    /// The point.
    pub point: PointRef,
    /// Where it is.
    pub target: Target,
    /// Where it is served.
    pub listen: Vec<Listen>,
    /// How.
    pub server: ServerOptions,
    /// Where changes go, if clients may write.
    pub overlay_dir: Option<PathBuf>,
}

/// A point that is being served.
pub struct Served {
    server: Server,
    point: Arc<PointRecord>,
    exports: Vec<String>,
}

impl Served {
    /// Serves a point. Clients can connect when this returns.
    ///
    /// # Errors
    /// If the point cannot be opened, or nobody can listen there.
    pub fn start(options: ServeOptions, clock: &Arc<dyn Clock>) -> Result<Self> {
        let points = Points::open(&options.target, clock)?;
        points.check_key()?;
        let point = points.find(&options.point)?;
        let exports = Exports::new();
        for disk in &point.disks {
            let image: Arc<dyn BlockDevice> = Arc::new(points.image(disk)?);
            let device = match &options.overlay_dir {
                None => image,
                Some(dir) => overlay(image, dir)?,
            };
            let export = Export {
                name: disk.name.to_string(),
                description: format!("disk {} of {}", disk.name, point.id),
                device,
                bitmaps: Vec::new(),
                multi_conn: true,
            };
            let added = exports.add(export);
            added
                .map_err(|error| Error::usage(error.to_string(), "this point cannot be served"))?;
        }
        let names: Vec<_> = point
            .disks
            .iter()
            .map(|disk| disk.name.to_string())
            .collect();
        if let [only] = names.as_slice() {
            exports.set_default(Some(only.clone()));
        }
        let tls = is_required(&options.server.tls);
        let server = Server::start(&options.listen, exports, options.server)?;
        let exports = uris(&server.local_addresses(), &names, tls);
        Ok(Self {
            server,
            point,
            exports,
        })
    }

    /// The point.
    #[must_use]
    pub fn point(&self) -> &PointRecord {
        &self.point
    }

    /// NBD URIs of the disks.
    #[must_use]
    pub fn exports(&self) -> &[String] {
        &self.exports
    }

    /// Lets requests in flight end, and stops.
    pub fn stop(self) {
        self.server.drain(DRAIN);
    }
}

fn overlay(image: Arc<dyn BlockDevice>, dir: &PathBuf) -> Result<Arc<dyn BlockDevice>> {
    let made = unnamed_file(dir).and_then(|file| Overlay::new(image, file));
    let made = made.map_err(Error::file("make a file for changes in", dir))?;
    Ok(Arc::new(made))
}

/// A file that vanishes with its last user, however that ends.
fn unnamed_file(dir: &PathBuf) -> std::io::Result<Arc<dyn File>> {
    let dir = OsDir::open(dir)?;
    let name = format!(".standin-overlay-{}", uuid::Uuid::new_v4());
    let file = dir.create(&name)?;
    dir.remove(&name)?;
    Ok(file)
}

pub(crate) fn is_required(tls: &TlsPolicy) -> bool {
    matches!(tls, TlsPolicy::Required(_))
}

/// One URI per place and export; `nbds:` where nobody gets in without TLS.
pub(crate) fn uris(places: &[LocalAddress], exports: &[String], tls: bool) -> Vec<String> {
    let uri = |place: &LocalAddress, export: &String| {
        let uri = place.uri(export);
        if tls {
            uri.replacen("nbd", "nbds", 1)
        } else {
            uri
        }
    };
    let at = |place| exports.iter().map(move |export| uri(place, export));
    places.iter().flat_map(at).collect()
}
