//! Files that survive the daemon: records of JSON, each on a line of its own with its length and checksum.
//!
//! [`StateFile`] holds the latest value of each key; changes are appended and now and then the file is written anew, to a
//! temporary name and renamed. A line that was cut short by a kill is not there; any other damage puts the file into
//! quarantine with the reason, and what is whole of it counts. What somebody removes or replaces while the daemon runs is
//! written anew from memory. [`RecordLog`] only grows, and is rotated. Neither knows what its records mean, and no file,
//! whatever is in it, keeps a daemon from starting. The daemon calls [`StateFile::put`] for each change and
//! [`StateFile::flush`] once a turn.

mod record_log;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, fallocate, fdatasync, fstat, ftruncate, mkdirat, openat, renameat,
    statat, unlinkat,
};
use rustix::io::{Errno, pread, retry_on_intr, write};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

pub use record_log::RecordLog;

/// Where damaged files are put, below the state directory.
pub const QUARANTINE: &str = "quarantine";
/// Damaged files that are kept; the oldest makes way.
const QUARANTINE_MAX: usize = 16;
/// A file larger than this is not read.
const BYTES_MAX: u64 = 256 << 20;
/// One record is never longer.
const LINE_BYTES_MAX: usize = 4 << 20;
/// A file smaller than this is not written anew for its size.
const COMPACT_BYTES_MIN: u64 = 256 << 10;
/// Room that is reserved on the disk ahead of what is written.
const RESERVE_BYTES: u64 = 256 << 10;

/// A state file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {name}")]
pub struct StateFileError {
    operation: &'static str,
    name: String,
    source: io::Error,
}

impl StateFileError {
    /// No descriptor was to be had for the directory.
    #[must_use]
    pub fn descriptor(source: io::Error) -> Self {
        Self { operation: "open", name: "the state directory".to_owned(), source }
    }
}

fn failed<E: Into<io::Error>>(operation: &'static str, name: &str) -> impl FnOnce(E) -> StateFileError + use<E> {
    let name = name.to_owned();
    move |source| StateFileError { operation, name, source: source.into() }
}

/// What reading a file has found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The records that were whole, in their order; `None` is one that was taken back.
    pub records: Vec<(String, Option<Value>)>,
    /// What was wrong with the file and where it is now, as a sentence.
    pub damage: Option<String>,
}

/// One line: checksum, length, and `{"key":…,"value":…}`.
#[must_use]
pub fn encode(key: &str, value: &Value) -> Vec<u8> {
    line_of(&format!("{{\"key\":{},\"value\":{value}}}", Value::from(key)))
}

fn line_of(body: &str) -> Vec<u8> {
    format!("{:08x} {} {body}\n", crc32fast::hash(body.as_bytes()), body.len()).into_bytes()
}

/// Undoes [`encode`], without the line's end.
fn decode(line: &[u8]) -> Option<(String, Option<Value>)> {
    #[derive(serde::Deserialize)]
    struct Line<'l> {
        key: String,
        #[serde(borrow)]
        value: &'l RawValue,
    }
    let text = std::str::from_utf8(line).ok()?;
    let (sum, rest) = text.split_once(' ')?;
    let (length, body) = rest.split_once(' ')?;
    let whole =
        length.parse() == Ok(body.len()) && u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(body.as_bytes()));
    let line: Line<'_> = serde_json::from_str(body).ok().filter(|_| whole)?;
    let value: Value = serde_json::from_str(line.value.get()).ok()?;
    Some((line.key, Some(value).filter(|value| !value.is_null())))
}

/// What is in `dir` under a name.
fn inode(dir: BorrowedFd<'_>, name: &str) -> Option<(u64, u64, u64)> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino, u64::try_from(stat.st_size).unwrap_or(0)))
}

/// Reads all whole lines of a file; what stands in the way of that as a sentence.
fn read_lines(dir: BorrowedFd<'_>, name: &str) -> Result<Loaded, StateFileError> {
    let mut loaded = Loaded::default();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(loaded),
        Err(Errno::LOOP | Errno::NXIO) => {
            loaded.damage = Some("it is no regular file".to_owned());
            return Ok(loaded);
        }
        Err(errno) if is_of_the_disk(errno) => {
            loaded.damage = Some(format!("it cannot be opened: {errno}"));
            return Ok(loaded);
        }
        Err(errno) => return Err(failed("open", name)(errno)),
    };
    let stat = fstat(&file).map_err(failed("open", name))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        loaded.damage = Some("it is no regular file".to_owned());
        return Ok(loaded);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > BYTES_MAX {
        loaded.damage = Some(format!("it has {size} bytes, more than a state file ever has"));
        return Ok(loaded);
    }
    let bytes = match read_all(&file, size) {
        Ok(bytes) => bytes,
        Err(errno) if is_of_the_disk(errno) => {
            loaded.damage = Some(format!("it cannot be read: {errno}"));
            return Ok(loaded);
        }
        Err(errno) => return Err(failed("read", name)(errno)),
    };
    Ok(read_records(&bytes))
}

/// All whole lines of a file's bytes, and what is wrong with the others.
#[must_use]
pub fn read_records(bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded::default();
    let (mut bad, mut first_bad) = (0_u64, 0);
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        // The last line of a daemon that was killed while it wrote.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match decode(line) {
            Some(record) => loaded.records.push(record),
            None => {
                first_bad = if bad == 0 { number + 1 } else { first_bad };
                bad += 1;
            }
        }
    }
    if bad > 0 {
        loaded.damage = Some(format!("{bad} of its lines are not what was written, the first is line {first_bad}"));
    }
    loaded
}

/// Whether an error says that what is on the disk is lost, which no other try will change.
const fn is_of_the_disk(errno: Errno) -> bool {
    matches!(errno, Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::STALE | Errno::ACCESS | Errno::PERM)
}

fn read_all(file: &OwnedFd, size: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        let at = u64::try_from(length).unwrap_or(0);
        match retry_on_intr(|| pread(file, &mut *rest, at))? {
            0 => break,
            count => length += count,
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Puts what has a name aside, with the reason beside it; where it is now, as a part of a sentence.
///
/// A disk that is full or broken must not keep a daemon from its workers: what cannot be moved is renamed where it is, and
/// what cannot be renamed is said to be lost.
fn put_aside(dir: BorrowedFd<'_>, name: &str, reason: &str, stamp: u64) -> String {
    let error = match quarantine(dir, name, reason, stamp) {
        Ok(place) => return format!("it is kept as {place}"),
        Err(error) => io::Error::from(error),
    };
    let beside = format!("{name}.damaged");
    // A directory that an earlier one has left there would be in the way.
    match super::workdir::remove(dir, &beside) {
        Ok(()) | Err(_) => {}
    }
    match renameat(dir, name, dir, beside.as_str()) {
        Ok(()) => format!("it is kept as {beside}, because it could not be moved to {QUARANTINE}: {error}"),
        Err(errno) => format!("it could not be put aside: {errno}"),
    }
}

fn quarantine(dir: BorrowedFd<'_>, name: &str, reason: &str, stamp: u64) -> Result<String, Errno> {
    match mkdirat(dir, QUARANTINE, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat(dir, QUARANTINE, flags, Mode::empty())?;
    forget_oldest(&place);
    let target = format!("{stamp:020}-{name}");
    renameat(dir, name, &place, target.as_str())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let note = openat(&place, format!("{target}.reason"), flags, Mode::RUSR | Mode::WUSR);
    // The reason is in the log too; a disk that is full must not keep the daemon from starting.
    if let Ok(note) = note {
        match write(&note, format!("{reason}\n").as_bytes()) {
            Ok(_) | Err(_) => {}
        }
    }
    Ok(format!("{QUARANTINE}/{target}"))
}

fn forget_oldest(place: &OwnedFd) {
    let Ok(entries) = rustix::fs::Dir::read_from(place) else { return };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    let surplus = (names.len() + 2).saturating_sub(2 * QUARANTINE_MAX);
    for name in names.iter().take(surplus) {
        match super::workdir::remove(place.as_fd(), name) {
            // Tried again at the next damage.
            Ok(()) | Err(_) => {}
        }
    }
}

/// Reads a file and puts it aside if it is damaged.
fn load(dir: BorrowedFd<'_>, name: &str, stamp: u64) -> Result<Loaded, StateFileError> {
    let mut loaded = read_lines(dir, name)?;
    if let Some(reason) = loaded.damage.take() {
        let kept = put_aside(dir, name, &reason, stamp);
        loaded.damage = Some(format!("{name}: {reason}; {kept}"));
    }
    Ok(loaded)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Device and number of a file.
type Inode = (u64, u64);

/// Writes a file anew under a temporary name and gives it its own; until then the file is as it was.
fn write_anew(
    dir: BorrowedFd<'_>,
    name: &'static str,
    bytes: &[u8],
    reserve_bytes: u64,
) -> Result<(OwnedFd, Inode), StateFileError> {
    let temporary = format!("{name}.new");
    // Whatever an earlier daemon, or somebody else, has left under that name.
    match super::workdir::remove(dir, &temporary) {
        Ok(()) | Err(_) => {}
    }
    let written = write_temporary(dir, name, &temporary, bytes, reserve_bytes);
    if written.is_err() {
        // It would take room on a full disk that others need, and the next try too.
        match unlinkat(dir, temporary.as_str(), AtFlags::empty()) {
            Ok(()) | Err(_) => {}
        }
    }
    written
}

fn write_temporary(
    dir: BorrowedFd<'_>,
    name: &'static str,
    temporary: &str,
    bytes: &[u8],
    reserve_bytes: u64,
) -> Result<(OwnedFd, Inode), StateFileError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    let file = openat(dir, temporary, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make", temporary))?;
    // Only so that a disk that fills up later does not matter soon; what cannot be reserved is written without.
    match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes.len() as u64 + reserve_bytes) {
        Ok(()) | Err(_) => {}
    }
    write_all(&file, bytes).map_err(failed("write", temporary))?;
    let stat = fstat(&file).map_err(failed("look at", temporary))?;
    match renameat(dir, temporary, dir, name) {
        Ok(()) => {}
        // Somebody has put a directory there.
        Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            super::workdir::remove(dir, name)
                .map_err(|error| failed("replace", name)(io::Error::other(error.to_string())))?;
            renameat(dir, temporary, dir, name).map_err(failed("rename", temporary))?;
        }
        Err(errno) => return Err(failed("rename", temporary)(errno)),
    }
    Ok((file, (stat.st_dev, stat.st_ino)))
}

/// The latest value of each key.
#[derive(Debug)]
pub struct StateFile {
    dir: OwnedFd,
    name: &'static str,
    file: Option<OwnedFd>,
    /// Of the file that is appended to.
    inode: Inode,
    size: u64,
    /// The line of each key as it is to be in the file.
    live: BTreeMap<String, Vec<u8>>,
    live_bytes: u64,
    pending: Vec<u8>,
    /// The file is not what it should be and has to be written anew.
    stale: bool,
}

impl StateFile {
    /// Reads the file `name` in `dir`. Nothing is written before the first [`Self::flush`], which writes it anew. `stamp`
    /// names what is put into quarantine.
    ///
    /// # Errors
    /// When it cannot be read now, for want of memory or descriptors.
    pub fn open(dir: OwnedFd, name: &'static str, stamp: u64) -> Result<(Self, Loaded), StateFileError> {
        let loaded = load(dir.as_fd(), name, stamp)?;
        let file = Self {
            dir,
            name,
            file: None,
            inode: (0, 0),
            size: 0,
            live: BTreeMap::new(),
            live_bytes: 0,
            pending: Vec::new(),
            stale: true,
        };
        Ok((file, loaded))
    }

    /// Puts the file that was read aside, because its records, whole as they are, mean nothing here; a sentence on that.
    pub fn put_aside(&mut self, reason: &str, stamp: u64) -> String {
        format!("{}: {reason}; {}", self.name, put_aside(self.dir.as_fd(), self.name, reason, stamp))
    }

    /// Sets a key; written at the next [`Self::flush`].
    pub fn put(&mut self, key: &str, value: &Value) {
        self.put_line(key, encode(key, value));
    }

    /// The same of what only becomes JSON.
    ///
    /// # Errors
    /// When it cannot; the key is as it was.
    pub fn put_record(&mut self, key: &str, value: &impl Serialize) -> serde_json::Result<()> {
        #[derive(Serialize)]
        struct Line<'l, V> {
            key: &'l str,
            value: &'l V,
        }
        let body = serde_json::to_string(&Line { key, value })?;
        self.put_line(key, line_of(&body));
        Ok(())
    }

    fn put_line(&mut self, key: &str, line: Vec<u8>) {
        if line.len() > LINE_BYTES_MAX || self.live.get(key) == Some(&line) {
            return;
        }
        self.add(&line);
        self.live_bytes += line.len() as u64;
        if let Some(old) = self.live.insert(key.to_owned(), line) {
            self.live_bytes = self.live_bytes.saturating_sub(old.len() as u64);
        }
    }

    /// Takes a key back; written at the next [`Self::flush`].
    pub fn remove(&mut self, key: &str) {
        if let Some(old) = self.live.remove(key) {
            self.live_bytes = self.live_bytes.saturating_sub(old.len() as u64);
            self.add(&encode(key, &Value::Null));
        }
    }

    /// Adds a line to what is appended next. A file that is written anew anyway needs none: however long a disk takes nothing,
    /// no more waits than there are keys.
    fn add(&mut self, line: &[u8]) {
        if !self.stale {
            self.pending.extend_from_slice(line);
        }
    }

    /// Whether the file is another one by now than the one that is written, or none.
    #[must_use]
    pub fn was_replaced(&self) -> bool {
        self.file.is_some() && inode(self.dir.as_fd(), self.name) != Some((self.inode.0, self.inode.1, self.size))
    }

    /// Writes all that has changed; with nothing changed, nothing.
    ///
    /// # Errors
    /// The kernel's reason; then everything is tried again by the next call, and the file is as it was.
    pub fn flush(&mut self) -> Result<(), StateFileError> {
        if self.pending.is_empty() && !self.stale {
            return Ok(());
        }
        let grown = self.size.saturating_add(self.pending.len() as u64);
        let outgrown = grown > COMPACT_BYTES_MIN && grown > self.live_bytes.saturating_mul(4);
        if self.stale || outgrown || self.was_replaced() {
            return self.rewrite();
        }
        let Some(file) = &self.file else { return self.rewrite() };
        match write_all(file, &self.pending) {
            Ok(()) => {
                self.size = grown;
                self.pending.clear();
                Ok(())
            }
            Err(errno) => {
                self.stale = true;
                self.pending.clear();
                // So that no half line stands in the way of the next; if this fails too, the checksum tells.
                match ftruncate(file, self.size) {
                    Ok(()) | Err(_) => {}
                }
                Err(failed("write", self.name)(errno))
            }
        }
    }

    /// Writes the file anew even if nothing has changed.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn rewrite(&mut self) -> Result<(), StateFileError> {
        self.stale = true;
        let bytes: Vec<u8> = self.live.values().flatten().copied().collect();
        let (file, inode) = write_anew(self.dir.as_fd(), self.name, &bytes, RESERVE_BYTES)?;
        self.inode = inode;
        self.size = bytes.len() as u64;
        self.file = Some(file);
        self.pending.clear();
        self.stale = false;
        Ok(())
    }

    /// Waits until the disk has it: only where nothing waits for the daemon. After an error all is written anew, once: a
    /// second try on the same file would prove nothing.
    ///
    /// # Errors
    /// EIO.
    pub fn sync(&mut self) -> Result<(), StateFileError> {
        let Some(file) = &self.file else { return Ok(()) };
        if fdatasync(file).is_ok() {
            return Ok(());
        }
        self.rewrite()?;
        let Some(file) = &self.file else { return Ok(()) };
        fdatasync(file).map_err(|errno| {
            self.stale = true;
            failed("sync", self.name)(errno)
        })
    }
}
