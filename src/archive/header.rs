//! One header block of a tar archive: ustar, pax and GNU. Strict: what two readers could read two ways is refused.
//!
//! Pure: bytes in, fields out. `entries` puts headers, long names and pax records together.

/// Length of a block, in bytes.
pub(super) const BLOCK: usize = 512;
/// The largest size of an entry that is believed, in bytes.
const SIZE_MAX: u64 = 1 << 50;

/// What a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file with content.
    Regular,
    /// Another name of a file that came before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character or block device.
    Device,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Pax records for the next entry.
    Pax,
    /// Pax records for all further entries.
    PaxGlobal,
    /// The next entry's path.
    LongName,
    /// The next entry's link target.
    LongLink,
}

/// A header's fields as they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// What it announces.
    pub(super) kind: Kind,
    /// The path, prefix included.
    pub(super) path: Vec<u8>,
    /// The target of a link.
    pub(super) link: Vec<u8>,
    /// Bytes that follow.
    pub(super) size: u64,
    /// Permission bits, 0..=0o7777.
    pub(super) mode: u32,
    /// Owner.
    pub(super) uid: u64,
    /// Group.
    pub(super) gid: u64,
    /// Seconds since 1970; 0 for what was before.
    pub(super) mtime: u64,
}

/// Whether a block is of zeros, as those that end an archive.
#[must_use]
pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Reads a header.
///
/// # Errors
/// The rule that it breaks.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
    let field = |at: usize, length: usize| block.get(at..at + length).unwrap_or_default();
    check_sum(block)?;
    let magic = field(257, 8);
    let is_posix = magic.starts_with(b"ustar\0");
    if !is_posix && magic != b"ustar  \0" && !is_zero(magic) {
        return Err("its header is of an unknown format");
    }
    let kind = kind(field(156, 1).first().copied().unwrap_or_default())?;
    let mut path = text(field(0, 100)).to_vec();
    let prefix = text(field(345, 155));
    if !is_posix && !is_zero(field(345, 155)) {
        // Times of an incremental backup in GNU's own headers, nothing in those before ustar; there are readers that
        // nevertheless put it before the name.
        return Err("its header has a prefix, which its format does not have");
    }
    if !prefix.is_empty() {
        path = [prefix, b"/", &path].concat();
    }
    let number_of = |at, length, wrong| number(field(at, length)).ok_or(wrong);
    let size = number_of(124, 12, "its size is not a number")?;
    if size > SIZE_MAX {
        return Err("its size is impossible");
    }
    let mode = number_of(100, 8, "its mode is not a number")?;
    Ok(Header {
        kind,
        path,
        link: text(field(157, 100)).to_vec(),
        size,
        // Some writers put the file's type above the permissions.
        mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
        uid: number_of(108, 8, "its owner is not a number")?,
        gid: number_of(116, 8, "its group is not a number")?,
        mtime: time(field(136, 12)).ok_or("its time is not a number")?,
    })
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), &'static str> {
    const FIELD: std::ops::Range<usize> = 148..156;
    let counted = |(at, byte): (usize, &u8)| u64::from(if FIELD.contains(&at) { b' ' } else { *byte });
    let sum: u64 = block.iter().enumerate().map(counted).sum();
    let written = block.get(FIELD).and_then(number);
    if written == Some(sum) { Ok(()) } else { Err("its header's checksum is wrong: the archive is damaged, or no tar") }
}

const fn kind(flag: u8) -> Result<Kind, &'static str> {
    Ok(match flag {
        b'0' | 0 | b'7' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' | b'4' => Kind::Device,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'x' => Kind::Pax,
        b'g' => Kind::PaxGlobal,
        b'L' => Kind::LongName,
        b'K' => Kind::LongLink,
        b'S' => return Err("it is a sparse file in GNU's format, which is not read"),
        _ => return Err("it is of an unknown type"),
    })
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between blanks, or base 256; empty is zero. `None`: neither, negative, or beyond 64 bits.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first & 0x80 != 0 {
        // 0x80 and the digits; all else is negative or larger than any field means.
        if *first != 0x80 {
            return None;
        }
        return rest.iter().try_fold(0_u64, |value, byte| Some(value.checked_mul(256)? | u64::from(*byte)));
    }
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = field.get(start..).unwrap_or_default();
    let length = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(length)?;
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        Some(value.checked_mul(8)? | u64::from(digit))
    })
}

/// As [`number`]; negative times, which GNU writes in base 256, are those before 1970.
fn time(field: &[u8]) -> Option<u64> {
    if field.first() == Some(&0xff) { Some(0) } else { number(field) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_and_nothing_else() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000644", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"    ", Some(0)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Some(u64::MAX)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\x81\0\0\0", None),
            (b"\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"12 34\0\0\0", None),
            (b"-1\0", None),
            (b"+1\0", None),
            (b"0x1\0", None),
            (b"7777777777777777777777", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
        assert_eq!(time(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"), Some(0));
    }
}
