//! A file of records that only grows, and is rotated: what is whole of a damaged one is written again, and one that is
//! removed is written anew from what the caller knows.
//!
//! Decides nothing about records. The daemon calls [`RecordLog::add`] for each and [`RecordLog::flush`] once a turn.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, fdatasync, fstat, ftruncate, openat, renameat};
use rustix::io::Errno;
use serde_json::Value;

use super::{
    BYTES_MAX, Inode, LINE_BYTES_MAX, Loaded, StateFileError, encode, failed, inode, load, read_all, write_all,
    write_anew,
};

/// Records that are only ever added, in two files of bounded size.
#[derive(Debug)]
pub struct RecordLog {
    dir: OwnedFd,
    name: &'static str,
    old_name: String,
    bytes_max: u64,
    file: Option<OwnedFd>,
    size: u64,
    inode: Inode,
    pending: Vec<u8>,
    /// `pending` is all that there is, and the file is to be written anew.
    stale: bool,
}

impl RecordLog {
    /// Reads the log `name` in `dir`, older records first. A file is rotated when it would grow beyond `bytes_max`.
    ///
    /// # Errors
    /// As [`StateFile::open`].
    pub fn open(
        dir: OwnedFd,
        name: &'static str,
        bytes_max: u64,
        stamp: u64,
    ) -> Result<(Self, Loaded), StateFileError> {
        let old_name = format!("{name}.1");
        let mut loaded = load(dir.as_fd(), &old_name, stamp)?;
        let newer = load(dir.as_fd(), name, stamp)?;
        loaded.records.extend(newer.records);
        loaded.damage = loaded.damage.or(newer.damage);
        let (file, pending) = (None, Vec::new());
        let mut log = Self { dir, name, old_name, bytes_max, file, size: 0, inode: (0, 0), pending, stale: false };
        if loaded.damage.is_some() {
            // What was put aside is read by nobody again: what is whole of it has to stand elsewhere.
            let whole = loaded.records.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_ref()?)));
            log.restore(whole.collect::<Vec<_>>());
        }
        Ok((log, loaded))
    }

    /// Has the file written anew by the next [`Self::flush`], with these records, all that are known, oldest first: as many
    /// of the latest as two files hold.
    pub fn restore<'r>(
        &mut self,
        records: impl IntoIterator<Item = (&'r str, &'r Value), IntoIter: DoubleEndedIterator>,
    ) {
        let mut room = self.bytes_max.saturating_mul(2);
        let mut lines = Vec::new();
        for (key, value) in records.into_iter().rev() {
            let line = encode(key, value);
            let Some(left) = room.checked_sub(line.len() as u64) else { break };
            room = left;
            lines.push(line);
        }
        self.pending = lines.into_iter().rev().flatten().collect();
        self.stale = true;
    }

    /// Whether the file is another one by now than the one that is written, or none.
    #[must_use]
    pub fn was_replaced(&self) -> bool {
        self.file.is_some() && inode(self.dir.as_fd(), self.name) != Some((self.inode.0, self.inode.1, self.size))
    }

    /// Adds a record; written at the next [`Self::flush`].
    pub fn add(&mut self, key: &str, value: &Value) {
        let line = encode(key, value);
        // What a full disk keeps from being written is bounded too.
        if line.len() <= LINE_BYTES_MAX && (self.pending.len() + line.len()) as u64 <= self.bytes_max {
            self.pending.extend_from_slice(&line);
        }
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// The kernel's reason; it is tried again by the next call.
    pub fn flush(&mut self) -> Result<(), StateFileError> {
        // It is opened with the first flush, so that a full table of descriptors is met at the start and not at the first death.
        if self.pending.is_empty() && self.file.is_some() && !self.stale {
            return Ok(());
        }
        let dir = self.dir.as_fd();
        if self.stale {
            let (file, inode) = write_anew(dir, self.name, &self.pending, 0)?;
            (self.file, self.inode, self.size) = (Some(file), inode, self.pending.len() as u64);
            self.pending.clear();
            self.stale = false;
            return Ok(());
        }
        if self.file.is_some() && inode(dir, self.name).map(|found| (found.0, found.1)) != Some(self.inode) {
            self.file = None;
        }
        if self.size > 0 && self.size.saturating_add(self.pending.len() as u64) > self.bytes_max {
            match renameat(dir, self.name, dir, self.old_name.as_str()) {
                Ok(()) | Err(Errno::NOENT) => self.file = None,
                Err(errno) => return Err(failed("rotate", self.name)(errno)),
            }
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        match write_all(file, &self.pending) {
            Ok(()) => {
                self.size = self.size.saturating_add(self.pending.len() as u64);
                self.pending.clear();
                Ok(())
            }
            Err(errno) => {
                match ftruncate(file, self.size) {
                    Ok(()) | Err(_) => {}
                }
                Err(failed("write", self.name)(errno))
            }
        }
    }

    fn reopen(&mut self) -> Result<(), StateFileError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || openat(&self.dir, self.name, flags, Mode::RUSR | Mode::WUSR);
        let file = match open() {
            Err(Errno::ISDIR | Errno::LOOP | Errno::NXIO) => {
                crate::host::workdir::remove(self.dir.as_fd(), self.name)
                    .map_err(|error| failed("replace", self.name)(io::Error::other(error.to_string())))?;
                open()
            }
            opened => opened,
        }
        .map_err(failed("open", self.name))?;
        let stat = fstat(&file).map_err(failed("open", self.name))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let whole = self.whole_bytes(size).map_err(failed("read", self.name))?;
        if whole < size {
            // A line that a kill has cut short would swallow the next one.
            ftruncate(&file, whole).map_err(failed("cut", self.name))?;
        }
        self.inode = (stat.st_dev, stat.st_ino);
        self.size = whole;
        self.file = Some(file);
        Ok(())
    }

    /// Up to where the file has whole lines.
    fn whole_bytes(&self, size: u64) -> Result<u64, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let bytes = read_all(&openat(&self.dir, self.name, flags, Mode::empty())?, size.min(BYTES_MAX))?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        Ok(end as u64)
    }

    /// Waits until the disk has it, as [`StateFile::sync`].
    ///
    /// # Errors
    /// EIO; what was written before may be lost.
    pub fn sync(&self) -> Result<(), StateFileError> {
        self.file.as_ref().map_or(Ok(()), |file| fdatasync(file).map_err(failed("sync", self.name)))
    }
}
