//! A tar stream as its entries: headers, long names and pax records put together, each within its limits.
//!
//! Pure but for the reader that it is given. Where a size is said twice, pax decides, for the length of the content and for
//! where the next header is; whatever else is said twice is refused.

use std::io::Read;

use super::header::{self, BLOCK, Kind};
use super::names::{Name, PATH_BYTES_MAX, name};
use super::pax::{self, Records};
use super::refusal::Refusal;

/// Pax records and long names are never longer, in bytes.
const BLOB_BYTES_MAX: u64 = 1 << 20;
/// Zeros that may follow the end of an archive, in bytes.
const TRAILER_BYTES_MAX: u64 = 1 << 20;
/// The longest target of a symbolic link, in bytes.
const LINK_BYTES_MAX: usize = 4095;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Where, below the target.
    pub name: Name,
    /// Length of its content, in bytes.
    pub size: u64,
    /// Permission bits, 0..=0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes, by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with content.
    Regular,
    /// Another name of the file of this name.
    HardLink(Name),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A device.
    Device,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// What came before an entry and belongs to it.
#[derive(Debug, Default)]
struct Prelude {
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// The entries of a tar stream.
#[derive(Debug)]
pub struct Entries<R> {
    input: R,
    /// Content of the entry given last that was not read.
    left: u64,
    /// What fills its last block.
    padding: u64,
    count: u64,
    count_max: u64,
    ended: bool,
}

impl<R: Read> Entries<R> {
    /// Of a stream, at most `count_max` of them.
    pub const fn new(input: R, count_max: u64) -> Self {
        Self { input, left: 0, padding: 0, count: 0, count_max, ended: false }
    }

    /// The next entry; what was not read of the content of the one before is skipped.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing further is to be had.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Refusal> {
        if self.ended {
            return Ok(None);
        }
        let mut prelude = Prelude::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else {
                let orphaned = prelude.pax.is_some() || prelude.long_name.is_some() || prelude.long_link.is_some();
                return if orphaned { Err(Refusal::form("it ends where an entry was announced")) } else { Ok(None) };
            };
            let header = header::parse(&block).map_err(|rule| Refusal::entry(&raw_name(&block), rule))?;
            self.left = header.size;
            self.padding = padding(header.size);
            let doubled = |rule| Err(Refusal::entry(&raw_name(&block), rule));
            match header.kind {
                Kind::Pax => {
                    let records = pax::parse(&self.blob()?, false);
                    let records = records.map_err(|rule| Refusal::entry(&raw_name(&block), rule))?;
                    if prelude.pax.replace(records).is_some() {
                        return doubled("two pax headers speak of one entry");
                    }
                }
                Kind::PaxGlobal => {
                    pax::parse(&self.blob()?, true).map_err(|rule| Refusal::entry(&raw_name(&block), rule))?;
                }
                Kind::LongName => {
                    let name = self.long_name()?;
                    if prelude.long_name.replace(name).is_some() {
                        return doubled("it has two long names");
                    }
                }
                Kind::LongLink => {
                    let name = self.long_name()?;
                    if prelude.long_link.replace(name).is_some() {
                        return doubled("it has two long link targets");
                    }
                }
                Kind::Regular | Kind::HardLink | Kind::Symlink | Kind::Device | Kind::Directory | Kind::Fifo => {
                    return self.entry(header, prelude).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: header::Header, prelude: Prelude) -> Result<Entry, Refusal> {
        self.count += 1;
        if self.count > self.count_max {
            return Err(Refusal::TooMuch { what: "entries", most: self.count_max });
        }
        if prelude.pax.is_some() && (prelude.long_name.is_some() || prelude.long_link.is_some()) {
            return Err(Refusal::entry(&header.path, "it has a pax header and one of GNU's"));
        }
        let records = prelude.pax.unwrap_or_default();
        let path = records.path.or(prelude.long_name).unwrap_or(header.path);
        let link = records.link.or(prelude.long_link).unwrap_or(header.link);
        let size = records.size.unwrap_or(header.size);
        (self.left, self.padding) = (size, padding(size));
        let name = name(&path)?;
        let refuse = |rule| Err(Refusal::entry(&path, rule));
        let kind = match header.kind {
            Kind::Regular if path.ends_with(b"/") => return refuse("it is a file with the name of a directory"),
            Kind::Regular => EntryKind::Regular,
            Kind::HardLink => EntryKind::HardLink(self::name(&link)?),
            Kind::Symlink if link.is_empty() || link.len() > LINK_BYTES_MAX || link.contains(&0) => {
                return refuse("its link target is empty, longer than 4095 bytes, or has a NUL in it");
            }
            Kind::Symlink => EntryKind::Symlink(link),
            Kind::Device => EntryKind::Device,
            Kind::Directory => EntryKind::Directory,
            Kind::Fifo => EntryKind::Fifo,
            // The caller takes these apart.
            Kind::Pax | Kind::PaxGlobal | Kind::LongName | Kind::LongLink => return refuse("it is no entry"),
        };
        if kind != EntryKind::Regular && size != 0 {
            return refuse("it has content, which only files have");
        }
        if name.is_empty() && kind != EntryKind::Directory {
            return refuse("it has the name of the root and is no directory");
        }
        Ok(Entry {
            kind,
            name,
            size,
            mode: header.mode,
            uid: records.uid.unwrap_or(header.uid),
            gid: records.gid.unwrap_or(header.gid),
            mtime: records.mtime.unwrap_or(header.mtime),
            xattrs: records.xattrs,
        })
    }

    /// Reads content of the entry given last; 0 is its end.
    ///
    /// # Errors
    /// [`Refusal`], also where the archive ends first.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refusal> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..room).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        match read_some(&mut self.input, buffer)? {
            0 => Err(Refusal::form(CUT_SHORT)),
            count => {
                self.left = self.left.saturating_sub(count as u64);
                Ok(count)
            }
        }
    }

    /// The reader, at wherever it is.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn skip(&mut self) -> Result<(), Refusal> {
        let mut buffer = [0; 8192];
        while self.read(&mut buffer)? > 0 {}
        self.left = std::mem::take(&mut self.padding);
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The next header; `None` at the end, behind which only zeros may stand.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Refusal> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if !header::is_zero(&block) {
            return Ok(Some(block));
        }
        self.ended = true;
        let mut buffer = [0; 8192];
        let mut trailer = 0_u64;
        loop {
            let count = read_some(&mut self.input, &mut buffer)?;
            if count == 0 {
                return Ok(None);
            }
            trailer += count as u64;
            if !header::is_zero(buffer.get(..count).unwrap_or_default()) {
                return Err(Refusal::form("something follows the end of the archive"));
            }
            if trailer > TRAILER_BYTES_MAX {
                return Err(Refusal::TooMuch { what: "bytes after the end of the archive", most: TRAILER_BYTES_MAX });
            }
        }
    }

    fn fill(&mut self, mut rest: &mut [u8]) -> Result<(), Refusal> {
        while !rest.is_empty() {
            match read_some(&mut self.input, rest)? {
                0 => return Err(Refusal::form(CUT_SHORT)),
                count => rest = rest.get_mut(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// The content of a header that speaks of another one.
    fn blob(&mut self) -> Result<Vec<u8>, Refusal> {
        if self.left > BLOB_BYTES_MAX {
            return Err(Refusal::TooMuch { what: "bytes in one header", most: BLOB_BYTES_MAX });
        }
        let mut blob = vec![0; usize::try_from(self.left).unwrap_or_default()];
        self.fill(&mut blob)?;
        self.left = 0;
        Ok(blob)
    }

    fn long_name(&mut self) -> Result<Vec<u8>, Refusal> {
        if self.left > PATH_BYTES_MAX as u64 + 1 {
            return Err(Refusal::TooMuch { what: "bytes in a name", most: PATH_BYTES_MAX as u64 });
        }
        let mut name = self.blob()?;
        // Readers that look for the NUL go on behind the end of a name that has none.
        if name.pop() != Some(0) || name.is_empty() || name.contains(&0) {
            return Err(Refusal::entry(&name, "a long name is empty, has a NUL in it, or does not end with one"));
        }
        Ok(name)
    }
}

const CUT_SHORT: &str = "the archive is cut short";

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Refusal> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.map_err(Refusal::of_read),
        }
    }
}

fn raw_name(block: &[u8; BLOCK]) -> Vec<u8> {
    block.get(..100).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}
