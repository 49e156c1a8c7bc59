//! What a program has written, as it wrote it, in files that together never grow beyond a bound: the last of it stays.
//!
//! Two files at the most, each named `NAME.FROM` by the place of its first byte: where the second is as long as half the
//! bound, the first is removed and another one begun. What a disk does not take is missing, and its place stays empty. Never
//! opens anything through a link. Bytes are counted from the first that was ever written.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::{Errno, pread, retry_on_intr, write};

/// A part of the output that is in one file.
#[derive(Debug)]
struct Part {
    from: u64,
    size: u64,
    /// Open while it is written.
    file: Option<OwnedFd>,
}

impl Part {
    const fn end(&self) -> u64 {
        self.from + self.size
    }
}

/// The output of one program.
#[derive(Debug)]
pub struct OutputFile {
    name: String,
    bytes_max: u64,
    /// Oldest first; at most two.
    parts: Vec<Part>,
    end: u64,
}

impl OutputFile {
    /// One that is empty, called `name`, which is a single path component without dots.
    #[must_use]
    pub const fn new(name: String, bytes_max: u64) -> Self {
        Self { name, bytes_max, parts: Vec::new(), end: 0 }
    }

    /// All that is in a directory, by name.
    ///
    /// # Errors
    /// The kernel's reason not to list it.
    pub fn find_all(dir: BorrowedFd<'_>, bytes_max: u64) -> Result<Vec<Self>, Errno> {
        let mut found: Vec<Self> = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let Ok(file_name) = entry.file_name().to_str() else { continue };
            let Some((name, from)) = file_name.split_once('.') else { continue };
            let (Ok(from), Ok(size)) = (from.parse::<u64>(), size_of(dir, file_name)) else { continue };
            let part = Part { from, size, file: None };
            match found.iter_mut().find(|output| output.name == name) {
                Some(output) => output.parts.push(part),
                None => found.push(Self { parts: vec![part], ..Self::new(name.to_owned(), bytes_max) }),
            }
        }
        for output in &mut found {
            output.parts.sort_by_key(|part| part.from);
            output.end = output.parts.last().map_or(0, Part::end);
        }
        Ok(found)
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The place behind the last byte that was written.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Adds what was written last. What cannot be kept is missing.
    ///
    /// # Errors
    /// The kernel's reason why some of it is.
    pub fn append(&mut self, dir: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
        let half = (self.bytes_max / 2).max(1);
        let mut rest = bytes;
        let mut outcome = Ok(());
        while !rest.is_empty() {
            // Behind a gap, or where the last is full, another one begins.
            let goes_on = |part: &Part| part.end() == self.end && part.size < half;
            if !self.parts.last().is_some_and(goes_on)
                && let Err(errno) = self.begin(dir)
            {
                outcome = Err(errno);
                break;
            }
            let Some(part) = self.parts.last_mut() else { break };
            let room = usize::try_from(half.saturating_sub(part.size)).unwrap_or(usize::MAX);
            let piece = rest.get(..room.min(rest.len())).unwrap_or_default();
            match part.write(dir, &self.name, piece) {
                Ok(count) => {
                    part.size += length(count);
                    self.end += length(count);
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(errno) => {
                    outcome = Err(errno);
                    break;
                }
            }
        }
        self.end += length(rest.len());
        outcome
    }

    fn begin(&mut self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = file_name(&self.name, self.end);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        for part in &mut self.parts {
            part.file = None;
        }
        while self.parts.len() > 1 {
            let oldest = self.parts.remove(0);
            remove(dir, &file_name(&self.name, oldest.from))?;
        }
        self.parts.push(Part { from: self.end, size: 0, file: Some(file) });
        Ok(())
    }

    /// Nothing more is written.
    pub fn close(&mut self) {
        self.parts.iter_mut().for_each(|part| part.file = None);
    }

    /// The first place from `from` on whose byte is there; the end if none is.
    #[must_use]
    pub fn next_kept(&self, from: u64) -> u64 {
        let kept = self.parts.iter().filter(|part| part.size > 0 && part.end() > from);
        kept.map(|part| part.from.max(from)).next().unwrap_or(self.end)
    }

    /// At most `max` bytes from a place on: fewer where a file ends, none where nothing is kept.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn read(&self, dir: BorrowedFd<'_>, from: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let holds = |part: &&Part| part.from <= from && from < part.end();
        let Some(part) = self.parts.iter().find(holds) else { return Ok(Vec::new()) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, file_name(&self.name, part.from), flags, Mode::empty())?;
        let left = usize::try_from(part.end() - from).unwrap_or(usize::MAX);
        let mut read = vec![0; left.min(max)];
        let mut filled = 0;
        while filled < read.len() {
            let space = read.get_mut(filled..).unwrap_or_default();
            let count = retry_on_intr(|| pread(&file, &mut *space, from - part.from + length(filled)))?;
            if count == 0 {
                break;
            }
            filled += count;
        }
        read.truncate(filled);
        Ok(read)
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// The kernel's reason why something is left.
    pub fn forget(&mut self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        for part in std::mem::take(&mut self.parts) {
            remove(dir, &file_name(&self.name, part.from))?;
        }
        Ok(())
    }
}

impl Part {
    fn write(&mut self, dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<usize, Errno> {
        if self.file.is_none() {
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.file = Some(openat(dir, file_name(name, self.from), flags, Mode::empty())?);
        }
        let Some(file) = &self.file else { return Err(Errno::BADF) };
        match retry_on_intr(|| write(file, bytes))? {
            0 => Err(Errno::NOSPC),
            count => Ok(count),
        }
    }
}

fn size_of(dir: BorrowedFd<'_>, name: &str) -> Result<u64, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let stat = fstat(openat(dir, name, flags, Mode::empty())?)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    u64::try_from(stat.st_size).map_err(|_negative| Errno::INVAL)
}

fn remove(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn file_name(name: &str, from: u64) -> String {
    format!("{name}.{from}")
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn directory() -> (tempfile::TempDir, std::fs::File) {
        let path = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(path.path()).unwrap();
        (path, dir)
    }

    fn read_all(output: &OutputFile, dir: BorrowedFd<'_>) -> (u64, Vec<u8>) {
        let first = output.next_kept(0);
        let (mut at, mut all) = (first, Vec::new());
        while at < output.end() {
            let piece = output.read(dir, at, 100).unwrap();
            assert!(!piece.is_empty() && piece.len() <= 100, "{at}");
            at += length(piece.len());
            all.extend(piece);
        }
        (first, all)
    }

    #[test]
    fn the_last_of_it_stays_and_a_later_daemon_finds_it() {
        let (path, dir) = directory();
        let written: Vec<u8> = (0..20_000_u32).flat_map(|number| format!("{number:07}\n").into_bytes()).collect();
        let mut output = OutputFile::new("a-1".into(), 10_000);
        for piece in written.chunks(777) {
            output.append(dir.as_fd(), piece).unwrap();
            let kept: u64 =
                std::fs::read_dir(path.path()).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
            assert!(kept <= 10_000, "{kept}");
        }
        let (first, all) = read_all(&output, dir.as_fd());
        assert_eq!(output.end(), 160_000);
        assert!(all.len() >= 5_000 && all == written[usize::try_from(first).unwrap()..]);
        std::fs::write(path.path().join("unrelated"), "x").unwrap();
        let mut found = OutputFile::find_all(dir.as_fd(), 10_000).unwrap();
        assert_eq!((found.len(), found[0].name(), found[0].end()), (1, "a-1", 160_000));
        found[0].append(dir.as_fd(), b"more").unwrap();
        assert_eq!(found[0].read(dir.as_fd(), 159_992, 100).unwrap(), b"0019999\n", "to the end of a file");
        assert_eq!(found[0].read(dir.as_fd(), 160_000, 100).unwrap(), b"more");
        found[0].forget(dir.as_fd()).unwrap();
        assert_eq!(std::fs::read_dir(path.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_small_is_whole_and_nothing_is_nothing() {
        let (_path, dir) = directory();
        let mut output = OutputFile::new("b".into(), 1 << 20);
        assert_eq!((output.end(), output.next_kept(0)), (0, 0));
        assert_eq!(output.read(dir.as_fd(), 0, 10).unwrap(), b"");
        output.append(dir.as_fd(), b"hello").unwrap();
        output.close();
        output.append(dir.as_fd(), b" world").unwrap();
        assert_eq!(read_all(&output, dir.as_fd()), (0, b"hello world".to_vec()));
    }

    #[test]
    fn what_the_disk_does_not_take_is_missing_and_the_rest_is_in_its_place() {
        let (path, dir) = directory();
        let mut output = OutputFile::new("c".into(), 1 << 20);
        output.append(dir.as_fd(), b"one").unwrap();
        output.close();
        // Its file is gone, and nothing can be made in its place.
        std::fs::remove_file(path.path().join("c.0")).unwrap();
        assert_eq!(output.append(dir.as_fd(), b"two"), Err(Errno::NOENT));
        output.append(dir.as_fd(), b"three").unwrap();
        assert_eq!((output.end(), output.next_kept(3)), (11, 6));
        assert_eq!(output.read(dir.as_fd(), 6, 10).unwrap(), b"three");
        assert_eq!(output.read(dir.as_fd(), 4, 10).unwrap(), b"");
    }
}
