//! The exit ledger: one file in which the init of every worker writes down how its worker ended, so that an end while no
//! daemon runs is known to the next one.
//!
//! Each live generation has a place of 64 bytes in it, given out here; the page of every place is there before its worker is
//! born, so that writing it can neither fail for want of room nor wait. Entries carry their generation and a checksum, and
//! are never cleared: an old one means nobody. Called by `daemon`: [`Ledger::open`], [`Ledger::entries`] once,
//! [`Ledger::reserve`] for each worker that is taken over, then [`Ledger::take`] and [`Ledger::give_back`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, fallocate, fstat, openat, statat};
use rustix::io::{Errno, pread, retry_on_intr};

use crate::protocol::init::{ENTRY_MAGIC, Entry};

/// Its name in the runtime directory.
pub const LEDGER_NAME: &str = "exits";
/// What one entry takes.
const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;
/// By this much it grows: room for 1,024 workers.
const GROWTH_BYTES: u64 = 1024 * ENTRY_BYTES;
/// It never grows beyond this, 65,536 places.
const BYTES_MAX: u64 = 64 * GROWTH_BYTES;

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be opened.
    #[error("open the exit ledger")]
    Open {
        /// The kernel's reason.
        source: Errno,
    },
    /// What is in its place cannot be removed.
    #[error("make room for the exit ledger")]
    Clear(#[from] super::workdir::WorkDirError),
    /// It cannot be read.
    #[error("read the exit ledger")]
    Read {
        /// The kernel's reason.
        source: Errno,
    },
    /// There is no room for another entry.
    #[error("make room for an entry in the exit ledger")]
    Grow {
        /// The kernel's reason.
        source: Errno,
    },
}

/// The exit ledger.
#[derive(Debug)]
pub struct Ledger {
    dir: OwnedFd,
    file: OwnedFd,
    inode: (u64, u64),
    /// How much of it is there.
    bytes: u64,
    free: BTreeSet<u64>,
    taken: BTreeSet<u64>,
}

impl Ledger {
    /// Opens it in `dir`, and makes it if need be, mode 0600. What has its name and is no regular file is removed first:
    /// the directory is the daemon's own.
    ///
    /// # Errors
    /// [`LedgerError::Open`].
    pub fn open(dir: BorrowedFd<'_>) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::Open { source };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(dir, LEDGER_NAME, flags, Mode::RUSR | Mode::WUSR);
        let is_file = |fd: &OwnedFd| {
            fstat(fd)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1)
        };
        let file = match opened {
            Ok(file) if is_file(&file) => file,
            Ok(_) | Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                super::workdir::remove(dir, LEDGER_NAME)?;
                openat(dir, LEDGER_NAME, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?
            }
            Err(errno) => return Err(failed(errno)),
        };
        let dir =
            dir.try_clone_to_owned().map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        let stat = fstat(&file).map_err(failed)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let bytes = size.min(BYTES_MAX) / GROWTH_BYTES * GROWTH_BYTES;
        let free = places(0, bytes).collect();
        Ok(Self { dir, file, inode: (stat.st_dev, stat.st_ino), bytes, free, taken: BTreeSet::new() })
    }

    /// Makes it anew if somebody has removed or replaced it; `None` if it is there. Workers that live go on with the one that
    /// they know, which the next daemon finds by them.
    ///
    /// # Errors
    /// [`LedgerError`]; then the old one is used on.
    pub fn renew(&mut self) -> Result<Option<()>, LedgerError> {
        let named = statat(&self.dir, LEDGER_NAME, AtFlags::SYMLINK_NOFOLLOW);
        if named.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.inode) {
            return Ok(None);
        }
        let mut new = Self::open(self.dir.as_fd())?;
        for place in &self.taken {
            new.reserve(*place);
        }
        *self = new;
        Ok(Some(()))
    }

    /// The ledger itself, to be handed to inits.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// All whole entries, by generation.
    ///
    /// # Errors
    /// [`LedgerError::Read`].
    pub fn entries(&self) -> Result<BTreeMap<u64, Entry>, LedgerError> {
        Self::entries_in(&self.file)
    }

    /// The same of a ledger that living workers still write to, if it is another one than this.
    ///
    /// # Errors
    /// [`LedgerError::Read`].
    pub fn entries_elsewhere(&self, other: &OwnedFd) -> Result<BTreeMap<u64, Entry>, LedgerError> {
        let stat = fstat(other).map_err(|source| LedgerError::Read { source })?;
        let same = (stat.st_dev, stat.st_ino) == self.inode;
        if same || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(BTreeMap::new());
        }
        Self::entries_in(other)
    }

    fn entries_in(file: &OwnedFd) -> Result<BTreeMap<u64, Entry>, LedgerError> {
        let mut bytes = vec![0_u8; usize::try_from(BYTES_MAX).unwrap_or(0)];
        let mut length = 0;
        loop {
            let rest = bytes.get_mut(length..).unwrap_or_default();
            let at = u64::try_from(length).unwrap_or(0);
            match retry_on_intr(|| pread(file, &mut *rest, at)) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(source) => return Err(LedgerError::Read { source }),
            }
        }
        Ok(read_entries(bytes.get(..length).unwrap_or_default()))
    }

    /// Marks a place as a living worker's. Places that are none are ignored; one that is missing, because the file was cut
    /// or made anew, is given to nobody else either.
    pub fn reserve(&mut self, place: u64) {
        if place < BYTES_MAX && place.is_multiple_of(ENTRY_BYTES) {
            self.free.remove(&place);
            self.taken.insert(place);
        }
    }

    /// Gives out a place that can be written without fail.
    ///
    /// # Errors
    /// [`LedgerError::Grow`]: ENOSPC.
    pub fn take(&mut self) -> Result<u64, LedgerError> {
        while self.free.is_empty() {
            self.grow()?;
        }
        let place = self.free.pop_first().ok_or(LedgerError::Grow { source: Errno::NOSPC })?;
        self.taken.insert(place);
        Ok(place)
    }

    /// What the init of a generation has written at its place, if it has.
    #[must_use]
    pub fn entry(&self, place: u64, generation: u64) -> Option<Entry> {
        let mut bytes = [0_u8; size_of::<Entry>()];
        let length = retry_on_intr(|| pread(&self.file, &mut bytes, place)).ok()?;
        let entry = read_entries(bytes.get(..length)?).remove(&generation)?;
        Some(entry)
    }

    /// Takes a place back whose worker's end is known.
    pub fn give_back(&mut self, place: u64) {
        if self.taken.remove(&place) && place < self.bytes {
            self.free.insert(place);
        }
    }

    fn grow(&mut self) -> Result<(), LedgerError> {
        if self.bytes >= BYTES_MAX {
            return Err(LedgerError::Grow { source: Errno::NOSPC });
        }
        fallocate(&self.file, FallocateFlags::empty(), self.bytes, GROWTH_BYTES)
            .map_err(|source| LedgerError::Grow { source })?;
        let end = self.bytes + GROWTH_BYTES;
        self.free.extend(places(self.bytes, end).filter(|place| !self.taken.contains(place)));
        self.bytes = end;
        Ok(())
    }
}

/// All whole entries of a ledger's bytes, by generation.
#[must_use]
pub fn read_entries(bytes: &[u8]) -> BTreeMap<u64, Entry> {
    let whole = bytes.chunks_exact(size_of::<Entry>());
    whole.filter_map(parse).map(|entry| (entry.generation, entry)).collect()
}

fn places(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start..end).step_by(usize::try_from(ENTRY_BYTES).unwrap_or(64))
}

fn parse(bytes: &[u8]) -> Option<Entry> {
    let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    let mut next = || words.next().unwrap_or(0);
    let entry = Entry {
        magic: next(),
        generation: next(),
        how: next(),
        value: next(),
        user_usec: next(),
        system_usec: next(),
        max_rss_kib: next(),
        sum: next(),
    };
    (entry.magic == ENTRY_MAGIC && entry.sum == entry.sum()).then_some(entry)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::protocol::init::how;

    fn open(dir: &std::path::Path) -> Ledger {
        let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Ledger::open(dir.as_fd()).unwrap()
    }

    fn written(generation: u64) -> Vec<u8> {
        let mut entry = Entry { magic: ENTRY_MAGIC, generation, how: how::EXITED, value: 42, ..Entry::default() };
        entry.sum = entry.sum();
        let words = [entry.magic, generation, entry.how, entry.value, 0, 0, 0, entry.sum];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn places_are_given_to_one_worker_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path());
        let first = ledger.take().unwrap();
        let second = ledger.take().unwrap();
        assert_ne!(first, second);
        ledger.give_back(first);
        ledger.give_back(first);
        assert_eq!(ledger.take().unwrap(), first);
        std::fs::File::options().write(true).open(dir.path().join(LEDGER_NAME)).unwrap().set_len(0).unwrap();
        let mut cut = open(dir.path());
        cut.reserve(0);
        cut.reserve(ENTRY_BYTES);
        assert_eq!(
            cut.take().unwrap(),
            2 * ENTRY_BYTES,
            "a living worker's place is not given out, though its page is gone"
        );
        let mut again = open(dir.path());
        again.reserve(0);
        assert_eq!(again.take().unwrap(), ENTRY_BYTES, "a living worker's place is not given out");
    }

    #[test]
    fn only_whole_entries_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path());
        let (one, two) = (ledger.take().unwrap(), ledger.take().unwrap());
        let file = std::fs::File::options().write(true).open(dir.path().join(LEDGER_NAME)).unwrap();
        file.write_all_at(&written(7), one).unwrap();
        file.write_all_at(&written(8), two).unwrap();
        let found = ledger.entries().unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [7, 8]);
        assert_eq!(found.get(&7).unwrap().value, 42);
        for torn in 0..64 {
            file.write_all_at(&written(9), one).unwrap();
            file.write_all_at(&[0xa5], one + torn).unwrap();
            assert_eq!(ledger.entries().unwrap().keys().copied().collect::<Vec<_>>(), [8], "byte {torn}");
        }
    }

    #[test]
    fn what_is_no_file_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(LEDGER_NAME).join("deep")).unwrap();
        open(dir.path()).take().unwrap();
        std::fs::remove_file(dir.path().join(LEDGER_NAME)).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join(LEDGER_NAME)).unwrap();
        open(dir.path()).take().unwrap();
        assert!(dir.path().join(LEDGER_NAME).symlink_metadata().unwrap().is_file());
    }
}
