//! A tar with an image in parts: what `docker save` wrote, or an OCI layout. Finds the parts, and gives each only whole and
//! as its digest says.
//!
//! Never believes a size, a name or a media type alone: what is read is hashed on its way, to the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom, Take};

use serde::de::DeserializeOwned;

use super::entries::{Entries, EntryKind};
use super::refusal::Refusal;
use super::stream::{Count, Counted, Hashed, Sum};
use crate::spec::is_image_digest;

/// The longest manifest, index or configuration, in bytes.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Most parts of a bundle.
const PARTS_MAX: u64 = 10_000;

/// Where a part lies.
#[derive(Debug, Clone, Copy)]
struct Extent {
    at: u64,
    size: u64,
}

/// The parts by their names.
#[derive(Debug)]
pub(super) struct Bundle {
    file: File,
    parts: BTreeMap<Vec<u8>, Extent>,
    read: Count,
}

/// A part that is being read.
pub(super) struct Part<'b> {
    pub(super) reader: Hashed<Counted<Take<&'b File>>>,
    /// Its sum, once all is read.
    pub(super) sum: Sum,
    pub(super) size: u64,
}

/// Whether the first entry of a tar says that it is a bundle and no root file system.
pub(super) fn is_bundle(first: &[u8]) -> bool {
    let mut words = first.split(|byte| *byte == b'/');
    let (top, below) = (words.next().unwrap_or_default(), words.next());
    let hex = |text: &[u8]| text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit);
    match top {
        b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories" => below.is_none(),
        b"blobs" => below.is_none_or(|algorithm| algorithm == b"sha256"),
        top => hex(top) || [&b".json"[..], b".tar"].iter().any(|end| top.strip_suffix(*end).is_some_and(hex)),
    }
}

impl Bundle {
    /// Finds the parts of a tar in `file`, which is not compressed. What is read of them is added to `read`.
    ///
    /// # Errors
    /// [`Refusal`]: no tar as it has to be, or two parts of one name.
    pub(super) fn open(mut file: File, read: Count) -> Result<Self, Refusal> {
        file.seek(SeekFrom::Start(0)).map_err(Refusal::Read)?;
        let mut parts = BTreeMap::new();
        let (counted, count) = Counted::new(&file);
        let mut entries = Entries::new(counted, PARTS_MAX);
        while let Some(entry) = entries.next_entry()? {
            match entry.kind {
                EntryKind::Directory => {}
                EntryKind::Regular => {
                    let extent = Extent { at: count.get(), size: entry.size };
                    if parts.insert(entry.name.clone(), extent).is_some() {
                        return Err(Refusal::entry(&entry.name, "two parts have this name"));
                    }
                }
                EntryKind::HardLink(_) | EntryKind::Symlink(_) | EntryKind::Device | EntryKind::Fifo => {
                    return Err(Refusal::entry(&entry.name, "it is part of an image and no file"));
                }
            }
        }
        Ok(Self { file, parts, read })
    }

    /// Whether there is a part of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.parts.contains_key(name.as_bytes())
    }

    /// Begins to read a part.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn part(&self, name: &str) -> Result<Part<'_>, Refusal> {
        let missing = || Refusal::part(name, "it is spoken of and not there");
        let Extent { at, size } = *self.parts.get(name.as_bytes()).ok_or_else(missing)?;
        (&self.file).seek(SeekFrom::Start(at)).map_err(Refusal::Read)?;
        let (reader, sum) = Hashed::new(Counted::with((&self.file).take(size), self.read.clone()));
        Ok(Part { reader, sum, size })
    }

    /// Reads a part that is text; with its digest.
    ///
    /// # Errors
    /// There is none, it is too long, or cannot be read.
    pub(super) fn text(&self, name: &str) -> Result<(Vec<u8>, String), Refusal> {
        let mut part = self.part(name)?;
        if part.size > TEXT_BYTES_MAX {
            return Err(Refusal::TooMuch { what: "bytes in a manifest or configuration", most: TEXT_BYTES_MAX });
        }
        let mut text = Vec::new();
        part.reader.read_to_end(&mut text).map_err(Refusal::of_read)?;
        Ok((text, part.sum.digest()))
    }
}

impl Part<'_> {
    /// Reads what is left of it and holds it against its digest.
    ///
    /// # Errors
    /// It is another one.
    pub(super) fn verify(mut self, digest: &str) -> Result<(), Refusal> {
        std::io::copy(&mut self.reader, &mut std::io::sink()).map_err(Refusal::of_read)?;
        check(digest, self.sum.digest())
    }
}

/// Whether a digest is what it has to be.
///
/// # Errors
/// It is another one.
pub(super) fn check(expected: &str, found: String) -> Result<(), Refusal> {
    if expected == found { Ok(()) } else { Err(Refusal::Digest { part: expected.to_owned(), found }) }
}

/// The part of a layout that a digest names.
///
/// # Errors
/// The digest is none.
pub(super) fn blob(digest: &str) -> Result<String, Refusal> {
    match digest.strip_prefix("sha256:").filter(|_| is_image_digest(digest)) {
        Some(hex) => Ok(format!("blobs/sha256/{hex}")),
        None => Err(Refusal::part(digest, "it is no digest, which is sha256: and 64 hexadecimal digits")),
    }
}

/// Reads JSON of a part.
///
/// # Errors
/// It is none, says something twice, or lacks something.
pub(super) fn json<T: DeserializeOwned>(part: &str, text: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(text)
        .map_err(|_reason| Refusal::part(part, "it is not JSON of the form that it has to have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_tells_a_bundle() {
        let hex = "0123456789abcdef".repeat(4);
        for first in [
            "oci-layout",
            "index.json",
            "manifest.json",
            "blobs",
            "blobs/sha256/x",
            &hex,
            &format!("{hex}.json"),
            &format!("{hex}/layer.tar"),
            &format!("{hex}.tar"),
        ] {
            assert!(is_bundle(first.as_bytes()), "{first}");
        }
        for first in ["", "bin", "etc/passwd", "blobs/mine", "blob", "manifest.json/x", "abc.json"] {
            assert!(!is_bundle(first.as_bytes()), "{first}");
        }
    }

    #[test]
    fn a_digest_names_its_part_and_nothing_else() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(blob(&format!("sha256:{hex}")).unwrap(), format!("blobs/sha256/{hex}"));
        for wrong in ["sha256:../../etc/passwd", "sha512:00", "", &hex] {
            assert!(blob(wrong).is_err(), "{wrong}");
        }
    }
}
