//! Directories of the daemon's own, opened only where nobody else could have put something in the way.
//!
//! Decides nothing but that: every directory on the way belongs to root and can be changed by root alone, or has the sticky
//! bit, under which nobody can rename what is root's. So a path that was opened here once means the same directory for ever.
//! `daemon` calls it once per directory at its start.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

/// A directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnDirError {
    /// A step on the way.
    #[error("{operation} {}", path.display())]
    Step {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Somebody but root could replace what is in this directory, or has made this link.
    #[error("{} can be changed by others than root", path.display())]
    NotOurs {
        /// Which.
        path: PathBuf,
    },
}

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

/// Opens the directory at `path`, an absolute one, and makes it with `mode` (and what is above it with 0755) where it is
/// missing.
///
/// # Errors
/// [`OwnDirError`].
pub fn own_dir(path: &Path, mode: u32) -> Result<OwnedFd, OwnDirError> {
    let mut left: VecDeque<OsString> = names(path);
    let mut at = PathBuf::from("/");
    let mut dir = open_dir(CWD, "/").map_err(step("open", &at))?;
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let sticky = check(dir.as_fd(), &at)?;
        let next = at.join(&name);
        if name == ".." {
            // Only a link's target has these; what it leads to is checked like everything else.
            dir = open_dir(dir.as_fd(), "..").map_err(step("open", &next))?;
            at = next;
            continue;
        }
        if let Some((owner, target)) = link_at(dir.as_fd(), &name).map_err(step("look at", &next))? {
            links += 1;
            if links > LINKS_MAX {
                return Err(step("open", &next)(Errno::LOOP));
            }
            if sticky && owner != 0 {
                return Err(OwnDirError::NotOurs { path: next });
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
                dir = open_dir(CWD, "/").map_err(step("open", &at))?;
            }
            for name in names(&target).into_iter().rev() {
                left.push_front(name);
            }
            continue;
        }
        dir = enter(dir.as_fd(), &name, if left.is_empty() { mode } else { 0o755 }).map_err(step("open", &next))?;
        at = next;
    }
    let sticky = check(dir.as_fd(), &at)?;
    if sticky { Err(OwnDirError::NotOurs { path: at }) } else { Ok(dir) }
}

fn step(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> OwnDirError + use<> {
    let path = path.to_owned();
    move |errno| OwnDirError::Step { operation, path, source: errno.into() }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Whether others may add to this directory, though not rename what is in it.
fn check(dir: BorrowedFd<'_>, at: &Path) -> Result<bool, OwnDirError> {
    let stat = fstat(dir).map_err(step("look at", at))?;
    let shared = stat.st_mode & 0o022 != 0;
    let sticky = stat.st_mode & 0o1000 != 0;
    if stat.st_uid != 0 || (shared && !sticky) {
        return Err(OwnDirError::NotOurs { path: at.to_owned() });
    }
    Ok(shared)
}

/// The owner and the target of a symbolic link, if it is one.
fn link_at(dir: BorrowedFd<'_>, name: &OsString) -> Result<Option<(u32, PathBuf)>, Errno> {
    let stat = match statat(dir, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = readlinkat(dir, name.as_os_str(), Vec::new())?;
    Ok(Some((stat.st_uid, OsString::from_vec(target.into_bytes()).into())))
}

/// Opens a directory that is no link, making it if need be.
fn enter(dir: BorrowedFd<'_>, name: &OsString, mode: u32) -> Result<OwnedFd, Errno> {
    match mkdirat(dir, name.as_os_str(), Mode::from_raw_mode(mode)) {
        Ok(()) => {
            let made = open_dir(dir, name.as_os_str())?;
            // The umask took its share. Should somebody have swapped it, its owner will be seen not to be root.
            fchmod(&made, Mode::from_raw_mode(mode))?;
            Ok(made)
        }
        Err(Errno::EXIST) => open_dir(dir, name.as_os_str()),
        Err(errno) => Err(errno),
    }
}

fn open_dir<P: rustix::path::Arg>(dir: BorrowedFd<'_>, name: P) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
