//! What a claim brings into a worker: directories that appear inside as its own, secrets in a tmpfs that only it can read.
//!
//! Directories are opened without following a link, so that the path that was allowed is the path that is mounted, and
//! what is done afterwards is done to the descriptor. Makes detached trees; `sys::late_mount` moves them into the worker.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, fchown, fstat, openat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    open_tree,
};

use super::identity::{HostUser, IdentityError, owner_namespace};
use crate::sys::late_mount::{LateMountError, mount_into};
use crate::sys::mount::{ATTR_IDMAP, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MountAttr, PRIVATE, mount_setattr};
use crate::sys::spawn::Stack;

pub use crate::sys::late_mount::LateMount;

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
    /// Opens the directory at an absolute path that leads through no link.
    ///
    /// # Errors
    /// [`BindingError`].
    pub fn open(path: &Path) -> Result<Self, BindingError> {
        let shown = || path.display().to_string();
        let step = |operation| move |source: rustix::io::Errno| (operation, io::Error::from(source));
        let failed = |(operation, source)| BindingError::Directory { operation, path: shown(), source };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolving = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd = match openat2(CWD, path, flags, Mode::empty(), resolving) {
            Err(rustix::io::Errno::LOOP) => return Err(BindingError::Link { path: shown() }),
            opened => opened.map_err(step("open")).map_err(failed)?,
        };
        let stat = fstat(&fd).map_err(step("look at")).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(BindingError::NoDirectory { path: shown() });
        }
        let owner = HostUser { uid: stat.st_uid, gid: stat.st_gid };
        Ok(Self { fd, path: path.to_owned(), owner })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A detached mount of it in which what belongs to its owner belongs to `worker`, and what `worker` makes belongs to its
    /// owner on the disk.
    ///
    /// # Errors
    /// EINVAL where its file system cannot be id-mapped.
    pub fn tree(&self, worker: HostUser, writable: bool) -> Result<OwnedFd, BindingError> {
        let path = || self.path.display().to_string();
        let failed = |operation| move |source: io::Error| BindingError::Directory { operation, path: path(), source };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&self.fd, "", flags).map_err(|e| failed("open the mount of")(e.into()))?;
        let read_only = if writable { 0 } else { ATTR_RDONLY };
        let mut attr =
            MountAttr { set: ATTR_NOSUID | ATTR_NODEV | read_only, propagation: PRIVATE, ..MountAttr::default() };
        let namespace = (worker != self.owner).then(|| owner_namespace(self.owner, worker)).transpose();
        let namespace = namespace.map_err(|source| BindingError::Map { path: path(), source })?;
        if let Some(namespace) = &namespace {
            attr.set |= ATTR_IDMAP;
            attr.userns_fd = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(namespace)).unwrap_or(u64::MAX);
        }
        mount_setattr(tree.as_fd(), &attr, false)
            .map_err(failed("map the ids of (can its file system be id-mapped?)"))?;
        Ok(tree)
    }
}

/// A detached tmpfs with these files, name and content, which only `owner` can read.
///
/// # Errors
/// [`BindingError::Secrets`].
pub fn secrets(files: &[(String, String)], owner: HostUser) -> Result<OwnedFd, BindingError> {
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
        let tree = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        for (name, content) in files {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&tree, name.as_str(), flags, Mode::from_raw_mode(0o400))?;
            let mut rest = content.as_bytes();
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
                rest = rest.get(written..).unwrap_or_default();
            }
            fchown(&file, Some(uid), Some(gid))?;
            fchmod(&file, Mode::from_raw_mode(0o400))?;
        }
        let root = openat(&tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        fchown(&root, Some(uid), Some(gid))?;
        Ok(tree)
    })();
    let tree = made.map_err(|source: rustix::io::Errno| BindingError::Secrets { source: source.into() })?;
    let attr = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), &attr, false).map_err(|source| BindingError::Secrets { source })?;
    Ok(tree)
}

/// What has to be covered in a view of the host so that a path below it can be reached by somebody else than its owner: the
/// outermost directory on the way that others may not pass, or one of which the view shows nothing anyway.
#[must_use]
pub fn in_the_way(path: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().skip(1).filter(|part| part.parent().is_some()).collect();
    way.reverse();
    let closed = |part: &Path| {
        let open_to_all = |stat: rustix::fs::Stat| stat.st_mode & 0o001 != 0;
        part == Path::new("/var/tmp") || !rustix::fs::stat(part).is_ok_and(open_to_all)
    };
    way.into_iter().find(|part| closed(part)).map(Path::to_owned)
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

/// Moves trees into the mount namespace of a parked worker.
///
/// # Errors
/// [`BindingError::Mount`].
pub fn mount(worker: BorrowedFd<'_>, mounts: &[LateMount], stack: &mut Stack) -> Result<(), BindingError> {
    if mounts.is_empty() {
        return Ok(());
    }
    mount_into(worker, mounts, stack).map_err(|LateMountError { which, source }| {
        let what = which.and_then(|which| mounts.get(which)).map(|mount| mount.target.to_string_lossy().into_owned());
        BindingError::Mount { what: what.unwrap_or_else(|| "something".to_owned()), source }
    })
}
