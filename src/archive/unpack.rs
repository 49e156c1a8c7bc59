//! Puts the entries of a tar stream on the disk, within limits. Everything is done to the descriptor of what was made, or to
//! a name in an open directory, and nothing is done twice: a second pass only sets the times of directories that are still
//! the same (HARDENING F1, F2, F4, F10).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, fstat, fstatvfs, futimens, linkat, mkdirat, mknodat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::entries::{Entries, Entry, EntryKind};
use super::names::{Name, split};
use super::refusal::{Refusal, writing};
use super::tree::{self, Missing, Spot, Tree};

/// The highest owner and group that an archive may name: what fits a worker's own range.
const ID_MAX: u64 = 65_535;
/// How much is written between looks at the room that is left, in bytes.
const LOOK_BYTES: u64 = 16 << 20;
/// Names that are remembered of one layer, in bytes.
const NAMES_BYTES_MAX: usize = 256 << 20;
/// The beginning of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";
/// What makes a directory hide all that lower layers have in it.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an archive may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of content.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// What stays free on the disk, in bytes.
    pub free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 1 << 20, free_bytes: 256 << 20 }
    }
}

/// What has come of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Entries that were read.
    pub entries: u64,
    /// Bytes of content that were written.
    pub bytes: u64,
    /// Devices that were left out.
    pub devices: u64,
    /// Files that would have run as their owner, and do not.
    pub set_ids: u64,
    /// Extended attributes that were left out.
    pub xattrs: u64,
}

/// What names with `.wh.` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whiteouts {
    /// Nothing: they are names.
    Names,
    /// What lower layers have there is hidden.
    Apply,
}

/// Where entries go.
pub(super) struct Unpacker<'p> {
    tree: Tree,
    limits: Limits,
    totals: Totals,
    /// What this layer has made.
    made: BTreeSet<Name>,
    made_bytes: usize,
    /// Times of directories, set when nothing more goes into them.
    times: Vec<(Name, u64, Timespec)>,
    looked: u64,
    /// Called now and then with what was done so far.
    progress: Box<dyn FnMut(&Totals) + 'p>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Unpacker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl<'p> Unpacker<'p> {
    /// Into this directory.
    pub(super) fn new(root: OwnedFd, limits: Limits, progress: impl FnMut(&Totals) + 'p) -> Self {
        Self {
            tree: Tree::new(root),
            limits,
            totals: Totals::default(),
            made: BTreeSet::new(),
            made_bytes: 0,
            times: Vec::new(),
            looked: 0,
            progress: Box::new(progress),
            buffer: vec![0; 256 << 10],
        }
    }

    /// The tree that came of it.
    pub(super) const fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// Counts so far.
    #[must_use]
    pub(super) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Puts one tar stream on the disk: a whole tree, or one layer over those before.
    ///
    /// # Errors
    /// [`Refusal`]; what was put there before stays, for the caller to remove.
    pub(super) fn unpack<R: Read>(&mut self, input: R, whiteouts: Whiteouts) -> Result<R, Refusal> {
        self.made.clear();
        self.made_bytes = 0;
        self.look(0)?;
        let left = self.limits.entries.saturating_sub(self.totals.entries);
        let mut entries = Entries::new(input, left);
        while let Some(entry) = entries.next_entry()? {
            self.totals.entries += 1;
            if self.totals.entries.is_multiple_of(1024) {
                (self.progress)(&self.totals);
            }
            match whiteout(&entry, whiteouts)? {
                Some(hidden) => self.hide(&entry.name, hidden)?,
                None => self.put(&entry, &mut entries)?,
            }
        }
        self.set_times()?;
        Ok(entries.into_inner())
    }

    fn put<R: Read>(&mut self, entry: &Entry, entries: &mut Entries<R>) -> Result<(), Refusal> {
        let owner = owner(entry)?;
        self.totals.bytes = self.totals.bytes.saturating_add(entry.size);
        if self.totals.bytes > self.limits.bytes {
            return Err(Refusal::TooMuch { what: "bytes of content", most: self.limits.bytes });
        }
        if entry.kind == EntryKind::Device {
            self.totals.devices += 1;
            return Ok(());
        }
        if !entry.name.is_empty() {
            self.make_way(entry)?;
        }
        match &entry.kind {
            EntryKind::Regular => self.file(entry, owner, entries)?,
            EntryKind::HardLink(target) => self.hard_link(entry, target)?,
            EntryKind::Symlink(target) => {
                let spot = self.spot(&entry.name)?;
                symlinkat(target.as_slice(), spot.dir, spot.name).map_err(writing("make", &entry.name))?;
                own_node(&spot, entry, owner)?;
            }
            EntryKind::Fifo => {
                let spot = self.spot(&entry.name)?;
                let mode = Mode::from_raw_mode(entry.mode & 0o777);
                mknodat(spot.dir, spot.name, FileType::Fifo, mode, 0).map_err(writing("make", &entry.name))?;
                own_node(&spot, entry, owner)?;
            }
            EntryKind::Directory => self.directory(entry, owner)?,
            EntryKind::Device => {}
        }
        self.remember(&entry.name)
    }

    fn spot<'t>(&'t mut self, name: &'t [u8]) -> Result<Spot<'t>, Refusal> {
        self.tree.spot(name, Missing::Make)?.ok_or_else(|| Refusal::entry(name, "its directory is missing"))
    }

    fn remember(&mut self, name: &[u8]) -> Result<(), Refusal> {
        if self.made.insert(name.to_vec()) {
            self.made_bytes += name.len() + 64;
        }
        if self.made_bytes > NAMES_BYTES_MAX {
            return Err(Refusal::TooMuch { what: "bytes of names", most: NAMES_BYTES_MAX as u64 });
        }
        Ok(())
    }

    /// Removes what an entry takes the place of.
    fn make_way(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let name = &entry.name;
        let spot = self.tree.spot(name, Missing::Make)?;
        let Some(spot) = spot else { return Ok(()) };
        let Some(found) = spot.look().map_err(writing("look at", name))? else { return Ok(()) };
        if tree::is_dir(&found) {
            if entry.kind == EntryKind::Directory {
                return Ok(());
            }
            let at = c_name(spot.name)?;
            if !tree::remove(spot.dir, name, &at, &self.made)? {
                return Err(Refusal::entry(name, "it was a directory before, and is something else now"));
            }
            self.tree.forget();
            return Ok(());
        }
        unlinkat(spot.dir, spot.name, AtFlags::empty()).map_err(writing("replace", name))
    }

    fn file<R: Read>(&mut self, entry: &Entry, owner: (Uid, Gid), entries: &mut Entries<R>) -> Result<(), Refusal> {
        if self.totals.bytes.saturating_sub(self.looked) > LOOK_BYTES {
            self.look(entry.size)?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let spot = self.spot(&entry.name)?;
        let file = spot.open(flags, Mode::RUSR | Mode::WUSR).map_err(writing("make", &entry.name))?;
        let mut since = 0_u64;
        loop {
            let count = entries.read(&mut self.buffer)?;
            if count == 0 {
                break;
            }
            write_all(file.as_fd(), self.buffer.get(..count).unwrap_or_default())
                .map_err(writing("write", &entry.name))?;
            since += count as u64;
            if since > LOOK_BYTES {
                since = 0;
                self.look(0)?;
            }
        }
        fchown(&file, Some(owner.0), Some(owner.1)).map_err(writing("change the owner of", &entry.name))?;
        // What runs as its owner has no use where nothing gains rights by running, and is a danger elsewhere.
        if entry.mode & 0o6000 != 0 {
            self.totals.set_ids += 1;
        }
        let mode = Mode::from_raw_mode(entry.mode & 0o1777);
        fchmod(&file, mode).map_err(writing("change the mode of", &entry.name))?;
        self.xattrs(file.as_fd(), entry)?;
        futimens(&file, &times(entry.mtime)).map_err(writing("set the time of", &entry.name))
    }

    fn hard_link(&mut self, entry: &Entry, target: &Name) -> Result<(), Refusal> {
        let refuse = |rule| Err(Refusal::entry(&entry.name, rule));
        if *target == entry.name {
            return refuse("it is a link to itself");
        }
        let (parent, last) = split(target);
        // The file that was there before, not what a link of its name leads to.
        let dir = match self.tree.open(parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::LOOP) => return refuse("the file that it links to is behind a symbolic link"),
            Err(Errno::NOENT | Errno::NOTDIR) => return refuse("the file that it links to is not there"),
            Err(errno) => return Err(writing("open", target)(errno)),
        };
        let from = Spot { dir: dir.as_fd(), name: last };
        let Some(found) = from.look().map_err(writing("look at", target))? else {
            return refuse("the file that it links to is not there");
        };
        if tree::is_dir(&found) {
            return refuse("it is a hard link to a directory");
        }
        let spot = self.spot(&entry.name)?;
        linkat(from.dir, from.name, spot.dir, spot.name, AtFlags::empty()).map_err(writing("link", &entry.name))
    }

    fn directory(&mut self, entry: &Entry, owner: (Uid, Gid)) -> Result<(), Refusal> {
        let name = &entry.name;
        let dir = if name.is_empty() {
            self.tree.open(name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(writing("open", name))?
        } else {
            let spot = self.spot(name)?;
            match mkdirat(spot.dir, spot.name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(writing("make", name)(errno)),
            }
            spot.open(OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(writing("open", name))?
        };
        fchown(&dir, Some(owner.0), Some(owner.1)).map_err(writing("change the owner of", name))?;
        let mode = Mode::from_raw_mode(entry.mode & 0o3777);
        fchmod(&dir, mode).map_err(writing("change the mode of", name))?;
        self.xattrs(dir.as_fd(), entry)?;
        let inode = fstat(&dir).map_err(writing("look at", name))?.st_ino;
        let time = times(entry.mtime).last_modification;
        self.times.push((name.clone(), inode, time));
        Ok(())
    }

    /// Sets what users may set, and counts the rest: what the kernel or an overlay acts on is not an archive's to say.
    fn xattrs(&mut self, file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Refusal> {
        for (name, value) in &entry.xattrs {
            let plain = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let name = CString::new(name.as_slice()).ok().filter(|_| plain);
            let Some(name) = name else {
                self.totals.xattrs += 1;
                continue;
            };
            match fsetxattr(file, &name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // The file system has none, or none that large.
                Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::PERM) => {
                    self.totals.xattrs += 1;
                }
                Err(errno) => return Err(writing("set an attribute of", &entry.name)(errno)),
            }
        }
        Ok(())
    }

    fn hide(&mut self, name: &[u8], hidden: Hidden) -> Result<(), Refusal> {
        let (parent, _) = split(name);
        match hidden {
            Hidden::Entry(hidden) => {
                let Some(spot) = self.tree.spot(&hidden, Missing::Leave)? else { return Ok(()) };
                tree::remove(spot.dir, &hidden, &c_name(spot.name)?, &self.made)?;
            }
            Hidden::Everything => match self.tree.open(parent, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => {
                    tree::clear(dir.as_fd(), parent, &self.made)?;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(Refusal::entry(name, "its directory is none, or behind a symbolic link"));
                }
                Err(errno) => return Err(writing("open", parent)(errno)),
            },
        }
        self.tree.forget();
        Ok(())
    }

    /// Makes the directories that every worker has mounts of its own on, where they are missing.
    ///
    /// # Errors
    /// One is there and is no directory.
    pub(super) fn make_places(&mut self) -> Result<(), Refusal> {
        for place in ["proc", "dev", "sys", "run", "tmp"] {
            let name = place.as_bytes();
            let spot = self.spot(name)?;
            match spot.look().map_err(writing("look at", name))? {
                Some(found) if tree::is_dir(&found) => {}
                Some(_) => return Err(Refusal::entry(name, "it has to be a directory, and no link to one")),
                None => {
                    mkdirat(spot.dir, spot.name, Mode::from_raw_mode(0o755)).map_err(writing("make", name))?;
                }
            }
        }
        Ok(())
    }

    /// Whether the disk has room for `size` more.
    ///
    /// # Errors
    /// It has not, or cannot be looked at.
    pub(super) fn look(&mut self, size: u64) -> Result<(), Refusal> {
        self.looked = self.totals.bytes;
        (self.progress)(&self.totals);
        let disk = fstatvfs(self.tree.root()).map_err(writing("look at the disk of", b""))?;
        let available = disk.f_bavail.saturating_mul(disk.f_frsize);
        let reserved = self.limits.free_bytes;
        if available < reserved.saturating_add(size) {
            return Err(Refusal::NoRoom { available, reserved });
        }
        Ok(())
    }

    /// The times of directories, as far as those are still what they were.
    fn set_times(&mut self) -> Result<(), Refusal> {
        for (name, inode, time) in std::mem::take(&mut self.times).into_iter().rev() {
            let Ok(dir) = self.tree.open(&name, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
            if fstat(&dir).map_err(writing("look at", &name))?.st_ino == inode {
                let times = Timestamps { last_access: OMITTED, last_modification: time };
                futimens(&dir, &times).map_err(writing("set the time of", &name))?;
            }
        }
        Ok(())
    }
}

/// What a whiteout hides.
enum Hidden {
    Entry(Name),
    Everything,
}

fn whiteout(entry: &Entry, whiteouts: Whiteouts) -> Result<Option<Hidden>, Refusal> {
    if whiteouts == Whiteouts::Names {
        return Ok(None);
    }
    let refuse = |rule| Err(Refusal::entry(&entry.name, rule));
    let (parent, last) = split(&entry.name);
    if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
        return refuse("it is inside a whiteout");
    }
    let Some(hidden) = last.strip_prefix(WHITEOUT) else { return Ok(None) };
    if entry.kind != EntryKind::Regular || entry.size != 0 {
        return refuse("it is a whiteout and no empty file");
    }
    if last == OPAQUE {
        return Ok(Some(Hidden::Everything));
    }
    if matches!(hidden, b"" | b"." | b"..") || hidden.starts_with(WHITEOUT) {
        return refuse("it is a whiteout of nothing that can be hidden");
    }
    let name = if parent.is_empty() { hidden.to_vec() } else { [parent, b"/", hidden].concat() };
    Ok(Some(Hidden::Entry(name)))
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Refusal> {
    let id = |id: u64| u32::try_from(id).ok().filter(|_| id <= ID_MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        (None, _) | (_, None) => Err(Refusal::entry(&entry.name, "its owner or group is above 65535")),
    }
}

/// Owner and time of something that cannot be opened for writing.
fn own_node(spot: &Spot<'_>, entry: &Entry, (uid, gid): (Uid, Gid)) -> Result<(), Refusal> {
    let none = AtFlags::SYMLINK_NOFOLLOW;
    chownat(spot.dir, spot.name, Some(uid), Some(gid), none).map_err(writing("change the owner of", &entry.name))?;
    utimensat(spot.dir, spot.name, &times(entry.mtime), none).map_err(writing("set the time of", &entry.name))
}

const OMITTED: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };

fn times(mtime: u64) -> Timestamps {
    // The kernel cuts what its file system cannot hold.
    let tv_sec = i64::try_from(mtime).unwrap_or(i64::MAX).min(1 << 40);
    Timestamps { last_access: OMITTED, last_modification: Timespec { tv_sec, tv_nsec: 0 } }
}

fn c_name(name: &[u8]) -> Result<CString, Refusal> {
    CString::new(name).map_err(|_nul| Refusal::entry(name, "its name has a NUL in it"))
}

fn write_all(file: BorrowedFd<'_>, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
