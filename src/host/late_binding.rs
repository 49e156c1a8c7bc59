//! What a claim brings into a worker: directories that appear inside as its own, secrets in a tmpfs that only it can read.
//!
//! Directories are opened without following a link, so that the path that was allowed is the path that is mounted, and
//! what is done afterwards is done to the descriptor. Nothing here waits for a file system: a network's that hangs would hold
//! up everybody. Makes detached trees; `sys::late_mount` moves them into the worker.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fchmod, fchown, openat, openat2, statx,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    open_tree,
};

use super::identity::{HostUser, IdentityError, owner_namespace};
use super::init_orders::order;
use crate::protocol::init::{MAIN, Order, START};
use crate::sys::late_mount::{LateMountError, mount_into};
use crate::sys::mount::{ATTR_IDMAP, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MountAttr, PRIVATE, mount_setattr};

pub use crate::sys::late_mount::{Home, LateMount};

/// Where secrets appear inside.
pub const SECRETS_TARGET: &str = "/run/secrets";
/// All secrets of a claim together.
const SECRETS_BYTES_MAX: &str = "1m";

/// Something cannot be brought into a worker.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// A directory.
    #[error("{operation} {path}")]
    Directory {
        /// What was being done.
        operation: &'static str,
        /// To which.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It is reached by a link, which could lead elsewhere a moment later.
    #[error("{path} leads through a symbolic link: name the directory that it leads to")]
    Link {
        /// Which.
        path: String,
    },
    /// Its file system would have to be asked for it, and might not answer.
    #[error(
        "{path} is not at hand: its file system would have to be asked for it, which is not waited for; keep it open while you claim, or try again"
    )]
    NotAtHand {
        /// Which.
        path: String,
    },
    /// It is a file.
    #[error("{path} is no directory")]
    NoDirectory {
        /// Which.
        path: String,
    },
    /// Ids cannot be mapped.
    #[error("map the owner of {path}")]
    Map {
        /// Of which directory.
        path: String,
        /// Why.
        source: IdentityError,
    },
    /// The secrets.
    #[error("make a place for secrets")]
    Secrets {
        /// The kernel's reason.
        source: io::Error,
    },
    /// The worker's mount namespace.
    #[error("mount {what} in the worker")]
    Mount {
        /// Where.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The word to its init.
    #[error("tell its init what to start")]
    Start {
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A user namespace that gives what belongs to one host user to another; making one takes longer than all else that a
/// claim needs, so it is best made before.
#[derive(Debug)]
pub struct OwnerMap {
    from: HostUser,
    to: HostUser,
    namespace: OwnedFd,
}

impl OwnerMap {
    /// Makes one.
    ///
    /// # Errors
    /// [`IdentityError::UserNamespace`].
    pub fn make(from: HostUser, to: HostUser) -> Result<Self, IdentityError> {
        Ok(Self { from, to, namespace: owner_namespace(from, to)? })
    }

    /// Whether it maps these.
    #[must_use]
    pub fn is_of(&self, from: HostUser, to: HostUser) -> bool {
        (self.from, self.to) == (from, to)
    }
}

/// A directory of the host that is to appear inside a worker.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// Whom it belongs to.
    pub owner: HostUser,
}

impl Directory {
    /// Opens the directory at an absolute path that leads through no link. Never waits for its file system: what is not in
    /// the kernel's memory, as it is while somebody has it open, is not there.
    ///
    /// # Errors
    /// [`BindingError`].
    pub fn open(path: &Path) -> Result<Self, BindingError> {
        let shown = || path.display().to_string();
        let failed = |operation| {
            move |source: Errno| BindingError::Directory { operation, path: shown(), source: source.into() }
        };
        let fd = match at_hand(path, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::LOOP) => return Err(BindingError::Link { path: shown() }),
            Err(Errno::AGAIN) => return Err(BindingError::NotAtHand { path: shown() }),
            opened => opened.map_err(failed("open"))?,
        };
        let found = look(&fd).map_err(failed("look at"))?;
        if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
            return Err(BindingError::NoDirectory { path: shown() });
        }
        let owner = HostUser { uid: found.stx_uid, gid: found.stx_gid };
        Ok(Self { fd, path: path.to_owned(), owner })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A detached mount of it in which what belongs to its owner belongs to `worker`, and what `worker` makes belongs to its
    /// owner on the disk. `made` is used if it is a map of these two.
    ///
    /// # Errors
    /// EINVAL where its file system cannot be id-mapped.
    pub fn tree(&self, worker: HostUser, writable: bool, made: Option<&OwnerMap>) -> Result<OwnedFd, BindingError> {
        let path = || self.path.display().to_string();
        let failed = |operation| move |source: io::Error| BindingError::Directory { operation, path: path(), source };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&self.fd, "", flags).map_err(|e| failed("open the mount of")(e.into()))?;
        let read_only = if writable { 0 } else { ATTR_RDONLY };
        let mut attr =
            MountAttr { set: ATTR_NOSUID | ATTR_NODEV | read_only, propagation: PRIVATE, ..MountAttr::default() };
        let made = made.filter(|map| map.is_of(self.owner, worker));
        let new = (worker != self.owner && made.is_none()).then(|| OwnerMap::make(self.owner, worker)).transpose();
        let new = new.map_err(|source| BindingError::Map { path: path(), source })?;
        if let Some(map) = new.as_ref().or(made) {
            attr.set |= ATTR_IDMAP;
            attr.userns_fd = u64::try_from(map.namespace.as_raw_fd()).unwrap_or(u64::MAX);
        }
        mount_setattr(tree.as_fd(), &attr, false)
            .map_err(failed("map the ids of (can its file system be id-mapped?)"))?;
        Ok(tree)
    }
}

/// An empty detached tmpfs for secrets.
///
/// # Errors
/// [`BindingError::Secrets`].
pub fn place_for_secrets() -> Result<OwnedFd, BindingError> {
    let made = (|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [("mode", "0500"), ("size", SECRETS_BYTES_MAX), ("nr_inodes", "512")] {
            fsconfig_set_string(context.as_fd(), key, value)?;
        }
        // Where the kernel knows it, from 6.4 on: never written to a swap device.
        match rustix::mount::fsconfig_set_flag(context.as_fd(), "noswap") {
            Ok(()) | Err(_) => {}
        }
        fsconfig_create(context.as_fd())?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    })();
    made.map_err(|source: Errno| BindingError::Secrets { source: source.into() })
}

/// Fills a [`place_for_secrets`] with these files, name and content, which only `owner` can read from then on, and nobody can
/// change.
///
/// # Errors
/// [`BindingError::Secrets`].
pub fn keep_secrets(tree: &OwnedFd, files: &[(String, String)], owner: HostUser) -> Result<(), BindingError> {
    let kept = (|| {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        for (name, content) in files {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(tree, name.as_str(), flags, Mode::from_raw_mode(0o400))?;
            let mut rest = content.as_bytes();
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
                rest = rest.get(written..).unwrap_or_default();
            }
            fchown(&file, Some(uid), Some(gid))?;
            fchmod(&file, Mode::from_raw_mode(0o400))?;
        }
        let root = openat(tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        fchown(&root, Some(uid), Some(gid))
    })();
    kept.map_err(|source: Errno| BindingError::Secrets { source: source.into() })?;
    let attr = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), &attr, false).map_err(|source| BindingError::Secrets { source })
}

/// Names what a path leads to, without asking a file system anything.
///
/// # Errors
/// EAGAIN where that cannot be had; what the kernel says.
fn at_hand(path: &Path, resolving: ResolveFlags) -> Result<OwnedFd, Errno> {
    /// A rename somewhere makes the kernel doubt what it knows; the next look is another one.
    const TRIES: u32 = 8;
    let mut tries = 0;
    loop {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match openat2(CWD, path, flags, Mode::empty(), resolving | ResolveFlags::CACHED) {
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            opened => return opened,
        }
    }
}

/// What the kernel knows of it, without asking its file system.
fn look(fd: &OwnedFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(fd, "", flags, StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::UID | StatxFlags::GID)
}

/// What has to be covered in a view of the host so that a path below it can be reached by somebody else than its owner: the
/// outermost directory on the way that others may not pass, or one of which the view shows nothing anyway.
///
/// # Errors
/// [`BindingError::NotAtHand`].
pub fn in_the_way(path: &Path) -> Result<Option<PathBuf>, BindingError> {
    let mut way: Vec<&Path> = path.ancestors().skip(1).filter(|part| part.parent().is_some()).collect();
    way.reverse();
    for part in way {
        let is_open = match at_hand(part, ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN) => return Err(BindingError::NotAtHand { path: part.display().to_string() }),
            found => found.and_then(|fd| look(&fd)).is_ok_and(|found| found.stx_mode & 0o001 != 0),
        };
        if !is_open || part == Path::new("/var/tmp") {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

/// An empty directory that everybody can pass, to put in the place of one that nobody can.
///
/// # Errors
/// [`BindingError::Directory`].
pub fn cover(path: &Path) -> Result<OwnedFd, BindingError> {
    let made = (|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [("mode", "0755"), ("size", "64k"), ("nr_inodes", "256")] {
            fsconfig_set_string(context.as_fd(), key, value)?;
        }
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    })();
    made.map_err(|source: rustix::io::Errno| BindingError::Directory {
        operation: "cover",
        path: path.display().to_string(),
        source: source.into(),
    })
}

/// A tree and where it goes; directories that are missing on the way are made.
#[must_use]
pub fn at(tree: OwnedFd, target: &Path) -> LateMount {
    let text = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    let mut way: Vec<CString> = target.ancestors().skip(1).filter(|path| path.parent().is_some()).map(text).collect();
    way.reverse();
    LateMount { tree, way, target: text(target) }
}

/// Moves trees into the mount namespace of a parked worker and has its init start the program of `image`.
///
/// # Errors
/// [`BindingError::Mount`], [`BindingError::Start`].
pub fn mount_and_start(
    worker: BorrowedFd<'_>,
    init: BorrowedFd<'_>,
    mounts: &[LateMount],
    image: BorrowedFd<'_>,
    home: &Home,
) -> Result<(), BindingError> {
    if !mounts.is_empty() {
        mount_into(worker, mounts, home).map_err(|LateMountError { begun, source }| {
            let what = begun.checked_sub(1).and_then(|which| mounts.get(which));
            let what = what.map_or_else(|| "something".to_owned(), |mount| mount.target.to_string_lossy().into_owned());
            BindingError::Mount { what, source }
        })?;
    }
    order(init, Order { what: START, program: MAIN }, &[image]).map_err(|source| BindingError::Start { source })
}
