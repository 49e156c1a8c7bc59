//! The log files of one worker: whole lines, bounded in size and number, rotated by renaming through the directory.
//!
//! A disk that is full or broken costs log lines, which are counted, and never a worker. Reads no clock: the time comes with
//! the bytes. Never opens anything through a link. `daemon` calls [`LogFile::append`] with what a pipe gave,
//! [`LogFile::flush`] at the end of a worker and [`LogFile::tail`] for its death certificate.

mod last_lines;
mod lines;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, fstat, openat, renameat, statat, unlinkat};
use rustix::io::{Errno, retry_on_intr, write};
use serde::Serialize;

use crate::spec::LogSpec;

pub use last_lines::{LastLines, read_last_lines};
pub use lines::{End, LINE_BYTES_MAX, Lines};

/// A death certificate has at most this much of the last output, in bytes.
pub const TAIL_BYTES_MAX: usize = 4096;
/// More rotated files than this are never kept, nor looked for.
const KEEP_MAX: u32 = 100;
/// So many numbers in a row may be missing between two rotated files: each daemon that was killed while it moved them has left
/// one out.
const GAP_MAX: u32 = 8;

/// A log file could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// A name that is not one path component.
    #[error("name {name:?} is not a single path component")]
    Name {
        /// What was given.
        name: String,
    },
    /// The file could not be opened.
    #[error("open log file {name}")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// What has that name is no regular file.
    #[error("open log file {name}: not a regular file")]
    NotRegular {
        /// Its name.
        name: String,
    },
    /// The file could not be removed.
    #[error("remove log file {name}")]
    Remove {
        /// Its name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// The file could not be renamed.
    #[error("rename log file {name}")]
    Rename {
        /// Its name.
        name: String,
        /// Why.
        source: Errno,
    },
    /// The file could not be read.
    #[error("read log file {name}")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        source: Errno,
    },
}

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The log of one worker, over all its generations.
#[derive(Debug)]
pub struct LogFile {
    dir: OwnedFd,
    worker: String,
    spec: LogSpec,
    /// `None` after a rotation that could not open the next file; tried again with the next bytes.
    file: Option<OwnedFd>,
    size: u64,
    /// The file ends within a line, because a write was cut short.
    torn: bool,
    stdout: Lines,
    stderr: Lines,
    ring: VecDeque<u8>,
    dropped_bytes: u64,
}

/// One line of a JSON log.
#[derive(Debug, Serialize)]
struct Record<'r> {
    time: String,
    worker: &'r str,
    stream: Stream,
    text: Cow<'r, str>,
    /// Whether the line goes on in the next record of its stream.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

impl LogFile {
    /// Opens `<worker>.log` in `dir` for appending, and makes it if need be, mode 0640.
    ///
    /// # Errors
    /// When it cannot be opened, is a link, or is no regular file.
    pub fn open(dir: BorrowedFd<'_>, worker: &str, spec: LogSpec) -> Result<Self, LogFileError> {
        check_name(worker)?;
        let failed = |source| LogFileError::Open { name: current(worker), source };
        let dir =
            dir.try_clone_to_owned().map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let mut log = Self {
            dir,
            worker: worker.to_owned(),
            spec: LogSpec { keep: spec.keep.min(KEEP_MAX), ..spec },
            file: None,
            size: 0,
            torn: false,
            stdout: Lines::default(),
            stderr: Lines::default(),
            ring: VecDeque::new(),
            dropped_bytes: 0,
        };
        log.open_current()?;
        log.forget_surplus();
        Ok(log)
    }

    /// Removes all log files of `worker` from `dir`.
    ///
    /// # Errors
    /// When one is there and cannot be removed.
    pub fn forget(dir: BorrowedFd<'_>, worker: &str) -> Result<(), LogFileError> {
        check_name(worker)?;
        // The oldest first, so that none is left behind another that stayed.
        let last = last_rotated(dir, worker);
        for name in (1..=last).rev().map(|number| rotated(worker, number)).chain([current(worker)]) {
            match unlinkat(dir, name.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(source) => return Err(LogFileError::Remove { name, source }),
            }
        }
        Ok(())
    }

    /// Gives all log files of `worker` in `dir` another name, in the place of those that have it.
    ///
    /// # Errors
    /// When one is there and cannot be renamed.
    pub fn hand_over(dir: BorrowedFd<'_>, worker: &str, to: &str) -> Result<(), LogFileError> {
        check_name(worker)?;
        Self::forget(dir, to)?;
        let names = [(current(worker), current(to))].into_iter();
        let last = last_rotated(dir, worker);
        for (from, to) in names.chain((1..=last).map(|number| (rotated(worker, number), rotated(to, number)))) {
            match renameat(dir, from.as_str(), dir, to.as_str()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(source) => return Err(LogFileError::Rename { name: from, source }),
            }
        }
        Ok(())
    }

    /// Takes what a worker wrote. Whole lines are written; what follows the last newline waits for the next call or
    /// [`Self::flush`]. `wall` is the time of a JSON record.
    ///
    /// Never fails: bytes that cannot be written are counted by [`Self::dropped_bytes`].
    pub fn append(&mut self, stream: Stream, bytes: &[u8], wall: SystemTime) {
        self.remember(bytes);
        let mut lines = std::mem::take(self.lines(stream));
        let mut pending = Vec::new();
        lines.feed(bytes, |line, end| self.line(&mut pending, stream, line, end, wall));
        self.write(&pending);
        *self.lines(stream) = lines;
    }

    /// Writes what has no newline yet as lines, at the end of a worker.
    pub fn flush(&mut self, wall: SystemTime) {
        let mut pending = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.lines(stream).take();
            if !rest.is_empty() {
                self.line(&mut pending, stream, &rest, End::Newline, wall);
            }
        }
        self.write(&pending);
    }

    /// The last output of both streams as it came, at most 4 KiB, and forgets it: the next generation begins anew.
    pub fn tail(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ring).into()
    }

    /// What of one stream has no newline yet, and so is in no file yet.
    #[must_use]
    pub fn unfinished(&self, stream: Stream) -> &[u8] {
        match stream {
            Stream::Stdout => self.stdout.unfinished(),
            Stream::Stderr => self.stderr.unfinished(),
        }
    }

    /// How many bytes could not be written since it was opened.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    fn lines(&mut self, stream: Stream) -> &mut Lines {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        let last = bytes.get(bytes.len().saturating_sub(TAIL_BYTES_MAX)..).unwrap_or_default();
        let surplus = (self.ring.len() + last.len()).saturating_sub(TAIL_BYTES_MAX);
        self.ring.drain(..surplus.min(self.ring.len()));
        self.ring.extend(last);
    }

    /// Adds one line to `pending`, which is written first where the file would grow too large.
    fn line(&mut self, pending: &mut Vec<u8>, stream: Stream, line: &[u8], end: End, wall: SystemTime) {
        let before = pending.len();
        if self.spec.json {
            let record = Record {
                time: humantime::format_rfc3339_micros(wall).to_string(),
                worker: &self.worker,
                stream,
                text: String::from_utf8_lossy(line),
                cut: end == End::Cut,
            };
            if serde_json::to_writer(&mut *pending, &record).is_err() {
                pending.truncate(before);
                self.dropped_bytes = self.dropped_bytes.saturating_add(length(line));
                return;
            }
        } else {
            pending.extend_from_slice(line);
        }
        pending.push(b'\n');
        if self.size.saturating_add(length(pending)) > self.spec.max_bytes {
            let line = pending.split_off(before);
            self.write(pending);
            *pending = line;
            if self.size > 0 {
                self.rotate();
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.file.is_none() && self.open_current().is_err() {
            self.dropped_bytes = self.dropped_bytes.saturating_add(length(bytes));
            return;
        }
        let Some(file) = &self.file else { return };
        if self.torn && retry_on_intr(|| write(file, b"\n")) == Ok(1) {
            self.torn = false;
            self.size += 1;
        }
        while !bytes.is_empty() {
            match retry_on_intr(|| write(file, bytes)) {
                Ok(count) if count > 0 => {
                    self.size = self.size.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                    self.torn = bytes.get(count - 1) != Some(&b'\n');
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Ok(_) | Err(_) => {
                    self.dropped_bytes = self.dropped_bytes.saturating_add(length(bytes));
                    return;
                }
            }
        }
    }

    /// Moves every file one number up, the last over the edge, and begins a new one. What cannot be moved stays: the worst
    /// that happens is a file that grows beyond its limit, and the next line tries again.
    fn rotate(&mut self) {
        let dir = self.dir.as_fd();
        for number in (1..self.spec.keep).rev() {
            let (from, to) = (rotated(&self.worker, number), rotated(&self.worker, number + 1));
            // Most of these names do not exist yet.
            renameat(dir, from, dir, to).unwrap_or_default();
        }
        let moved = if self.spec.keep == 0 {
            unlinkat(dir, current(&self.worker), AtFlags::empty())
        } else {
            renameat(dir, current(&self.worker), dir, rotated(&self.worker, 1))
        };
        if moved.is_ok() {
            self.file = None;
            self.size = 0;
            self.torn = false;
        }
    }

    fn open_current(&mut self) -> Result<(), LogFileError> {
        let name = current(&self.worker);
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let opened = openat(&self.dir, name.as_str(), flags, Mode::from_raw_mode(0o640));
        let (file, stat) = match opened.and_then(|file| fstat(&file).map(|stat| (file, stat))) {
            Ok(opened) => opened,
            Err(source) => return Err(LogFileError::Open { name, source }),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(LogFileError::NotRegular { name });
        }
        self.size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.size == 0 {
            // The umask has taken its share of a file that was just made.
            fchmod(&file, Mode::from_raw_mode(0o640)).map_err(|source| LogFileError::Open { name, source })?;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Removes rotated files beyond the number to keep, left from a time when more were kept.
    fn forget_surplus(&self) {
        for number in self.spec.keep + 1..=KEEP_MAX {
            if unlinkat(&self.dir, rotated(&self.worker, number), AtFlags::empty()).is_err() {
                break;
            }
        }
    }
}

/// The number of the last rotated file; 0 is none.
fn last_rotated(dir: BorrowedFd<'_>, worker: &str) -> u32 {
    let mut last = 0;
    for number in 1..=KEEP_MAX {
        if statat(dir, rotated(worker, number), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            last = number;
        } else if number - last > GAP_MAX {
            break;
        }
    }
    last
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn current(worker: &str) -> String {
    format!("{worker}.log")
}

fn rotated(worker: &str, number: u32) -> String {
    format!("{worker}.log.{number}")
}

fn check_name(name: &str) -> Result<(), LogFileError> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(LogFileError::Name { name: name.chars().take(80).collect() });
    }
    Ok(())
}
