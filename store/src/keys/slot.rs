//! A slot: the master key, wrapped so that one secret opens it.
//!
//! ```text
//! number u32 | kind u8 (1 passphrase, 2 key) | label text | at u64 ns | salt 16
//!   | of a passphrase: memory u32 KiB, passes u32, lanes u32 | nonce 12 | wrapped 48
//!
//! passphrase --Argon2id, salt--> key of the slot --AES-256-GCM, nonce--> master key
//! key --HKDF-SHA-256, salt-----> key of the slot --AES-256-GCM, nonce--> master key
//! ```
//!
//! GCM vouches for the key id and for all of the slot before the nonce; not for the store, since a replica has the same slots. Argon2id with what RFC 9106, section 4, says
//! for machines with little memory: 64 MiB, 3 passes, 4 lanes.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use block::{Random, UnixNanos};
use zeroize::Zeroizing;

use crate::codec::{Decoded, Decoder, Encode};
use crate::error::{Result, StoreError};
use crate::seal::{self, KeyId, MasterKey};

use super::{KeySlot, Secret};

const PASSPHRASE: u8 = 1;
const KEY: u8 = 2;

const SALT_LEN: usize = 16;
const WRAPPED_LEN: usize = 32 + 16;

/// Bytes of a slot without label, at least.
pub(super) const LEN_MIN: usize = 4 + 1 + 2 + 8 + SALT_LEN + NONCE_LEN + WRAPPED_LEN;

/// One way to open the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) number: u32,
    /// What Argon2id costs; none of a key, which nobody can guess.
    cost: Option<Cost>,
    label: String,
    at: u64,
    salt: [u8; SALT_LEN],
    nonce: [u8; NONCE_LEN],
    wrapped: [u8; WRAPPED_LEN],
}

/// What guessing costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    const NEW: Self = Self {
        memory_kib: 64 << 10,
        passes: 3,
        lanes: 4,
    };

    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        /// Beyond these nobody opens a store: whoever can write there must not keep its owner busy for days.
        const MOST: Cost = Cost {
            memory_kib: 1 << 20,
            passes: 64,
            lanes: 16,
        };
        let cost = Self {
            memory_kib: d.u32()?,
            passes: d.u32()?,
            lanes: d.u32()?,
        };
        let legal = cost.memory_kib <= MOST.memory_kib
            && cost.passes <= MOST.passes
            && cost.lanes <= MOST.lanes
            && Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).is_ok();
        d.check(legal, "the cost of a passphrase is impossible")?;
        Ok(cost)
    }
}

impl Slot {
    /// Without the master key: see [`wrap`](Self::wrap).
    pub(super) fn new(
        number: u32,
        secret: &Secret,
        label: &str,
        random: &dyn Random,
        at: UnixNanos,
    ) -> Self {
        let (mut salt, mut nonce) = ([0; SALT_LEN], [0; NONCE_LEN]);
        random.fill(&mut salt);
        random.fill(&mut nonce);
        Self {
            number,
            cost: match secret {
                Secret::Passphrase(_) => Some(Cost::NEW),
                Secret::Key(_) => None,
            },
            label: label.to_owned(),
            at: at.0,
            salt,
            nonce,
            wrapped: [0; WRAPPED_LEN],
        }
    }

    pub(super) fn describe(&self) -> KeySlot {
        KeySlot {
            number: self.number,
            is_passphrase: self.cost.is_some(),
            label: self.label.clone(),
            made_at: UnixNanos(self.at),
        }
    }

    pub(super) fn wrap(&mut self, master: &MasterKey, secret: &Secret) -> Result<()> {
        let key = self.key(secret)?.ok_or(StoreError::WrongKey)?;
        let mut inside = Zeroizing::new(*master.0);
        let aad = Aad::from(self.bound(master.id()));
        let tag = key.seal_in_place_separate_tag(self.nonce(), aad, &mut *inside);
        let (head, tail) = self.wrapped.split_at_mut(inside.len());
        head.copy_from_slice(&*inside);
        tail.copy_from_slice(tag.expect("32 bytes are within GCM's limit").as_ref());
        Ok(())
    }

    /// `None` if the secret is another one's.
    pub(super) fn unwrap(&self, id: KeyId, secret: &Secret) -> Result<Option<MasterKey>> {
        let Some(key) = self.key(secret)? else {
            return Ok(None);
        };
        let mut inside = Zeroizing::new(self.wrapped);
        let opened = key.open_in_place(self.nonce(), Aad::from(self.bound(id)), &mut *inside);
        let master = opened.ok().and_then(|opened| opened.first_chunk());
        Ok(master.map(|key| MasterKey(Zeroizing::new(*key))))
    }

    fn nonce(&self) -> Nonce {
        // The key of a slot is of its salt, and wraps once.
        Nonce::assume_unique_for_key(self.nonce)
    }

    /// `None` if it is not for secrets of this kind.
    fn key(&self, secret: &Secret) -> Result<Option<LessSafeKey>> {
        let mut key = Zeroizing::new([0; 32]);
        match (secret, self.cost) {
            (Secret::Passphrase(text), Some(cost)) => {
                let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
                let params = params.map_err(|_| StoreError::Invalid("a cost is impossible"))?;
                let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                let hashed = hash.hash_password_into(text, &self.salt, &mut *key);
                hashed.map_err(|_| StoreError::Invalid("the passphrase is too long"))?;
            }
            (Secret::Key(secret), None) => {
                *key = seal::derive(&**secret, &self.salt, b"standin key slot 1");
            }
            _ => return Ok(None),
        }
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("32 bytes");
        Ok(Some(LessSafeKey::new(key)))
    }

    fn bound(&self, id: KeyId) -> Vec<u8> {
        let mut out = id.to_vec();
        self.put_head(&mut out);
        out
    }

    fn put_head(&self, out: &mut Vec<u8>) {
        out.put_u32(self.number);
        out.put_u8(if self.cost.is_some() { PASSPHRASE } else { KEY });
        out.put_text(&self.label);
        out.put_u64(self.at);
        out.put_bytes(&self.salt);
        if let Some(cost) = self.cost {
            out.put_u32(cost.memory_kib);
            out.put_u32(cost.passes);
            out.put_u32(cost.lanes);
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.put_head(out);
        out.put_bytes(&self.nonce);
        out.put_bytes(&self.wrapped);
    }

    pub(super) fn decode(d: &mut Decoder<'_>, label_max: usize) -> Decoded<Self> {
        let number = d.u32()?;
        let kind = d.u8()?;
        let label = d.text(label_max)?.to_owned();
        let at = d.u64()?;
        let salt = d.array()?;
        let cost = match kind {
            PASSPHRASE => Some(Cost::decode(d)?),
            KEY => None,
            _ => return Err(d.error("a slot is of an unknown kind")),
        };
        Ok(Self {
            number,
            cost,
            label,
            at,
            salt,
            nonce: d.array()?,
            wrapped: d.array()?,
        })
    }
}
