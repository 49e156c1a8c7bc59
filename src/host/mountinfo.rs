//! What is mounted where, as `/proc/self/mountinfo` says it.
//!
//! A bounded parser; never touches what it finds. `cgroup` looks for the cgroup v2 hierarchy here, `doctor` for what a
//! host lacks. Format: proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

const PATH: &str = "/proc/self/mountinfo";
/// About 60,000 mounts; a host with more is not one to start a supervisor on.
const BYTES_MAX: u64 = 16 << 20;

/// The table of mounts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MountInfoError {
    /// The file could not be read.
    #[error("read {PATH}")]
    Read(#[source] std::io::Error),
    /// The file is larger than any sane host's.
    #[error("read {PATH}: more than {BYTES_MAX} bytes")]
    TooLarge,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, unique while it lives.
    pub id: u64,
    /// The number of the mount it is on.
    pub parent: u64,
    /// The directory of the file system that is its root; `/..` in front when that is outside a cgroup namespace.
    pub root: PathBuf,
    /// Where it is, seen from this process's root.
    pub mount_point: PathBuf,
    /// Whether this mount is read-only (the file system may be so beside it).
    pub read_only: bool,
    /// The file system's type, such as `ext4`.
    pub fs_type: String,
    /// Options of the file system, as the kernel lists them.
    pub super_options: String,
}

/// Reads this process's mounts.
///
/// # Errors
/// [`MountInfoError`] when `/proc` cannot be read or the table is beyond 16 MiB.
pub fn read() -> Result<Vec<Mount>, MountInfoError> {
    let mut text = Vec::new();
    let file = std::fs::File::open(PATH).map_err(MountInfoError::Read)?;
    let read = file.take(BYTES_MAX + 1).read_to_end(&mut text).map_err(MountInfoError::Read)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > BYTES_MAX {
        return Err(MountInfoError::TooLarge);
    }
    Ok(parse(&text))
}

/// Parses the text of a mountinfo file.
///
/// A line that is not of the format is left out: one strange mount must not hide the others.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    fields.next()?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let options = fields.next()?;
    // Between the options and a lone "-" stand any number of tagged fields (propagation).
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    fields.next()?;
    let super_options = text(fields.next()?);
    let read_only = options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount { id, parent, root: path(root), mount_point: path(mount_point), read_only, fs_type, super_options })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Undoes the kernel's `\ooo` for space, tab, newline, backslash and `#`. Anything else stands for itself.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(octal);
        if let Some(byte) = octal {
            out.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    let mut value: u16 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + u16::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_propagation_fields() {
        let mounts =
            parse(b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n");
        assert_eq!(
            mounts,
            vec![Mount {
                id: 36,
                parent: 35,
                root: "/mnt1".into(),
                mount_point: "/mnt2".into(),
                read_only: false,
                fs_type: "ext3".into(),
                super_options: "rw,errors=continue".into(),
            }]
        );
    }

    #[test]
    fn escapes_become_bytes() {
        let mounts = parse(b"1 2 0:1 / /a\\040b\\011c\\012d\\134040 ro - tmpfs none rw");
        assert_eq!(mounts[0].mount_point, PathBuf::from("/a b\tc\nd\\040"));
        assert!(mounts[0].read_only);
    }

    #[test]
    fn escapes_that_are_none_stand_for_themselves() {
        assert_eq!(unescape(b"\\9\\77\\777x\\"), b"\\9\\77\\777x\\");
    }

    #[test]
    fn malformed_lines_hide_nothing() {
        let text = b"garbage\n\n1 2 0:1 / / rw\n1 x 0:1 / / rw - a b c\n41 31 0:38 / /u rw - cgroup2 cgroup2 rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].fs_type, "cgroup2");
    }

    #[test]
    fn the_live_table_has_a_root() {
        assert!(read().unwrap().iter().any(|mount| mount.mount_point.as_os_str() == "/"));
    }
}
