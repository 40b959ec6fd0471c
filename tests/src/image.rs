//! Disks to protect.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ledger::{SECTOR, stamp};

/// A sparse file of `size` bytes that holds nothing.
///
/// # Errors
/// File errors.
pub fn sparse(path: &Path, size: u64) -> Result<()> {
    Ok(File::create_new(path)?.set_len(size)?)
}

/// A file of stamps of write 0, as a ledger expects of a new disk.
///
/// # Errors
/// File errors.
pub fn stamped(path: &Path, sectors: usize) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
    for sector in 0..sectors {
        file.write_all(&stamp(0, sector))?;
    }
    Ok(file.flush()?)
}

/// Fills `[offset, offset + len)` of an existing file with bytes that do not compress.
///
/// # Errors
/// File errors.
pub fn scribble(path: &Path, offset: u64, len: u64, seed: u64) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut buf = vec![0; 1 << 20];
    let mut at = offset;
    while at < offset + len {
        let n = usize::try_from((offset + len - at).min(1 << 20)).expect("at most 1 MiB");
        rng.fill_bytes(&mut buf[..n]);
        file.write_all_at(&buf[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

/// First byte where the files or block devices differ; `None` if they hold the same.
///
/// # Errors
/// File errors; lengths that differ count as a difference at the shorter one's end.
pub fn difference(a: &Path, b: &Path) -> Result<Option<u64>> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    // Block devices tell their length so.
    let (a_len, b_len) = (a.seek(SeekFrom::End(0))?, b.seek(SeekFrom::End(0))?);
    let len = a_len.min(b_len);
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < len {
        let n = usize::try_from((len - at).min(1 << 20)).expect("at most 1 MiB");
        a.read_exact_at(&mut x[..n], at)?;
        b.read_exact_at(&mut y[..n], at)?;
        if x[..n] != y[..n] {
            let byte = x
                .iter()
                .zip(&y)
                .position(|(x, y)| x != y)
                .expect("they differ");
            return Ok(Some(at + byte as u64));
        }
        at += n as u64;
    }
    Ok((a_len != b_len).then_some(len))
}

/// Sectors of `size` bytes.
#[must_use]
pub fn sectors(size: u64) -> usize {
    usize::try_from(size).expect("64 bits") / SECTOR
}
