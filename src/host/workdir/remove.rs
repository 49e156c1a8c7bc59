//! Removes a tree that a hostile worker filled: iteratively, through directory descriptors, with bounded depth and budget.
//!
//! Nothing is followed and no mount is crossed. Depth costs neither stack nor descriptors: at [`DEPTH_MAX`] a directory is
//! moved up beside the top's own entries and met again there (HARDENING U4, U5). `..` is never used, since it leads
//! wherever the directory has been moved meanwhile.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Dir, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;

use super::{WorkDirError, check_name, open_dir};

/// At most this many directories are open at once.
const DEPTH_MAX: usize = 24;

/// What it takes to reach something removable and remove it.
const BUDGET_MIN: usize = 4 * DEPTH_MAX;

/// How far a removal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing is left, or nothing was there.
    Done,
    /// The budget is spent; call again.
    MoreWork,
}

/// One directory on the way down.
struct Level {
    dir: Dir,
    name: CString,
}

/// What stopped a walk.
enum Stop {
    Budget,
    Failed(CString, Errno),
}

/// Removes `name` in `parent` and all below it, however long that takes; for a helper process.
///
/// # Errors
/// As [`remove_bounded`].
pub fn remove(parent: BorrowedFd<'_>, name: &str) -> Result<(), WorkDirError> {
    while remove_bounded(parent, name, usize::MAX)? == Removal::MoreWork {}
    Ok(())
}

/// Removes `name` in `parent` and what is below it, at most `budget` entries of it (each costs one or two system calls).
///
/// Each call walks down anew, so a budget below 96 is taken as 96: less could spend itself on the way.
///
/// # Errors
/// When something cannot be removed, a mount above all; what was removed before stays removed.
pub fn remove_bounded(parent: BorrowedFd<'_>, name: &str, budget: usize) -> Result<Removal, WorkDirError> {
    check_name(name)?;
    let budget = budget.max(BUDGET_MIN);
    match (Walk { parent, name, stack: Vec::new(), budget, lifted: 0 }).run() {
        Ok(()) => Ok(Removal::Done),
        Err(Stop::Budget) => Ok(Removal::MoreWork),
        Err(Stop::Failed(entry, source)) => Err(WorkDirError::Remove {
            name: name.to_owned(),
            entry: entry.to_string_lossy().chars().take(200).collect(),
            source,
        }),
    }
}

struct Walk<'w> {
    parent: BorrowedFd<'w>,
    name: &'w str,
    stack: Vec<Level>,
    budget: usize,
    /// How many directories were moved up, for their new names.
    lifted: u64,
}

impl Walk<'_> {
    fn run(mut self) -> Result<(), Stop> {
        let name = CString::new(self.name).or(Err(Stop::Failed(c"".into(), Errno::INVAL)))?;
        if self.take(self.parent, &name)? {
            return Ok(());
        }
        self.push(self.parent, name)?;
        while let Some(level) = self.stack.last_mut() {
            match level.dir.read() {
                Some(entry) => {
                    let entry = entry.map_err(|errno| Stop::Failed(level.name.clone(), errno))?;
                    let name = entry.file_name();
                    if name != c"." && name != c".." {
                        let name = name.to_owned();
                        self.enter_or_take(name)?;
                    }
                }
                None => self.leave()?,
            }
        }
        Ok(())
    }

    fn enter_or_take(&mut self, name: CString) -> Result<(), Stop> {
        let Some(level) = self.stack.last() else { return Ok(()) };
        let dir = fd(level)?;
        if spend(&mut self.budget).and_then(|()| take(dir, &name))? {
            return Ok(());
        }
        if self.stack.len() < DEPTH_MAX {
            return self.descend(name);
        }
        self.lift(&name)
    }

    fn take(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Stop> {
        spend(&mut self.budget)?;
        take(dir, name)
    }

    fn descend(&mut self, name: CString) -> Result<(), Stop> {
        let Some(level) = self.stack.last() else { return Ok(()) };
        let opened = open(fd(level)?, &name)?;
        self.stack.extend(opened.map(|dir| Level { dir, name }));
        Ok(())
    }

    fn push(&mut self, parent: BorrowedFd<'_>, name: CString) -> Result<(), Stop> {
        let opened = open(parent, &name)?;
        self.stack.extend(opened.map(|dir| Level { dir, name }));
        Ok(())
    }

    /// Moves a directory that lies too deep to the top, under a name that is free there.
    fn lift(&mut self, name: &CStr) -> Result<(), Stop> {
        let (Some(top), Some(level)) = (self.stack.first(), self.stack.last()) else { return Ok(()) };
        let (from, to) = (fd(level)?, fd(top)?);
        loop {
            spend(&mut self.budget)?;
            self.lifted = self.lifted.wrapping_add(1);
            let free = format!(".removing-{}", self.lifted);
            match renameat_with(from, name, to, free.as_str(), RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Stop::Failed(name.to_owned(), errno)),
            }
        }
    }

    /// Removes the directory that was read to its end, or reads it again if there is still something in it: lifted
    /// directories, or what a file system skipped because entries vanished while it was listed.
    fn leave(&mut self) -> Result<(), Stop> {
        let Some(mut level) = self.stack.pop() else { return Ok(()) };
        spend(&mut self.budget)?;
        let parent = match self.stack.last() {
            Some(above) => fd(above)?,
            None => self.parent,
        };
        match unlinkat(parent, &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                level.dir.rewind();
                self.stack.push(level);
                Ok(())
            }
            Err(errno) => Err(Stop::Failed(level.name, errno)),
        }
    }
}

fn spend(budget: &mut usize) -> Result<(), Stop> {
    *budget = budget.checked_sub(1).ok_or(Stop::Budget)?;
    Ok(())
}

/// Removes one entry that is no directory, or an empty one. `false` is a directory with something in it.
fn take(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Stop> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // Linux says EISDIR for a directory; some file systems say EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(Stop::Failed(name.to_owned(), errno)),
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOTDIR) => Err(Stop::Failed(name.to_owned(), Errno::PERM)),
        Err(errno) => Err(Stop::Failed(name.to_owned(), errno)),
    }
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<Dir>, Stop> {
    match open_dir(parent, name).and_then(Dir::new) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Stop::Failed(name.to_owned(), errno)),
    }
}

fn fd(level: &Level) -> Result<BorrowedFd<'_>, Stop> {
    level.dir.fd().map_err(|errno| Stop::Failed(level.name.clone(), errno))
}
