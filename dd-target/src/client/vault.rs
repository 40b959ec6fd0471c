//! A vault, to who adds points to it: the calls of a store's writer, over the network.
//!
//! Rule: what may be lost on the line is asked again; the server lists a point once, however often it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{Name, UnixNanos};
use reqwest::Method;
use store::{Base, ChunkCodec, Consistency, ImageRef, PointRecord, SeedRecord};

use crate::api;
use crate::client::connection::{Ask, Connection};
use crate::client::draft::Draft;
use crate::client::image_writer::RemoteImageWriter;
use crate::client::ship::{Begun, Current};
use crate::client::{Access, RemoteError, VaultUrl};
use crate::record;

/// A vault that points are added to.
#[derive(Clone)]
pub struct Vault {
    pub(super) connection: Arc<Connection>,
    pub(super) url: VaultUrl,
    pub(super) codec: ChunkCodec,
    pub(super) current: Current,
}

/// An image that is complete, but that no point or seed names yet. The server keeps it for a quarter of an hour, and as long as
/// another image is written beside it. Dropped before a point or a seed has it, it is given up.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    pub(super) draft: Arc<Begun>,
    pub(super) image: ImageRef,
    pub(super) text: String,
}

impl RemoteImage {
    /// The image.
    #[must_use]
    pub fn image(&self) -> &ImageRef {
        &self.image
    }
}

/// A point to be listed.
pub struct RemotePoint<'a> {
    /// Its group.
    pub group: &'a Name,
    /// Its disks with their images.
    pub disks: &'a [(Name, RemoteImage)],
    /// When it was cut.
    pub at: UnixNanos,
    /// The tracking history it belongs to.
    pub lineage: [u8; 16],
    /// The generation that the cut sealed.
    pub generation: u64,
    /// What the user wrote on it.
    pub labels: &'a BTreeMap<String, String>,
    /// How consistent it is.
    pub consistency: Consistency,
}

/// The progress of a first copy, to be saved.
pub struct RemoteSeed<'a> {
    /// Its group.
    pub group: &'a Name,
    /// The tracking history it belongs to.
    pub lineage: [u8; 16],
    /// Its generation as a base.
    pub generation: u64,
    /// Name, granules that are copied, and what is copied so far, of each disk.
    pub disks: Vec<(&'a Name, u64, &'a RemoteImage)>,
}

impl Vault {
    /// Makes ready to add points.
    ///
    /// # Errors
    /// If there is nothing to show to the server. Whether it can be reached shows at the first request.
    pub fn open(url: &VaultUrl, access: &Access) -> Result<Self, RemoteError> {
        Ok(Self {
            connection: Connection::open(&url.server, access)?,
            url: url.clone(),
            codec: ChunkCodec::plain(),
            current: Current::default(),
        })
    }

    /// The same for chunks that are made so: a vault that is encrypted takes no others.
    #[must_use]
    pub fn with_codec(self, codec: ChunkCodec) -> Self {
        Self { codec, ..self }
    }

    pub(super) fn path(&self, rest: &str) -> String {
        format!("/v1/vaults/{}/{rest}", self.url.vault)
    }

    /// A group's newest points, newest first; of one tracking history if one is named.
    ///
    /// # Errors
    /// If the server cannot be reached, or refuses; so of all calls here.
    pub fn points(
        &self,
        group: &Name,
        lineage: Option<&[u8; 16]>,
    ) -> Result<Vec<Arc<PointRecord>>, RemoteError> {
        let only = lineage.map(|lineage| format!("?lineage={}", record::lineage_text(lineage)));
        let only = only.unwrap_or_default();
        let ask = Ask::get(self.path(&format!("groups/{group}/points{only}")));
        let list: api::PointList = self.connection.json(ask)?;
        let points = list.points.iter().map(|point| self.point(point));
        points.collect()
    }

    /// A group's seed, if one is under way.
    ///
    /// # Errors
    /// As [`points`](Self::points).
    pub fn seed(&self, group: &Name) -> Result<Option<Arc<SeedRecord>>, RemoteError> {
        let ask = Ask::get(self.path(&format!("seeds/{group}")));
        let found: api::SeedFound = self.connection.json(ask)?;
        let seed = found.seed.map(|seed| {
            let record = record::seed_record(group, &seed);
            let nonsense = || self.connection.nonsense("it is no first copy");
            record.map(Arc::new).ok_or_else(nonsense)
        });
        seed.transpose()
    }

    /// Begins an image.
    ///
    /// # Errors
    /// As [`points`](Self::points); if the vault does not hold the base.
    pub fn image_writer(&self, base: Base) -> Result<RemoteImageWriter, RemoteError> {
        Ok(RemoteImageWriter::new(self, self.draft(base)?))
    }

    pub(super) fn draft(&self, base: Base) -> Result<Draft, RemoteError> {
        let base = match base {
            Base::Empty { size } => api::DraftBase::Empty(size),
            Base::Image(image) => api::DraftBase::Image(record::image_text(&image)),
        };
        let ship = self.current.ship();
        let call = format!("drafts?{}", ship.next());
        let begun: api::DraftId = self.again(Method::POST, &call, &base)?;
        // It becomes a part of paths.
        let legal = begun.draft.bytes().all(|byte| byte.is_ascii_hexdigit());
        match legal {
            true => {
                let path = self.path(&format!("drafts/{}", begun.draft));
                let begun = Begun::new(&self.connection, ship, begun.draft, path);
                Ok(Draft::new(&self.connection, begun))
            }
            false => Err(self.connection.nonsense("it is no draft")),
        }
    }

    /// Lists a point; once, however often the line breaks.
    ///
    /// # Errors
    /// As [`points`](Self::points); nobody knows whether it is listed if the server cannot be reached: asking again is safe.
    pub fn commit_point(&self, new: &RemotePoint<'_>) -> Result<Arc<PointRecord>, RemoteError> {
        self.commit(new, None)
    }

    /// The same, under a number that it has elsewhere.
    pub(super) fn commit(
        &self,
        new: &RemotePoint<'_>,
        sequence: Option<u64>,
    ) -> Result<Arc<PointRecord>, RemoteError> {
        let disk = |(name, image): &(Name, RemoteImage)| (name.to_string(), image.draft.id.clone());
        let document = api::NewPoint {
            group: new.group.to_string(),
            lineage: record::lineage_text(&new.lineage),
            generation: new.generation,
            at_unix_ns: new.at.0,
            labels: new.labels.clone(),
            application: new.consistency == Consistency::Application,
            disks: new.disks.iter().map(disk).collect(),
            sequence,
        };
        let point: api::Point = self.again(Method::POST, "points", &document)?;
        let drafts = new.disks.iter().map(|(_, image)| &image.draft);
        drafts.for_each(|draft| draft.set_used());
        self.point(&point)
    }

    /// Saves the progress of a group's seed.
    ///
    /// # Errors
    /// As [`points`](Self::points).
    pub fn save_seed(&self, seed: &RemoteSeed<'_>) -> Result<(), RemoteError> {
        let disks = seed
            .disks
            .iter()
            .map(|(name, cursor, image)| api::SeedDisk {
                name: name.to_string(),
                cursor_granule: *cursor,
                image: image.text.clone(),
                draft: Some(image.draft.id.clone()),
            });
        let document = api::Seed {
            lineage: record::lineage_text(&seed.lineage),
            generation: seed.generation,
            disks: disks.collect(),
        };
        let path = format!("seeds/{}", seed.group);
        let _: api::Told = self.again(Method::PUT, &path, &document)?;
        let drafts = seed.disks.iter().map(|(.., image)| &image.draft);
        drafts.for_each(|draft| draft.set_used());
        Ok(())
    }

    pub(super) fn point(&self, point: &api::Point) -> Result<Arc<PointRecord>, RemoteError> {
        let record = record::point_record(point).map(Arc::new);
        record.ok_or_else(|| self.connection.nonsense("it is no point"))
    }

    /// What may be asked twice.
    fn again<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, RemoteError> {
        let mut ask = Ask::post(self.path(path), body);
        ask.method = method;
        ask.again = true;
        self.connection.json(ask)
    }
}
