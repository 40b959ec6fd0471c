//! The descriptor: which files hold which sectors.
//!
//! ```text
//!   # Disk DescriptorFile
//!   createType="twoGbMaxExtentFlat"
//!   parentCID=ffffffff
//!   RW 4192256 FLAT "web-f001.vmdk" 0
//!   access sectors kind  file       first sector in the file
//! ```

use super::VmdkError;
use crate::{ByteRange, SECTOR};

/// A descriptor longer than this is refused. ESXi and qemu write less than 1 KiB, and about 40
/// bytes for every 2 GiB of a split disk.
pub(crate) const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;

/// More extents are refused: 16 TiB in pieces of 2 GiB.
const EXTENTS_MAX: usize = 8192;

/// The longest file name of Linux file systems, in bytes.
const FILE_NAME_BYTES_MAX: usize = 255;

/// parentCID of a disk that stands for itself.
const NO_PARENT: u32 = 0xffff_ffff;

/// A descriptor whose lines are legal by themselves; the files are not looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// How the disk is laid out, such as `monolithicFlat`. For people.
    pub create_type: String,
    /// The extents in the order of their bytes; at least one.
    pub extents: Vec<ExtentLine>,
}

/// One extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLine {
    /// Whether the descriptor allows writing.
    pub writable: bool,
    /// Length in bytes: positive, whole sectors.
    pub size: u64,
    /// How and where it is stored.
    pub kind: ExtentKind,
}

/// How an extent is stored. A `file` is a plain file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Raw bytes of a file (`FLAT`, `VMFS`).
    Flat {
        /// Its name.
        file: String,
        /// The bytes of it.
        window: ByteRange,
    },
    /// Grains of a sparse file (`SPARSE`).
    Sparse {
        /// Its name.
        file: String,
    },
    /// Nothing: reads as zeroes (`ZERO`).
    Zero,
}

/// Reads a descriptor, with anything behind a NUL byte ignored (an embedded one is padded so).
///
/// # Errors
/// Says which line is wrong and why. `HasParent`, `Unsupported` for legal ones that are not served.
pub fn parse_descriptor(bytes: &[u8]) -> Result<Descriptor, VmdkError> {
    if bytes.len() as u64 > DESCRIPTOR_BYTES_MAX {
        return Err(whole("is longer than 1 MiB"));
    }
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| whole("is not UTF-8 text"))?;
    let mut lines = text.lines().map(str::trim).enumerate();
    if !lines
        .next()
        .is_some_and(|(_, line)| line.eq_ignore_ascii_case("# Disk DescriptorFile"))
    {
        return Err(VmdkError::NotVmdk);
    }
    let mut create_type = None;
    let mut extents = Vec::new();
    for (index, line) in lines {
        let number = index + 1;
        if let Some(extent) = extent_line(line) {
            if extents.len() == EXTENTS_MAX {
                return Err(at(number, "too many extents (8192 are supported)"));
            }
            extents.push(parse_extent(number, extent)?);
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "parentcid" => check_parent(number, value)?,
                "createtype" if create_type.is_none() => {
                    create_type = Some(value.chars().take(64).collect());
                }
                _ => {}
            }
        }
    }
    if extents.is_empty() {
        return Err(whole("names no extent"));
    }
    let create_type = create_type.ok_or_else(|| whole("has no createType"))?;
    Ok(Descriptor {
        create_type,
        extents,
    })
}

/// The words of a line that describes an extent.
struct ExtentWords<'a> {
    access: &'a str,
    rest: &'a str,
}

fn extent_line(line: &str) -> Option<ExtentWords<'_>> {
    let (access, rest) = line.split_once(char::is_whitespace)?;
    matches!(access, "RW" | "RDONLY" | "NOACCESS").then_some(ExtentWords { access, rest })
}

fn parse_extent(line: usize, words: ExtentWords<'_>) -> Result<ExtentLine, VmdkError> {
    let writable = match words.access {
        "RW" => true,
        "RDONLY" => false,
        _ => return Err(at(line, "an extent without access cannot be served")),
    };
    let (sectors, rest) = next_word(words.rest);
    let sectors: u64 = sectors
        .parse()
        .map_err(|_| at(line, "the number of sectors is no number"))?;
    let size = bytes_of(sectors)
        .filter(|size| *size > 0)
        .ok_or_else(|| at(line, "the number of sectors is out of range"))?;
    let (word, rest) = next_word(rest);
    let kind = match word {
        "FLAT" | "VMFS" => parse_flat(line, rest, size)?,
        "SPARSE" => {
            let (file, rest) = file_name(line, rest)?;
            expect_end(line, rest)?;
            ExtentKind::Sparse { file }
        }
        "ZERO" => ExtentKind::Zero,
        "VMFSSPARSE" | "SESPARSE" | "VMFSRDM" | "VMFSRAW" => {
            let kind = format!("an extent of type {word}");
            return Err(VmdkError::Unsupported { kind });
        }
        _ => return Err(at(line, "the type of the extent is unknown")),
    };
    Ok(ExtentLine {
        writable,
        size,
        kind,
    })
}

fn parse_flat(line: usize, rest: &str, size: u64) -> Result<ExtentKind, VmdkError> {
    let (file, rest) = file_name(line, rest)?;
    let (first, rest) = next_word(rest);
    expect_end(line, rest)?;
    // VMFS extents may leave it out.
    let first = match first {
        "" => 0,
        number => number
            .parse()
            .map_err(|_| at(line, "the extent's place in its file is no number"))?,
    };
    let window = bytes_of(first)
        .and_then(|start| ByteRange::at(start, size))
        .filter(|window| i64::try_from(window.end()).is_ok())
        .ok_or_else(|| at(line, "the extent's place in its file is out of range"))?;
    Ok(ExtentKind::Flat { file, window })
}

/// A quoted file name, and what follows it.
fn file_name(line: usize, text: &str) -> Result<(String, &str), VmdkError> {
    let (name, rest) = text
        .trim_start()
        .strip_prefix('"')
        .and_then(|text| text.split_once('"'))
        .ok_or_else(|| at(line, "the file name is not in quotes"))?;
    if name.len() > FILE_NAME_BYTES_MAX {
        return Err(at(line, "the file name is too long"));
    }
    if !is_plain(name) {
        let what = "the file of an extent must lie beside the descriptor, under a plain name";
        return Err(at(line, what));
    }
    Ok((name.to_owned(), rest))
}

/// Whether `name` stays in its directory and fits between the quotes.
pub(crate) fn is_plain(name: &str) -> bool {
    let illegal = |c: char| matches!(c, '/' | '\\' | '"') || c.is_control();
    !matches!(name, "" | "." | "..") && !name.chars().any(illegal)
}

fn check_parent(line: usize, value: &str) -> Result<(), VmdkError> {
    let parent_cid =
        u32::from_str_radix(value, 16).map_err(|_| at(line, "the parentCID is no hex number"))?;
    // 0 is what some writers say for "none".
    if parent_cid == NO_PARENT || parent_cid == 0 {
        Ok(())
    } else {
        Err(VmdkError::HasParent { parent_cid })
    }
}

fn next_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

fn expect_end(line: usize, rest: &str) -> Result<(), VmdkError> {
    // VMware Workstation may append a partition's UUID and device to an extent on a device.
    if rest.trim().is_empty() {
        Ok(())
    } else {
        Err(at(line, "there is more on the line than an extent has"))
    }
}

/// `None` where no disk reaches: 2^63 bytes.
pub(crate) fn bytes_of(sectors: u64) -> Option<u64> {
    let bytes = sectors.checked_mul(SECTOR)?;
    i64::try_from(bytes).ok()?;
    Some(bytes)
}

fn at(line: usize, what: &'static str) -> VmdkError {
    VmdkError::Descriptor { line, what }
}

fn whole(what: &'static str) -> VmdkError {
    VmdkError::DescriptorWhole { what }
}

#[cfg(test)]
mod tests;
