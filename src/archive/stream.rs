//! The bytes of an archive on their way: counted, hashed, decompressed by what they begin with, never beyond a ratio.
//!
//! Decompressors are linked in and written in Rust; nothing is executed for them (HARDENING F5, F6).

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use sha2::{Digest as _, Sha256};

use super::refusal::Refusal;

/// How many times larger than itself a compressed stream may become.
pub(super) const RATIO_MAX: u64 = 200;
/// As much may come of a stream whatever its ratio: few bytes of zeros are many.
const RATIO_FREE_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// A count that its reader's owner keeps an eye on.
#[derive(Debug, Clone, Default)]
pub(super) struct Count(Rc<Cell<u64>>);

impl Count {
    /// Bytes so far.
    #[must_use]
    pub(super) fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Counts what is read through it.
#[derive(Debug)]
pub(super) struct Counted<R> {
    input: R,
    count: Count,
}

impl<R> Counted<R> {
    /// With its count.
    pub(super) fn new(input: R) -> (Self, Count) {
        let count = Count::default();
        (Self::with(input, count.clone()), count)
    }

    /// Added to this count.
    pub(super) const fn with(input: R, count: Count) -> Self {
        Self { input, count }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.count.0.set(self.count.0.get().saturating_add(read as u64));
        Ok(read)
    }
}

/// A SHA-256 that its reader's owner takes when all is read.
#[derive(Debug, Clone, Default)]
pub(super) struct Sum(Rc<RefCell<Sha256>>);

impl Sum {
    /// The digest of all that was read, as `sha256:…`.
    #[must_use]
    pub(super) fn digest(&self) -> String {
        let hex: String =
            std::mem::take(&mut *self.0.borrow_mut()).finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}

/// Hashes what is read through it.
#[derive(Debug)]
pub(super) struct Hashed<R> {
    input: R,
    sum: Sum,
}

impl<R> Hashed<R> {
    /// With its sum.
    pub(super) fn new(input: R) -> (Self, Sum) {
        let sum = Sum::default();
        (Self { input, sum: sum.clone() }, sum)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.sum.0.borrow_mut().update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Refuses to give more than the ratio allows.
struct Bounded<R> {
    input: R,
    given: u64,
    compressed: Count,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.given = self.given.saturating_add(read as u64);
        let most = self.compressed.get().saturating_mul(RATIO_MAX).saturating_add(RATIO_FREE_BYTES);
        if self.given > most {
            return Err(Refusal::form("it is more than 200 times as large as its compressed form").into_io());
        }
        Ok(read)
    }
}

/// Frames of Zstandard, one after the other.
enum Zstd<R: BufRead> {
    Between(R),
    Inside(Box<StreamingDecoder<R, FrameDecoder>>),
    Broken,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Broken) {
                Self::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        *self = Self::Between(input);
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(input).map_err(io::Error::other)?;
                    *self = Self::Inside(Box::new(decoder));
                }
                Self::Inside(mut decoder) => {
                    let read = decoder.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        *self = Self::Inside(decoder);
                        return Ok(read);
                    }
                    *self = Self::Between(decoder.into_inner());
                }
                Self::Broken => return Err(Refusal::form("its Zstandard frames are damaged").into_io()),
            }
        }
    }
}

/// Whether a stream was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// It was not.
    None,
    /// By gzip.
    Gzip,
    /// By Zstandard.
    Zstd,
}

/// What a stream is compressed with, by its first bytes.
///
/// # Errors
/// A compression that is not read here.
pub(super) fn compression(start: &[u8]) -> Result<Compression, Refusal> {
    const FOREIGN: [(&[u8], &str); 4] = [
        (b"BZh", "it is compressed by bzip2; only gzip and zstd are read: decompress it first"),
        (b"\xfd7zXZ\0", "it is compressed by xz; only gzip and zstd are read: decompress it first"),
        (b"\x04\x22\x4d\x18", "it is compressed by lz4; only gzip and zstd are read: decompress it first"),
        (b"PK\x03\x04", "it is a zip file, no tar"),
    ];
    if start.starts_with(b"\x1f\x8b") {
        return Ok(Compression::Gzip);
    }
    if start.starts_with(b"\x28\xb5\x2f\xfd") {
        return Ok(Compression::Zstd);
    }
    match FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, rule)) => Err(Refusal::form(rule)),
        None => Ok(Compression::None),
    }
}

/// A stream without its compression.
pub(super) struct Plain<'r> {
    /// The bytes.
    pub(super) reader: Box<dyn Read + 'r>,
    /// What it was compressed with.
    pub(super) compression: Compression,
}

/// Takes away whatever a stream is compressed with.
///
/// # Errors
/// It cannot be read, or by what is not read here.
pub(super) fn plain<'r, R: Read + 'r>(input: R) -> Result<Plain<'r>, Refusal> {
    let (counted, compressed) = Counted::new(input);
    let mut input = BufReader::with_capacity(BUFFER_BYTES, counted);
    let compression = compression(input.fill_buf().map_err(Refusal::of_read)?)?;
    let reader: Box<dyn Read + 'r> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(Bounded { input: MultiGzDecoder::new(input), given: 0, compressed }),
        Compression::Zstd => Box::new(Bounded { input: Zstd::Between(input), given: 0, compressed }),
    };
    Ok(Plain { reader, compression })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn read(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut all = Vec::new();
        plain(bytes)?.reader.read_to_end(&mut all).map_err(Refusal::of_read)?;
        Ok(all)
    }

    #[test]
    fn every_compression_gives_back_what_was_put_in() {
        let text = b"of a length that is worth it ".repeat(100_000);
        for packed in [text.clone(), gzip(&text), zstd(&text), [gzip(&text[..7]), gzip(&text[7..])].concat()] {
            assert!(read(&packed).unwrap() == text);
        }
        assert!(read(&[zstd(&text[..7]), zstd(&text[7..])].concat()).unwrap() == text, "two frames");
    }

    #[test]
    fn a_bomb_and_a_damaged_stream_are_refused() {
        let bomb = gzip(&vec![0; 100 << 20]);
        assert!(read(&bomb).unwrap_err().to_string().contains("200 times"), "{} bytes", bomb.len());
        for packed in [gzip(&[7; 5000]), zstd(&[7; 5000])] {
            assert!(read(&packed[..packed.len() - 3]).is_err());
        }
        assert!(read(b"BZh91AY&SY").unwrap_err().to_string().contains("bzip2"));
        assert!(read(b"\xfd7zXZ\0\0").unwrap_err().to_string().contains("xz"));
    }

    #[test]
    fn a_sum_is_of_what_was_read() {
        let (mut hashed, sum) = Hashed::new(&b"abc"[..]);
        hashed.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(sum.digest(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
