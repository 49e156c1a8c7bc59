//! Named volumes: directories that outlive workers, below `<state_dir>/volumes`.
//!
//! `NAME/data` is what workers see, `NAME/volume.json` says when it was made. Ids on the disk are those of a worker that is
//! root in its volumes: every worker sees them through a mount that maps root to whoever it runs as, so that a volume does
//! not depend on which worker wrote it. A volume appears and goes as a whole, by a rename; what a kill leaves begins with a
//! dot and is removed by whoever comes next. Decides nothing about who may use a volume. The daemon calls [`Store`] in its
//! loop, where nothing takes long, and [`usage`] and [`removal`] in helpers.

mod mount;
pub mod removal;
pub mod repair;
pub mod usage;
mod walk;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, fchmod, fstatvfs, mkdirat, openat, openat2,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use mount::{Mapped, tree};

use crate::spec::VolumeName;

/// The directory of volumes in the state directory.
pub const VOLUMES: &str = "volumes";
/// What workers see of a volume.
pub const DATA: &str = "data";
/// What is known of a volume.
pub const METADATA: &str = "volume.json";
/// As many volumes as there may be.
pub const COUNT_MAX: usize = 256;
/// More than a metadata file ever has, in bytes.
const METADATA_BYTES_MAX: usize = 4096;
/// Names of what is not a volume yet, or no longer, begin like this.
const UNFINISHED: char = '.';

/// Something about volumes did not work.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// One operation on one volume.
    #[error("{operation} volume {name}")]
    Step {
        /// What was being done.
        operation: &'static str,
        /// To which.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The directory of all volumes.
    #[error("{operation} the directory of volumes")]
    Store {
        /// What was being done.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There is no such volume.
    #[error("volume {name} does not exist")]
    Missing {
        /// Which.
        name: String,
    },
    /// There are too many.
    #[error("there are {COUNT_MAX} volumes already")]
    TooMany,
    /// The file system cannot map ids.
    #[error("map the ids of volume {name}: its file system cannot do that; put state_dir on ext4, xfs or btrfs")]
    NoIdMapping {
        /// Which.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl VolumeError {
    pub(crate) fn step<E: Into<io::Error>>(operation: &'static str, name: &str) -> impl FnOnce(E) -> Self + use<E> {
        let name = name.to_owned();
        move |source| Self::Step { operation, name, source: source.into() }
    }

    fn store<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Store { operation, source: source.into() }
    }
}

/// What is written down of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    /// RFC 3339.
    created_at: String,
}

/// Room on the file system that volumes are on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes there are.
    pub total_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Files there can be; 0 where the file system does not say.
    pub total_inodes: u64,
    /// Files that can still be made.
    pub free_inodes: u64,
}

/// The volumes of one daemon.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Store {
    /// Opens the volumes below a state directory, making their directory where it is missing.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn open(state: BorrowedFd<'_>) -> Result<Self, VolumeError> {
        match mkdirat(state, VOLUMES, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(VolumeError::store("make")(errno)),
        }
        let dir = openat(state, VOLUMES, DIRECTORY, Mode::empty()).map_err(VolumeError::store("open"))?;
        Ok(Self { dir })
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes a volume; whether there was none of that name.
    ///
    /// # Errors
    /// [`VolumeError`]; then nothing of it is left.
    pub fn create(&self, name: &VolumeName, now: SystemTime) -> Result<bool, VolumeError> {
        if self.exists(name)? {
            return Ok(false);
        }
        if self.names()?.len() >= COUNT_MAX {
            return Err(VolumeError::TooMany);
        }
        let unfinished = format!("{UNFINISHED}new-{name}");
        let made = self.build(&unfinished, now).and_then(|()| {
            renameat_with(&self.dir, unfinished.as_str(), &self.dir, name.as_str(), RenameFlags::NOREPLACE)
        });
        match made {
            Ok(()) => Ok(true),
            Err(errno) => {
                self.discard(&unfinished);
                Err(VolumeError::step("make", name.as_str())(errno))
            }
        }
    }

    fn build(&self, unfinished: &str, now: SystemTime) -> Result<(), Errno> {
        // One that was killed in the middle of this has left its own.
        self.discard(unfinished);
        mkdirat(&self.dir, unfinished, Mode::RWXU)?;
        let dir = openat(&self.dir, unfinished, DIRECTORY, Mode::empty())?;
        furnish(dir.as_fd(), now).map(drop)
    }

    /// Makes an empty directory what a volume is; its data.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn furnish(&self, dir: BorrowedFd<'_>, now: SystemTime) -> Result<OwnedFd, VolumeError> {
        furnish(dir, now).map_err(VolumeError::store("write to"))
    }

    /// Removes what [`Self::build`] makes, which nobody has put anything into.
    fn discard(&self, unfinished: &str) {
        let path = |name: &str| format!("{unfinished}/{name}");
        for (name, flags) in [(METADATA, AtFlags::empty()), (DATA, AtFlags::REMOVEDIR)] {
            // Usually none of it is there.
            unlinkat(&self.dir, path(name), flags).unwrap_or_default();
        }
        unlinkat(&self.dir, unfinished, AtFlags::REMOVEDIR).unwrap_or_default();
    }

    /// Every volume, in order.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn names(&self) -> Result<Vec<VolumeName>, VolumeError> {
        let mut names: Vec<VolumeName> =
            self.entries()?.iter().filter_map(|name| VolumeName::parse(name).ok()).collect();
        names.sort();
        Ok(names)
    }

    /// What is no volume yet, or no longer: left by what was killed, or being worked on.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn unfinished(&self) -> Result<Vec<String>, VolumeError> {
        let mut names = self.entries()?;
        names.retain(|name| name.starts_with(UNFINISHED));
        Ok(names)
    }

    fn entries(&self) -> Result<Vec<String>, VolumeError> {
        // A directory is read from where its descriptor stands; a fresh one stands at its beginning.
        let dir = openat(&self.dir, ".", DIRECTORY, Mode::empty()).map_err(VolumeError::store("open"))?;
        let mut names = Vec::new();
        for entry in Dir::new(dir).map_err(VolumeError::store("list"))? {
            let entry = entry.map_err(VolumeError::store("list"))?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    /// Whether there is such a volume.
    ///
    /// # Errors
    /// [`VolumeError::Step`].
    pub fn exists(&self, name: &VolumeName) -> Result<bool, VolumeError> {
        match statat(&self.dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(VolumeError::step("look at", name.as_str())(errno)),
        }
    }

    /// When it was made, RFC 3339; `None` where that is not known.
    #[must_use]
    pub fn created(&self, name: &VolumeName) -> Option<String> {
        let path = format!("{name}/{METADATA}");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat2(&self.dir, path, flags, Mode::empty(), INSIDE).ok()?;
        let mut text = [0; METADATA_BYTES_MAX];
        let length = rustix::io::pread(&file, &mut text, 0).ok()?;
        let metadata: Metadata = serde_json::from_slice(text.get(..length)?).ok()?;
        humantime::parse_rfc3339(&metadata.created_at).ok()?;
        Some(metadata.created_at)
    }

    /// Opens what workers see of a volume.
    ///
    /// # Errors
    /// [`VolumeError::Missing`], [`VolumeError::Step`].
    pub fn data(&self, name: &VolumeName) -> Result<OwnedFd, VolumeError> {
        match openat2(&self.dir, format!("{name}/{DATA}"), DIRECTORY, Mode::empty(), INSIDE) {
            Ok(data) => Ok(data),
            Err(Errno::NOENT) => Err(VolumeError::Missing { name: name.to_string() }),
            Err(errno) => Err(VolumeError::step("open", name.as_str())(errno)),
        }
    }

    /// Opens what workers see of a volume, which is made on its first use.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::data`].
    pub fn data_made(&self, name: &VolumeName, now: SystemTime) -> Result<OwnedFd, VolumeError> {
        match self.data(name) {
            Err(VolumeError::Missing { .. }) => {
                self.create(name, now)?;
                self.data(name)
            }
            opened => opened,
        }
    }

    /// Takes a volume away from where it is found; the name under which all of it is to be removed.
    ///
    /// # Errors
    /// [`VolumeError::Missing`], [`VolumeError::Step`].
    pub fn set_aside(&self, name: &VolumeName) -> Result<String, VolumeError> {
        if !self.exists(name)? {
            return Err(VolumeError::Missing { name: name.to_string() });
        }
        for number in 0..=COUNT_MAX {
            let aside = format!("{UNFINISHED}removing-{name}-{number}");
            match renameat_with(&self.dir, name.as_str(), &self.dir, aside.as_str(), RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(aside),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(VolumeError::step("remove", name.as_str())(errno)),
            }
        }
        Err(VolumeError::step("remove", name.as_str())(Errno::EXIST))
    }

    /// Room on the file system.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn room(&self) -> Result<Room, VolumeError> {
        fstatvfs(&self.dir).map(|stat| room_of(&stat)).map_err(VolumeError::store("look at"))
    }
}

fn furnish(dir: BorrowedFd<'_>, now: SystemTime) -> Result<OwnedFd, Errno> {
    mkdirat(dir, DATA, Mode::RWXU)?;
    let data = openat(dir, DATA, DIRECTORY, Mode::empty())?;
    // Whatever the umask says: who may enter is decided by who has the volume.
    fchmod(&data, Mode::from_raw_mode(0o755))?;
    let metadata = Metadata { created_at: humantime::format_rfc3339_seconds(now).to_string() };
    let text = serde_json::to_vec(&metadata).unwrap_or_default();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, METADATA, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, &text))?;
    Ok(data)
}

/// Room on the file system of a directory, or of the nearest one above it that is there.
///
/// # Errors
/// What the kernel says.
pub fn room_at(dir: &std::path::Path) -> io::Result<Room> {
    let nearest = dir.ancestors().find(|dir| dir.exists()).unwrap_or(std::path::Path::new("/"));
    Ok(room_of(&rustix::fs::statvfs(nearest)?))
}

fn room_of(stat: &rustix::fs::StatVfs) -> Room {
    Room {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_inodes: stat.f_files,
        free_inodes: stat.f_favail,
    }
}

/// Below the directory that is named, through no link and no other mount.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
