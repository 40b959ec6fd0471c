//! Copying an image of a store to a server: its chunks as they lie, so no key is needed.

use std::sync::Arc;

use block::GranuleRange;
use store::{Fingerprint, Landing, PackedRegion, StoreError};

use crate::client::RemoteError;
use crate::client::draft::Draft;
use crate::client::vault::RemoteImage;
use crate::wire::{self, Entry};

/// Bytes of regions that are sent at once.
const BODY_BYTES: usize = 1 << 20;

/// An image at the server that becomes what one of a store is.
pub(super) struct RemoteCopy {
    draft: Arc<Draft>,
    body: Vec<u8>,
}

impl RemoteCopy {
    pub(super) fn new(draft: Draft) -> Self {
        Self {
            draft: Arc::new(draft),
            body: Vec::new(),
        }
    }

    /// Completes the image, whose whole content must come to `root`.
    pub(super) fn finish(mut self, root: Fingerprint) -> Result<RemoteImage, RemoteError> {
        self.send()?;
        self.draft.finish(Some(root))
    }

    fn send(&mut self) -> Result<(), RemoteError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let (draft, body) = (Arc::clone(&self.draft), std::mem::take(&mut self.body));
        self.draft.begin(async move { draft.bring(body).await })
    }
}

impl Landing for RemoteCopy {
    type Error = CopyError;

    fn zero(&mut self, granules: GranuleRange) -> Result<(), CopyError> {
        Ok(self.draft.zero(granules)?)
    }

    fn lay(&mut self, entries: &[(u64, Fingerprint)]) -> Result<Vec<bool>, CopyError> {
        // What is on its way may be what is asked for.
        self.send()?;
        self.draft.settle()?;
        let mut laid = Vec::with_capacity(entries.len());
        for some in entries.chunks(wire::ASKED_MAX) {
            let (draft, asked) = (Arc::clone(&self.draft), some.to_vec());
            let lacking = self.draft.wait(async move { draft.ask(&asked).await })?;
            laid.extend(lacking.iter().map(|lacking| !lacking));
        }
        Ok(laid)
    }

    fn bring(
        &mut self,
        granules: &[Option<u64>],
        fingerprints: &[Fingerprint],
        region: PackedRegion,
    ) -> Result<(), CopyError> {
        let granules = granules.iter().map(|g| g.unwrap_or(wire::NOWHERE));
        let entries: Vec<Entry> = granules.zip(fingerprints.iter().copied()).collect();
        wire::put_frame(&mut self.body, &entries, &region);
        match self.body.len() >= BODY_BYTES {
            true => Ok(self.send()?),
            false => Ok(()),
        }
    }
}

/// Why a point could not be copied to a server.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What it is copied from cannot be read.
    #[error(transparent)]
    From(#[from] StoreError),
    /// The server, or the line.
    #[error(transparent)]
    To(#[from] RemoteError),
}
