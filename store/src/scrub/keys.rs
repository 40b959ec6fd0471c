//! Scrubbing who opens an encrypted store: an object with slots is healed by its armor, else by its copy.
//!
//! Rule: what a change of keys takes away while this runs stays away.

use std::io;

use crate::armor::{self, Owner};
use crate::error::{Result, StoreError, io_error};
use crate::keys;

use super::{HealedObject, LostObject, Scrub};

/// One of the two.
struct Found {
    name: String,
    /// `None` if it is not there.
    len: Option<u64>,
    /// Its payload, and how many bytes were damaged; `None` if it is lost.
    payload: Option<(Vec<u8>, u64)>,
}

impl Scrub<'_> {
    pub(super) fn keys(&mut self) -> Result<()> {
        for (names, owner) in keys::objects(&*self.inner.place, self.inner.objects.store())? {
            let [first, copy] = names.map(|name| self.find_keys(name, owner));
            self.heal_keys([first?, copy?], owner)?;
        }
        Ok(())
    }

    fn find_keys(&mut self, name: String, owner: Owner) -> Result<Found> {
        let (mut len, mut payload) = (None, None);
        match self.inner.place.read_whole(&name, keys::LEN_MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => len = Some(0),
            Err(e) => return Err(io_error("read", name, e)),
            Ok(bytes) => {
                len = Some(bytes.len() as u64);
                payload = armor::read_small(&bytes, owner, |b| keys::check(b, owner)).ok();
            }
        }
        self.report.objects += u64::from(len.is_some());
        self.report.bytes += len.unwrap_or(0);
        Ok(Found { name, len, payload })
    }

    fn heal_keys(&mut self, both: [Found; 2], owner: Owner) -> Result<()> {
        let whole = both.iter().find_map(|found| found.payload.clone());
        for found in both {
            match (&found.payload, &whole) {
                (Some((_, 0)), _) => {}
                (_, Some((payload, _))) => self.put_keys(&found, owner, payload)?,
                // A change of keys was faster.
                (_, None) if found.len.is_none() => {}
                (_, None) => {
                    let what = "both it and its copy are damaged beyond their armor";
                    self.report.lost.push(LostObject {
                        what: StoreError::corrupt(found.name.clone(), what).chain(),
                        object: found.name,
                    });
                }
            }
        }
        Ok(())
    }

    fn put_keys(&mut self, found: &Found, owner: Owner, payload: &[u8]) -> Result<()> {
        if self.options.heal && !keys::counts(&*self.inner.place, owner.id)? {
            return Ok(());
        }
        self.replace_small(&found.name, owner, payload)?;
        if self.options.heal && !keys::counts(&*self.inner.place, owner.id)? {
            // They were changed meanwhile, and what was taken away must not be there again.
            return keys::remove(&*self.inner.place, owner.id);
        }
        let damaged = found.payload.as_ref().map(|(_, damaged)| *damaged);
        self.report.healed.push(HealedObject {
            object: found.name.clone(),
            damaged_bytes: damaged.unwrap_or(payload.len() as u64),
        });
        Ok(())
    }
}
