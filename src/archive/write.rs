//! A tar that is written: ustar headers, with pax records for what does not fit them, compressed by gzip as it goes.
//!
//! Says nothing that a reader could take in two ways: each fact stands in one place, a long one in the records with the
//! header's field cut. An entry's content has exactly the announced length, or there is no archive. The order of calls:
//! [`Writer::entry`] with [`Writer::content`] for files, then [`Writer::finish`].

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

/// Length of a block, in bytes.
const BLOCK: usize = 512;
/// The longest path or link that a header's field holds, in bytes.
const NAME_BYTES: usize = 100;
/// The largest number in a field of seven octal digits.
const SMALL_MAX: u64 = 0o777_7777;
/// The largest number in a field of eleven.
const LARGE_MAX: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file with so many bytes.
    File(u64),
    /// Another name of a file that came before.
    HardLink(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// What an entry has beside its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

/// An archive that is being written.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: GzEncoder<W>,
    /// Content of the last entry that is not there yet.
    owed: u64,
    /// Zeros behind it.
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Into `out`.
    pub fn new(out: W) -> Self {
        Self { out: GzEncoder::new(out, Compression::new(3)), owed: 0, padding: 0 }
    }

    /// Begins an entry. A file's content is given next.
    ///
    /// # Errors
    /// What `out` says; `InvalidInput` if the content of the entry before is not whole.
    pub fn entry(&mut self, path: &[u8], kind: &Kind, meta: Meta) -> io::Result<()> {
        self.settle()?;
        let (flag, size, link): (u8, u64, &[u8]) = match kind {
            Kind::File(size) => (b'0', *size, b""),
            Kind::HardLink(target) => (b'1', 0, target),
            Kind::Symlink(target) => (b'2', 0, target),
            Kind::Directory => (b'5', 0, b""),
            Kind::Fifo => (b'6', 0, b""),
        };
        let records = records(path, link, size, meta);
        if !records.is_empty() {
            let own = Meta { mode: 0o644, ..Meta::default() };
            self.out.write_all(&header(b"././@PaxHeader", b"", b'x', records.len() as u64, own))?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.out.write_all(&header(path, link, flag, size, meta))?;
        self.owed = size;
        self.padding = padding(size);
        Ok(())
    }

    /// The content of the file that was begun: as many bytes of `from` as were announced. What is missing is made up for
    /// by zeros; whether something was.
    ///
    /// # Errors
    /// What `from` and `out` say.
    pub fn content(&mut self, from: &mut impl Read) -> io::Result<bool> {
        let mut buffer = vec![0; 128 << 10];
        while self.owed > 0 {
            let most = usize::try_from(self.owed).unwrap_or(usize::MAX).min(buffer.len());
            let count = from.read(buffer.get_mut(..most).unwrap_or_default())?;
            if count == 0 {
                break;
            }
            self.out.write_all(buffer.get(..count).unwrap_or_default())?;
            self.owed -= count as u64;
        }
        let is_short = self.owed > 0;
        while self.owed > 0 {
            let zeros = [0; BLOCK];
            let most = usize::try_from(self.owed).unwrap_or(BLOCK).min(BLOCK);
            self.out.write_all(zeros.get(..most).unwrap_or_default())?;
            self.owed -= most as u64;
        }
        Ok(is_short)
    }

    /// A whole file.
    ///
    /// # Errors
    /// What `out` says.
    pub fn file(&mut self, path: &[u8], meta: Meta, content: &[u8]) -> io::Result<()> {
        self.entry(path, &Kind::File(content.len() as u64), meta)?;
        self.content(&mut &*content).map(drop)
    }

    /// Ends the archive and gives back where it went.
    ///
    /// # Errors
    /// What `out` says; `InvalidInput` if the content of the last entry is not whole.
    pub fn finish(mut self) -> io::Result<W> {
        self.settle()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()
    }

    fn settle(&mut self) -> io::Result<()> {
        if self.owed > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the content of an entry is not whole"));
        }
        let zeros = [0; BLOCK];
        let count = std::mem::take(&mut self.padding);
        self.out.write_all(zeros.get(..count).unwrap_or_default())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let zeros = [0; BLOCK];
        self.out.write_all(zeros.get(..padding(size)).unwrap_or_default())
    }
}

/// Zeros behind so many bytes.
fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// What a header has no room for.
fn records(path: &[u8], link: &[u8], size: u64, meta: Meta) -> Vec<u8> {
    let mut records = Vec::new();
    if path.len() > NAME_BYTES {
        record(&mut records, "path", path);
    }
    if link.len() > NAME_BYTES {
        record(&mut records, "linkpath", link);
    }
    if size > LARGE_MAX {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    for (name, id) in [("uid", meta.uid), ("gid", meta.gid)] {
        if u64::from(id) > SMALL_MAX {
            record(&mut records, name, id.to_string().as_bytes());
        }
    }
    if meta.mtime > LARGE_MAX {
        record(&mut records, "mtime", meta.mtime.to_string().as_bytes());
    }
    records
}

/// `LENGTH NAME=VALUE\n`, the length with its own digits.
fn record(records: &mut Vec<u8>, name: &str, value: &[u8]) {
    let body = name.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {name}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn header(path: &[u8], link: &[u8], flag: u8, size: u64, meta: Meta) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let octal = |value: u64, most: u64, digits: usize| format!("{:0digits$o}\0", if value > most { 0 } else { value });
    put(0, path.get(..NAME_BYTES).unwrap_or(path));
    put(100, octal(u64::from(meta.mode & 0o7777), SMALL_MAX, 7).as_bytes());
    put(108, octal(u64::from(meta.uid), SMALL_MAX, 7).as_bytes());
    put(116, octal(u64::from(meta.gid), SMALL_MAX, 7).as_bytes());
    put(124, octal(size, LARGE_MAX, 11).as_bytes());
    put(136, octal(meta.mtime, LARGE_MAX, 11).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.get(..NAME_BYTES).unwrap_or(link));
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(148, format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_is_made_up_for_and_one_that_grows_is_cut() {
        let mut writer = Writer::new(Vec::new());
        writer.entry(b"short", &Kind::File(1000), Meta::default()).unwrap();
        assert!(writer.content(&mut &b"abc"[..]).unwrap());
        writer.entry(b"long", &Kind::File(2), Meta::default()).unwrap();
        assert!(!writer.content(&mut &b"abcdef"[..]).unwrap());
        writer.entry(b"owed", &Kind::File(2), Meta::default()).unwrap();
        assert!(writer.finish().is_err(), "content that was announced and never came");
    }

    #[test]
    fn records_count_their_own_digits() {
        for length in [1, 2, 5, 86, 87, 88, 95, 96, 986, 987, 988, 5000] {
            let mut records = Vec::new();
            record(&mut records, "path", &vec![b'a'; length]);
            let digits = records.split(|byte| *byte == b' ').next().unwrap();
            assert_eq!(String::from_utf8_lossy(digits).parse::<usize>().unwrap(), records.len());
        }
    }
}
