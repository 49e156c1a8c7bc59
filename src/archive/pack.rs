//! Packs what lies below `/` of the process that is shut in: a directory that its workers may change meanwhile.
//!
//! Nothing is followed and no other mount is entered; a name is opened once, and what was opened is what is packed, whatever
//! the name leads to by then (HARDENING F11). A file that changes while it is read has the length that it had when it was
//! opened, and is counted, so that whoever asked knows. What disappears meanwhile is left out; sockets and devices are too.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, openat2, readlinkat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::refusal::{Refusal, writing};
use super::write::{Kind, Meta, Writer};

/// The longest path that a reader of ours takes, in bytes.
const PATH_BYTES_MAX: usize = 4095;
/// Files with several names that are remembered.
const LINKS_MAX: usize = 1 << 20;
/// More entries than that of one directory are not packed.
const NAMES_MAX: usize = 1 << 20;

/// What is packed, and what beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Only these entries of the directory; all where there are none.
    pub only: Vec<String>,
    /// Before every path: empty, or with a slash at its end.
    pub prefix: String,
    /// Files that come first: name and content.
    pub head: Vec<(String, String)>,
    /// The name of a file that comes last and says what there is.
    pub tail: Option<String>,
}

/// What was packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Entries, without those of head and tail.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Files that changed while they were read.
    pub changed: u64,
    /// Sockets and devices, which no archive keeps.
    pub left_out: u64,
}

const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Packs `root` into `out`.
///
/// # Errors
/// [`Refusal`]; then what is in `out` is no archive.
pub(super) fn pack(
    root: &OwnedFd,
    wanted: &Pack,
    out: File,
    mut progress: impl FnMut(&Packed),
) -> Result<Packed, Refusal> {
    let mut packer = Packer {
        root,
        prefix: wanted.prefix.as_bytes(),
        writer: Writer::new(out),
        packed: Packed::default(),
        links: BTreeMap::new(),
        progress: &mut progress,
    };
    let own = Meta { mode: 0o600, ..Meta::default() };
    for (name, text) in &wanted.head {
        packer.writer.file(name.as_bytes(), own, text.as_bytes()).map_err(writing("write", name.as_bytes()))?;
    }
    packer.tree(&wanted.only)?;
    let packed = packer.packed;
    if let Some(name) = &wanted.tail {
        let text = serde_json::to_string(&packed).unwrap_or_default();
        packer.writer.file(name.as_bytes(), own, text.as_bytes()).map_err(writing("write", name.as_bytes()))?;
    }
    let out = packer.writer.finish().map_err(writing("write", b"the archive"))?;
    // A pipe has nothing to sync.
    match rustix::fs::fsync(&out) {
        Ok(()) | Err(Errno::INVAL) => Ok(packed),
        Err(errno) => Err(writing("write", b"the archive")(errno)),
    }
}

struct Packer<'p> {
    root: &'p OwnedFd,
    prefix: &'p [u8],
    writer: Writer<File>,
    packed: Packed,
    /// Where a file with several names came first.
    links: BTreeMap<u64, Vec<u8>>,
    progress: &'p mut dyn FnMut(&Packed),
}

impl Packer<'_> {
    fn tree(&mut self, only: &[String]) -> Result<(), Refusal> {
        let mut left: Vec<Vec<u8>> = Vec::new();
        if only.is_empty() {
            self.directory(b"", &mut left)?;
        }
        for name in only.iter().rev() {
            let stat = match statat(self.root, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(errno) => return Err(writing("look at", name.as_bytes())(errno)),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                left.push(name.clone().into_bytes());
            }
        }
        while let Some(path) = left.pop() {
            self.directory(&path, &mut left)?;
        }
        Ok(())
    }

    /// Packs a directory and what is in it, but for the directories in it, which are for later.
    fn directory(&mut self, path: &[u8], left: &mut Vec<Vec<u8>>) -> Result<(), Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at: &[u8] = if path.is_empty() { b"." } else { path };
        let dir = match openat2(self.root, at, flags, Mode::empty(), BELOW) {
            Ok(dir) => dir,
            Err(errno) if is_gone(errno) => return Ok(()),
            Err(errno) => return Err(writing("open", path)(errno)),
        };
        let stat = fstat(&dir).map_err(writing("look at", path))?;
        self.entry(if path.is_empty() { b"." } else { path }, &Kind::Directory, &stat)?;
        let mut below = Vec::new();
        for name in names(&dir, path)? {
            let mut full = path.to_vec();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(name.as_bytes());
            if full.len() + self.prefix.len() > PATH_BYTES_MAX {
                return Err(Refusal::entry(&full, "its path is longer than any archive of ours may have"));
            }
            match self.one(dir.as_fd(), &name, &full) {
                Ok(true) => below.push(full),
                Ok(false) => {}
                Err(Stop::Gone) => {}
                Err(Stop::Refused(refusal)) => return Err(refusal),
            }
        }
        left.extend(below.into_iter().rev());
        Ok(())
    }

    /// Packs one entry; whether it is a directory, which is not packed yet.
    fn one(&mut self, dir: BorrowedFd<'_>, name: &CString, path: &[u8]) -> Result<bool, Stop> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| stop("look at", path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::RegularFile => self.file(dir, name, path)?,
            FileType::Symlink => {
                let target = match readlinkat(dir, name, Vec::new()) {
                    // It is no link any more.
                    Err(Errno::INVAL) => return Err(Stop::Gone),
                    read => read.map_err(|errno| stop("read", path, errno))?,
                };
                self.entry(path, &Kind::Symlink(target.into_bytes()), &stat)?;
            }
            FileType::Fifo => self.entry(path, &Kind::Fifo, &stat)?,
            FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                self.packed.left_out += 1;
            }
        }
        Ok(false)
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &CString, path: &[u8]) -> Result<(), Stop> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = openat2(dir, name, flags, Mode::empty(), BELOW).map_err(|errno| stop("open", path, errno))?;
        let before = fstat(&opened).map_err(|errno| stop("look at", path, errno))?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            // It was swapped for something else since it was listed.
            return Err(Stop::Gone);
        }
        if before.st_nlink > 1 {
            if let Some(first) = self.links.get(&before.st_ino) {
                let kind = Kind::HardLink(self.full(&first.clone()));
                return Ok(self.entry(path, &kind, &before)?);
            }
            if self.links.len() >= LINKS_MAX {
                return Err(Refusal::TooMuch { what: "files with several names", most: LINKS_MAX as u64 }.into());
            }
            self.links.insert(before.st_ino, path.to_vec());
        }
        let size = u64::try_from(before.st_size).unwrap_or(0);
        self.entry(path, &Kind::File(size), &before)?;
        let mut file = File::from(opened);
        let is_short = self.writer.content(&mut file).map_err(writing("pack", path))?;
        let after = fstat(&file).map_err(|errno| stop("look at", path, errno))?;
        let told = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        self.packed.changed += u64::from(is_short || told(&before) != told(&after));
        self.packed.bytes = self.packed.bytes.saturating_add(size);
        (self.progress)(&self.packed);
        Ok(())
    }

    fn full(&self, path: &[u8]) -> Vec<u8> {
        [self.prefix, path].concat()
    }

    fn entry(&mut self, path: &[u8], kind: &Kind, stat: &Stat) -> Result<(), Refusal> {
        let meta = Meta {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
        };
        self.packed.entries += 1;
        let full = self.full(path);
        self.writer.entry(&full, kind, meta).map_err(writing("pack", path))
    }
}

/// Why one entry is not packed.
enum Stop {
    /// It is not there any more, or something else is.
    Gone,
    /// It cannot be, nor can the rest.
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn stop(operation: &'static str, path: &[u8], errno: Errno) -> Stop {
    if is_gone(errno) { Stop::Gone } else { Stop::Refused(writing(operation, path)(errno)) }
}

/// What the kernel says of a name that somebody has just removed or put something else at: another mount too.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV | Errno::NXIO | Errno::AGAIN)
}

/// The names in a directory, in order.
fn names(dir: &OwnedFd, path: &[u8]) -> Result<Vec<CString>, Refusal> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(writing("list", path))?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() > NAMES_MAX {
            return Err(Refusal::TooMuch { what: "entries in one directory", most: NAMES_MAX as u64 });
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_name_leads_to_since_it_was_listed_is_not_packed() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(elsewhere.path().join("secret"), "of the host").unwrap();
        // Each was a file, or a directory, when its directory was read.
        symlink(elsewhere.path().join("secret"), dir.path().join("file")).unwrap();
        symlink(elsewhere.path(), dir.path().join("directory")).unwrap();
        symlink("file", dir.path().join("within")).unwrap();
        let root: OwnedFd = File::open(dir.path()).unwrap().into();
        let writer = Writer::new(tempfile::tempfile().unwrap());
        let (packed, links, progress) = (Packed::default(), BTreeMap::new(), &mut |_: &Packed| {});
        let mut packer = Packer { root: &root, prefix: b"", writer, packed, links, progress };
        for name in [c"file", c"within", c"directory"] {
            let done = packer.file(root.as_fd(), &name.to_owned(), name.to_bytes());
            assert!(matches!(done, Err(Stop::Gone)), "{name:?}");
        }
        let mut left = Vec::new();
        packer.directory(b"directory", &mut left).unwrap();
        assert_eq!((packer.packed, left), (Packed::default(), Vec::new()));
    }
}
