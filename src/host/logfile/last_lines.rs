//! Reads the last lines of a worker's log, over its rotated files, newest first.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, pread, retry_on_intr};

use super::{KEEP_MAX, LogFileError, check_name, current, rotated};

/// At most this much is read, over all files, in bytes.
const BYTES_MAX: usize = 1 << 20;

/// The end of a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LastLines {
    /// Lines without their newline, oldest first.
    pub lines: VecDeque<Vec<u8>>,
    /// Whether there are fewer than were asked for because 1 MiB was read.
    pub truncated: bool,
}

/// Reads the last `count` lines of `worker`'s log in `dir`, at most 1 MiB. A log that does not exist has no lines.
///
/// # Errors
/// When a file cannot be read, is a link or no regular file.
pub fn read_last_lines(dir: BorrowedFd<'_>, worker: &str, count: usize) -> Result<LastLines, LogFileError> {
    check_name(worker)?;
    let mut last = LastLines::default();
    let mut room = BYTES_MAX;
    for number in 0..=KEEP_MAX {
        let name = if number == 0 { current(worker) } else { rotated(worker, number) };
        let Some(end) = read_end(dir, name, room)? else {
            // Between a rotation and the next line there is no current file.
            if number == 0 { continue } else { break }
        };
        room -= end.bytes.len();
        add(&mut last, &end, count);
        if last.lines.len() == count {
            return Ok(last);
        }
        if !end.whole {
            last.truncated = true;
            break;
        }
    }
    Ok(last)
}

struct FileEnd {
    bytes: Vec<u8>,
    /// Whether that is the whole file.
    whole: bool,
}

/// Puts the lines of an older file in front, as many as are missing.
fn add(last: &mut LastLines, end: &FileEnd, count: usize) {
    let bytes = end.bytes.strip_suffix(b"\n").unwrap_or(&end.bytes);
    if bytes.is_empty() && end.bytes.is_empty() {
        return;
    }
    let mut lines = bytes.rsplit(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        // The first line of a part of a file is a part of a line.
        let first_of_part = lines.peek().is_none() && !end.whole;
        if last.lines.len() == count || first_of_part {
            return;
        }
        last.lines.push_front(line.to_vec());
    }
}

/// The last `room` bytes of a file, `None` if there is no such file.
fn read_end(dir: BorrowedFd<'_>, name: String, room: usize) -> Result<Option<FileEnd>, LogFileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(dir, name.as_str(), flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(source) => return Err(LogFileError::Open { name, source }),
    };
    let stat = match fstat(&file) {
        Ok(stat) => stat,
        Err(source) => return Err(LogFileError::Read { name, source }),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(LogFileError::NotRegular { name });
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let wanted = usize::try_from(size).unwrap_or(usize::MAX).min(room);
    let start = size - u64::try_from(wanted).unwrap_or(size);
    let mut bytes = vec![0; wanted];
    let mut filled = 0;
    while filled < wanted {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let offset = start + u64::try_from(filled).unwrap_or(0);
        match retry_on_intr(|| pread(&file, &mut *rest, offset)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(source) => return Err(LogFileError::Read { name, source }),
        }
    }
    bytes.truncate(filled);
    Ok(Some(FileEnd { bytes, whole: start == 0 }))
}
