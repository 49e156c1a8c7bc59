//! The directory of one worker: made with its links through directory descriptors, removed without following anything.
//!
//! The parent is owned by root with mode 0700, so nobody races while a directory is built; the directory itself belongs to
//! the worker, which may put anything into it, so removal trusts nothing it finds. Never resolves a path that a worker can
//! write to. `daemon` calls [`expand_links`] once per pool and [`WorkDir::create`] per spawn; [`remove_bounded`] takes small
//! trees in the loop, [`remove`] large ones in a helper process.

mod links;
mod remove;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, linkat, mkdirat, openat,
    openat2, symlinkat,
};
use rustix::io::Errno;

pub use links::{LinkEntry, expand_links};
pub use remove::{Removal, remove, remove_bounded};

/// One worker's copies together never exceed this: they are made inline, and a directory is not an image.
pub const COPY_BYTES_MAX: u64 = 64 << 20;

/// An operation on a worker's directory failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkDirError {
    /// A name that is not one path component.
    #[error("name {name:?} is not a single path component")]
    Name {
        /// What was given.
        name: String,
    },
    /// A link pattern is not an absolute path or not a valid pattern.
    #[error("link pattern {pattern:?}: {expected}")]
    Pattern {
        /// As it was written.
        pattern: String,
        /// What is wrong with it.
        expected: &'static str,
    },
    /// A link pattern matches nothing that exists.
    #[error("link pattern {pattern:?} matches no file")]
    NoMatch {
        /// As it was written.
        pattern: String,
    },
    /// A directory met while matching could not be read.
    #[error("expand link pattern {pattern:?}")]
    Expand {
        /// As it was written.
        pattern: String,
        /// Why.
        source: io::Error,
    },
    /// Too many files match.
    #[error("link patterns match more than {} files", links::ENTRIES_MAX)]
    TooMany,
    /// Two files would have the same name in the directory.
    #[error("links {} and {} would have the same name", first.display(), second.display())]
    SameName {
        /// One source.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The directory could not be made.
    #[error("create work directory {name}")]
    Create {
        /// Its name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// A link could not be made.
    #[error("link {} into work directory {name}", path.display())]
    Link {
        /// The directory.
        name: String,
        /// The source.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only a regular file can be there as a hard link or copy.
    #[error("link {} into work directory {name}: only a regular file can be copied", path.display())]
    NotRegular {
        /// The directory.
        name: String,
        /// The source.
        path: PathBuf,
    },
    /// The copies are beyond [`COPY_BYTES_MAX`].
    #[error("link {} into work directory {name}: copies exceed {COPY_BYTES_MAX} bytes", path.display())]
    CopyTooLarge {
        /// The directory.
        name: String,
        /// The source.
        path: PathBuf,
    },
    /// Something in a directory could not be removed.
    #[error("remove {entry} in work directory {name}")]
    Remove {
        /// The directory.
        name: String,
        /// What was met.
        entry: String,
        /// Why; `EBUSY` and `EXDEV` mean that something is mounted there.
        source: Errno,
    },
}

/// Which kind of link is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A symbolic link to the absolute source; right where the worker sees the host's files.
    Symlink,
    /// A hard link, a copy where that cannot be; for a worker with another root, where a symbolic link would dangle.
    HardLink,
}

/// How many links of which kind were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkReport {
    /// Symbolic links.
    pub symlinks: u32,
    /// Hard links.
    pub hard_links: u32,
    /// Copies.
    pub copies: u32,
}

/// Who a worker's directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Its user on the host.
    pub uid: u32,
    /// Its group on the host.
    pub gid: u32,
}

/// One worker's directory.
#[derive(Debug)]
pub struct WorkDir {
    dir: OwnedFd,
    name: String,
}

impl WorkDir {
    /// Makes directory `name` in `parent` with all `links` in it, mode 0700, owned by `owner`. Nothing is left of it on
    /// an error.
    ///
    /// # Errors
    /// When it exists, or a link cannot be made in any way that `prefer` allows.
    pub fn create(
        parent: BorrowedFd<'_>,
        name: &str,
        links: &[LinkEntry],
        prefer: LinkKind,
        owner: Owner,
    ) -> Result<(Self, LinkReport), WorkDirError> {
        check_name(name)?;
        let failed = |source| WorkDirError::Create { name: name.to_owned(), source };
        mkdirat(parent, name, Mode::RWXU).map_err(failed)?;
        let made = open_dir(parent, name).map_err(failed).and_then(|dir| {
            let work = Self { dir, name: name.to_owned() };
            let report = work.fill(links, prefer, owner)?;
            // Last, so that its owner meets a finished directory.
            give(work.dir.as_fd(), owner).map_err(failed)?;
            Ok((work, report))
        });
        if made.is_err() {
            remove(parent, name)?;
        }
        made
    }

    /// The directory, for listing and as the source of a mount.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its name in its parent.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn fill(&self, links: &[LinkEntry], prefer: LinkKind, owner: Owner) -> Result<LinkReport, WorkDirError> {
        let mut report = LinkReport::default();
        let mut room = COPY_BYTES_MAX;
        for link in links {
            match prefer {
                LinkKind::Symlink => {
                    symlinkat(link.source(), &self.dir, link.name())
                        .map_err(|errno| self.link_error(link.source(), errno.into()))?;
                    report.symlinks += 1;
                }
                LinkKind::HardLink => self.link_or_copy(link, owner, &mut room, &mut report)?,
            }
        }
        Ok(report)
    }

    fn link_or_copy(
        &self,
        link: &LinkEntry,
        owner: Owner,
        room: &mut u64,
        report: &mut LinkReport,
    ) -> Result<(), WorkDirError> {
        let failed = |error: io::Error| self.link_error(link.source(), error);
        // What the source names may lie in a directory of somebody else's; a link planted there must not make us hand
        // out another file.
        let source = open_source(link.source()).map_err(|errno| failed(errno.into()))?;
        let stat = fstat(&source).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(WorkDirError::NotRegular { name: self.name.clone(), path: link.source().to_owned() });
        }
        if linkat(&source, "", &self.dir, link.name(), AtFlags::EMPTY_PATH).is_ok() {
            report.hard_links += 1;
            return Ok(());
        }
        // Another file system, too many links, or no capability to link by descriptor: whichever, a copy says it all.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(&self.dir, link.name(), flags, Mode::RUSR | Mode::WUSR);
        let mut copy = File::from(copy.map_err(|errno| failed(errno.into()))?);
        let mut from = File::from(source).take(room.saturating_add(1));
        let copied = io::copy(&mut from, &mut copy).map_err(failed)?;
        *room = room
            .checked_sub(copied)
            .ok_or_else(|| WorkDirError::CopyTooLarge { name: self.name.clone(), path: link.source().to_owned() })?;
        give(copy.as_fd(), owner).map_err(|errno| failed(errno.into()))?;
        // Permission bits alone: a copy is nobody's set-user-ID program.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
        fchmod(&copy, mode).map_err(|errno| failed(errno.into()))?;
        report.copies += 1;
        Ok(())
    }

    fn link_error(&self, path: &Path, source: io::Error) -> WorkDirError {
        WorkDirError::Link { name: self.name.clone(), path: path.to_owned(), source }
    }
}

fn check_name(name: &str) -> Result<(), WorkDirError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(WorkDirError::Name { name: name.chars().take(80).collect() });
    }
    Ok(())
}

fn give(fd: BorrowedFd<'_>, owner: Owner) -> Result<(), Errno> {
    fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
}

/// A directory below `parent`, neither through a link nor across a mount.
fn open_dir<P: rustix::path::Arg>(parent: BorrowedFd<'_>, name: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(parent, name, flags, Mode::empty(), resolve)
}

/// A source file, without following any link; without blocking, should it be a FIFO.
fn open_source(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)
}
