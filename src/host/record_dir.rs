//! A directory of the daemon's own with a file for each thing it tells of: written whole or not at all, for scripts to read.
//!
//! Every file is written to a temporary name beside it and renamed, through the directory's descriptor and without following
//! links. Nothing is synced to the disk: whoever loses power makes the files anew. Never reads a file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, fstat, openat, renameat, unlinkat};
use rustix::io::{Errno, retry_on_intr, write};

use super::own_dir::{OwnDirError, own_dir};

/// What a temporary name ends with; it begins with a dot.
const TEMPORARY: &str = ".new";

/// A file of such a directory cannot be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct RecordError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directory.
#[derive(Debug)]
pub struct RecordDir {
    dir: OwnedFd,
    path: PathBuf,
}

impl RecordDir {
    /// Opens it, and makes it where it is missing, for root alone.
    ///
    /// # Errors
    /// As [`own_dir`].
    pub fn open(path: &Path) -> Result<Self, OwnDirError> {
        Ok(Self { dir: own_dir(path, 0o700)?, path: path.to_owned() })
    }

    /// Makes it anew if it is no longer where it was; whether that was so.
    ///
    /// # Errors
    /// As [`own_dir`].
    pub fn renew(&mut self) -> Result<bool, OwnDirError> {
        let there = Self::open(&self.path)?;
        let which = |dir: &OwnedFd| fstat(dir).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        let moved = which(&self.dir) != which(&there.dir);
        if moved {
            *self = there;
        }
        Ok(moved)
    }

    /// Writes one file whole, readable for root alone.
    ///
    /// # Errors
    /// [`RecordError`]; then the file is what it was.
    pub fn write(&self, name: &str, content: &str) -> Result<(), RecordError> {
        let temporary = format!(".{name}{TEMPORARY}");
        let written = self.fill(&temporary, content.as_bytes());
        let renamed = written.and_then(|()| renameat(&self.dir, &temporary, &self.dir, name));
        renamed.map_err(|errno| {
            // Whatever came of it, it is found and removed at the next start.
            unlinkat(&self.dir, &temporary, AtFlags::empty()).unwrap_or_default();
            self.failed("write", name)(errno)
        })
    }

    fn fill(&self, name: &str, mut content: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match open() {
            // Left by a daemon that was killed in between.
            Err(Errno::EXIST) => {
                unlinkat(&self.dir, name, AtFlags::empty())?;
                open()?
            }
            opened => opened?,
        };
        while !content.is_empty() {
            let count = retry_on_intr(|| write(&file, content))?;
            content = content.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Removes one file; one that is not there is none.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn remove(&self, name: &str) -> Result<(), RecordError> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", name)(errno)),
        }
    }

    /// Removes every file whose name ends with `suffix`, and what was never renamed.
    ///
    /// # Errors
    /// [`RecordError`]: the directory cannot be listed, or one of them not be removed.
    pub fn clear(&self, suffix: &str) -> Result<(), RecordError> {
        let list = || -> Result<Vec<String>, Errno> {
            let names = Dir::read_from(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect()
        };
        let own = |name: &String| name.ends_with(suffix) || (name.starts_with('.') && name.ends_with(TEMPORARY));
        for name in list().map_err(self.failed("list", "."))?.iter().filter(|name| own(name)) {
            self.remove(name)?;
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str, name: &str) -> impl FnOnce(Errno) -> RecordError + use<> {
        let path = self.path.join(name);
        move |errno| RecordError { operation, path, source: errno.into() }
    }
}

impl AsFd for RecordDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::test_needs::{Need, met};

    fn names(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_and_a_link_in_its_place_is_replaced_and_not_followed() {
        if !met(&[Need::Root]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        let records = RecordDir::open(&path).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        std::fs::write(&elsewhere, "untouched").unwrap();
        std::os::unix::fs::symlink(&elsewhere, path.join("one.json")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path.join(".one.json.new")).unwrap();
        records.write("one.json", "{}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "untouched");
        assert_eq!(std::fs::read_to_string(path.join("one.json")).unwrap(), "{}\n");
        assert!(std::fs::symlink_metadata(path.join("one.json")).unwrap().is_file());
        assert_eq!(names(&path), ["one.json"]);
        records.remove("one.json").unwrap();
        records.remove("one.json").unwrap();
        assert!(names(&path).is_empty());
    }

    #[test]
    fn what_is_somebody_elses_stays_and_a_directory_that_has_gone_is_made_anew() {
        if !met(&[Need::Root]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        let mut records = RecordDir::open(&path).unwrap();
        for name in ["stale.json", ".half.json.new", "notes.txt"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        records.clear(".json").unwrap();
        assert_eq!(names(&path), ["notes.txt"]);
        assert!(!records.renew().unwrap());
        std::fs::remove_dir_all(&path).unwrap();
        assert!(records.write("one.json", "").is_err());
        assert!(records.renew().unwrap());
        records.write("one.json", "").unwrap();
        assert_eq!(names(&path), ["one.json"]);
    }
}
