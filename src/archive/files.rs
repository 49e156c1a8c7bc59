//! Writes a tar: files alone, under plain names. What is read is written as long as it was said to be, or not at all.

use std::io::{self, Read, Write};

use super::header::BLOCK;

/// A tar that is being written.
#[derive(Debug)]
pub struct Packer<W> {
    output: W,
}

/// Octal digits of a size; what does not fit is written in base 256.
const SIZE_OCTAL_MAX: u64 = 0o77_777_777_777;

impl<W: Write> Packer<W> {
    /// To this.
    pub const fn new(output: W) -> Self {
        Self { output }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// Its name is longer than 100 bytes, it has not `size` bytes, or what the kernel says.
    pub fn file(&mut self, name: &str, size: u64, content: impl Read) -> io::Result<()> {
        self.output.write_all(&header(name, size)?)?;
        let copied = io::copy(&mut content.take(size), &mut self.output)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{name} became shorter while it was read"),
            ));
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or_default();
        self.output.write_all([0; BLOCK].get(..padding).unwrap_or_default())
    }

    /// Ends it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }
}

fn header(name: &str, size: u64) -> io::Result<[u8; BLOCK]> {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    if name.is_empty() || name.len() > 100 {
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, format!("{name:?} does not fit a header")));
    }
    put(0, name.as_bytes());
    for (at, text) in [(100, b"0000644"), (108, b"0000000"), (116, b"0000000")] {
        put(at, text);
    }
    if size <= SIZE_OCTAL_MAX {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000");
    put(148, b"        0");
    put(257, b"ustar");
    put(263, b"00");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (to, from) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").as_bytes()) {
        *to = *from;
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::super::entries::{Entries, EntryKind};
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut packer = Packer::new(Vec::new());
        packer.file("a/b", 700, &[7; 700][..]).unwrap();
        packer.file("empty", 0, io::empty()).unwrap();
        assert!(packer.file("short", 2, &b"x"[..]).is_err());
        let mut packer = Packer::new(Vec::new());
        packer.file("a/b", 700, &[7; 900][..]).unwrap();
        packer.file("empty", 0, io::empty()).unwrap();
        let bytes = packer.finish().unwrap();
        let mut entries = Entries::new(bytes.as_slice(), 10);
        let first = entries.next_entry().unwrap().unwrap();
        assert_eq!((first.kind, first.name.as_slice(), first.size), (EntryKind::Regular, &b"a/b"[..], 700));
        assert_eq!(entries.next_entry().unwrap().unwrap().name, b"empty");
        assert_eq!(entries.next_entry().unwrap(), None);
    }

    #[test]
    fn a_size_beyond_octal_is_read_back() {
        let block = header("x", 1 << 40).unwrap();
        assert_eq!(super::super::header::parse(&block).unwrap().size, 1 << 40);
    }
}
