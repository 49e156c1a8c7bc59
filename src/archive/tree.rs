//! The target on the disk, through descriptors: nothing here follows a link, leaves the target or crosses a mount.
//!
//! Owns the way from a name to its directory, and removal. `unpack` decides what goes where.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, openat2, statat, unlinkat};
use rustix::io::Errno;

use super::names::{Name, split};
use super::refusal::{Refusal, writing};

/// How a name is resolved, whatever it is opened for. A link at its end is refused as well.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The target.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory that was used last: entries come directory by directory.
    last: Option<(Name, OwnedFd)>,
}

/// A place in a directory.
#[derive(Debug)]
pub(super) struct Spot<'t> {
    /// The directory.
    pub(super) dir: BorrowedFd<'t>,
    /// The name in it.
    pub(super) name: &'t [u8],
}

/// What to do about directories on the way that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Make them.
    Make,
    /// There is nothing there, then.
    Leave,
}

impl Tree {
    /// Of this directory.
    #[must_use]
    pub(super) const fn new(root: OwnedFd) -> Self {
        Self { root, last: None }
    }

    /// The target itself.
    #[must_use]
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The place of a name other than the target's own; `None` where its directory is missing and is to be left so.
    ///
    /// # Errors
    /// A link or a file is in the way, or what the kernel says.
    pub(super) fn spot<'t>(&'t mut self, name: &'t [u8], missing: Missing) -> Result<Option<Spot<'t>>, Refusal> {
        let (parent, name) = split(name);
        if parent.is_empty() {
            return Ok(Some(Spot { dir: self.root.as_fd(), name }));
        }
        if self.last.as_ref().is_none_or(|(known, _)| known != parent) {
            self.last = match (self.open_dir(parent), missing) {
                (Ok(dir), _) => Some((parent.to_vec(), dir)),
                (Err(Errno::NOENT), Missing::Leave) => return Ok(None),
                (Err(Errno::NOENT), Missing::Make) => Some((parent.to_vec(), self.make_dirs(parent)?)),
                (Err(errno), _) => return Err(in_the_way(parent, errno)),
            };
        }
        Ok(self.last.as_ref().map(|(_, dir)| Spot { dir: dir.as_fd(), name }))
    }

    /// Opens what a name leads to.
    ///
    /// # Errors
    /// What the kernel says; ELOOP where a link is in the way, or at the end.
    pub(super) fn open(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if name.is_empty() { b"." } else { name };
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    }

    fn open_dir(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(name, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Makes every directory on the way to `name`, root's and open to all, and opens it.
    fn make_dirs(&self, name: &[u8]) -> Result<OwnedFd, Refusal> {
        let mut dir = self.open_dir(b"").map_err(writing("open", b""))?;
        let mut way: Name = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            if !way.is_empty() {
                way.push(b'/');
            }
            way.extend_from_slice(part);
            match mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(writing("make", &way)(errno)),
            }
            dir = self.open_dir(&way).map_err(|errno| in_the_way(&way, errno))?;
        }
        Ok(dir)
    }

    /// What directories were opened before may be elsewhere by now.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

fn in_the_way(name: &[u8], errno: Errno) -> Refusal {
    match errno {
        Errno::LOOP => Refusal::entry(name, "something is to go through it, and it is a symbolic link"),
        Errno::NOTDIR => Refusal::entry(name, "something is to go into it, and it is no directory"),
        errno => writing("open", name)(errno),
    }
}

impl Spot<'_> {
    /// What is there.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn look(&self) -> Result<Option<Stat>, Errno> {
        match statat(self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens what is there, following nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn open(&self, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        openat2(self.dir, self.name, flags | OFlags::CLOEXEC, mode, RESOLVE)
    }
}

/// Whether this is a directory.
#[must_use]
pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Removes `name`, which is `at` in its directory, and what is below it, but for what is in `kept`, and the directories that
/// lead there. Whether nothing of it is left.
///
/// What was unpacked is at most as deep as names are, and so is this recursion.
///
/// # Errors
/// What the kernel says.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &[u8], at: &CStr, kept: &BTreeSet<Name>) -> Result<bool, Refusal> {
    if kept.contains(name) && !is_real_dir(dir, at, name)? {
        return Ok(false);
    }
    match unlinkat(dir, at, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(writing("remove", name)(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = openat2(dir, at, flags, Mode::empty(), RESOLVE).map_err(writing("open", name))?;
    let emptied = clear(below.as_fd(), name, kept)?;
    if !emptied || kept.contains(name) {
        return Ok(false);
    }
    unlinkat(dir, at, AtFlags::REMOVEDIR).map_err(writing("remove", name))?;
    Ok(true)
}

fn is_real_dir(dir: BorrowedFd<'_>, at: &CStr, name: &[u8]) -> Result<bool, Refusal> {
    statat(dir, at, AtFlags::SYMLINK_NOFOLLOW).map(|stat| is_dir(&stat)).map_err(writing("look at", name))
}

/// Removes everything in a directory but what is `kept`; whether it is empty then.
///
/// # Errors
/// What the kernel says.
pub(super) fn clear(dir: BorrowedFd<'_>, name: &[u8], kept: &BTreeSet<Name>) -> Result<bool, Refusal> {
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(dir).map_err(writing("list", name))? {
        let entry = entry.map_err(writing("list", name))?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    let mut empty = true;
    for one in names {
        let path = if name.is_empty() { one.to_bytes().to_vec() } else { [name, b"/", one.to_bytes()].concat() };
        empty &= remove(dir, &path, &one, kept)?;
    }
    Ok(empty)
}
