//! Template mount namespaces: the finished root of a pool's workers, built once, copied by every spawn.
//!
//! Building happens at start and reload, inside a mount namespace that the daemon enters for that time; the spawn only
//! joins the result, copies it and adds what is each worker's own (`/proc`, `/tmp`, its directory). Nothing here is ever
//! attached to the host's own mount namespace.

mod places;

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, chmod, mkdir, mknodat, open, openat, openat2, symlink};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};

use crate::spec::{Bind, Root};
use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr};
use crate::sys::raw;

/// A template cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// One operation on one object.
    #[error("{operation} {object}")]
    Step {
        /// What was being done.
        operation: &'static str,
        /// To what.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A bind's target lies where every worker has something of its own.
    #[error("bind to {target}: workers have a {place} of their own; choose another target")]
    PrivatePlace {
        /// The target.
        target: String,
        /// The private directory.
        place: &'static str,
    },
    /// A directory that is to be a root lacks something.
    #[error("use {root} as a root: {missing} in it has to be a directory, not missing and not a symbolic link")]
    NotARoot {
        /// The directory.
        root: String,
        /// What it lacks.
        missing: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A directory cannot be added to the view of the host.
    #[error(
        "make room for {place}: {at} has more than {most} entries; make the directory on the host: mkdir -p {place}"
    )]
    Crowded {
        /// What was to be there.
        place: String,
        /// The deepest directory on the way that exists.
        at: String,
        /// As many would still do.
        most: usize,
    },
    /// The daemon could not leave the namespace that it built in.
    #[error("return to the daemon's own mount namespace")]
    Return {
        /// The kernel's reason.
        source: io::Error,
    },
}

impl MountError {
    /// Whether the daemon is now in a foreign mount namespace and must not go on.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Return { .. })
    }
}

type Result<T> = std::result::Result<T, MountError>;

fn step<E: Into<io::Error>>(operation: &'static str, object: impl Display) -> impl FnOnce(E) -> MountError {
    let object = object.to_string();
    move |source| MountError::Step { operation, object, source: source.into() }
}

/// What a root begins with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Base {
    /// A read-only view of the host.
    Host,
    /// Nothing.
    Empty,
    /// This directory, below a layer of each worker's own.
    Directory(PathBuf),
}

/// What a pool's root is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplateSpec {
    /// What there is before the binds.
    pub base: Base,
    /// Source, target, writable.
    pub binds: Vec<(PathBuf, PathBuf, bool)>,
    /// Host directories that no worker may see: the daemon's own.
    pub hidden: Vec<PathBuf>,
    /// Directories that have to be there for what each worker mounts by itself. Only a view of the host needs them made
    /// here: it is read-only.
    pub places: Vec<PathBuf>,
}

impl TemplateSpec {
    /// Of a pool's specification.
    #[must_use]
    pub fn new(root: &Root, binds: &[Bind], hidden: &[PathBuf], places: &[PathBuf]) -> Self {
        let base = match root {
            // An image is resolved to a directory before.
            Root::Host | Root::Image(_) => Base::Host,
            Root::Empty => Base::Empty,
            Root::Directory(path) => Base::Directory(path.clone()),
        };
        let binds = binds.iter().map(|b| (b.source.clone(), b.target.clone(), b.writable)).collect();
        let places = if root.has_overlay() { Vec::new() } else { places.to_vec() };
        Self { base, binds, hidden: hidden.to_vec(), places }
    }
}

/// Directories of the template that every worker covers with its own.
const PRIVATE_PLACES: [&str; 4] = ["/proc", "/tmp", "/dev", "/sys"];

/// Builds a template and returns its mount namespace.
///
/// # Errors
/// [`MountError`]; one that [`MountError::is_fatal`] leaves the caller in a foreign namespace.
pub fn build_template(spec: &TemplateSpec) -> Result<OwnedFd> {
    let proc_dir = open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let proc_dir = proc_dir.map_err(step("open", "/proc"))?;
    let original = own_mount_namespace(proc_dir.as_fd())?;
    const CLONE_NEWNS: usize = 0x2_0000;
    raw::unshare(CLONE_NEWNS).map_err(|e| step("unshare", "the mount namespace")(io::Error::from_raw_os_error(e.0)))?;
    let built = inside(spec).and_then(|()| own_mount_namespace(proc_dir.as_fd()));
    raw::setns(raw::fd_arg(original.as_raw_fd()), CLONE_NEWNS)
        .map_err(|e| MountError::Return { source: io::Error::from_raw_os_error(e.0) })?;
    built
}

fn own_mount_namespace(proc_dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    openat(proc_dir, "self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("open", "/proc/self/ns/mnt"))
}

fn inside(spec: &TemplateSpec) -> Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("make private", "/"))?;
    let binds = bind_trees(spec)?;
    let resolv_conf = volatile_resolv_conf();
    match &spec.base {
        Base::Host => host_view(spec, &binds, resolv_conf.as_ref()),
        Base::Empty => bare_root(spec, &binds),
        Base::Directory(directory) => overlay_parts(directory, &binds),
    }
}

struct BindTree<'a> {
    tree: OwnedFd,
    target: &'a Path,
}

fn bind_trees(spec: &TemplateSpec) -> Result<Vec<BindTree<'_>>> {
    let mut trees = Vec::with_capacity(spec.binds.len());
    for (source, target, writable) in &spec.binds {
        if let Some(place) = PRIVATE_PLACES.iter().find(|place| target.starts_with(place)) {
            return Err(MountError::PrivatePlace { target: target.display().to_string(), place });
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, source, flags).map_err(step("bind", source.display()))?;
        let set = ATTR_NOSUID | ATTR_NODEV | if *writable { 0 } else { ATTR_RDONLY };
        set_attributes(tree.as_fd(), set, true, "restrict bind", source.display())?;
        trees.push(BindTree { tree, target });
    }
    Ok(trees)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    recursive: bool,
    operation: &'static str,
    object: impl Display,
) -> Result<()> {
    mount_setattr(mount, &MountAttr { set, ..MountAttr::default() }, recursive).map_err(step(operation, object))
}

/// Where the host's resolver configuration really is, and what it says, when that is below `/run`, which workers do not see.
fn volatile_resolv_conf() -> Option<(PathBuf, Vec<u8>)> {
    const BYTES_MAX: usize = 64 * 1024;
    // No resolver configuration, or an unreadable one: then workers have none, as the host has none.
    let real = std::fs::canonicalize("/etc/resolv.conf").ok().filter(|path| path.starts_with("/run"))?;
    let text = std::fs::read(&real).ok().filter(|text| text.len() <= BYTES_MAX)?;
    Some((real, text))
}

fn host_view(spec: &TemplateSpec, binds: &[BindTree<'_>], resolv_conf: Option<&(PathBuf, Vec<u8>)>) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, "/", flags).map_err(step("clone the mounts below", "/"))?;
    // Devices too: a node that lies in some chroot of the host is no worker's business, and read-only does not close it.
    set_attributes(tree.as_fd(), ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, true, "make read-only", "the host's view")?;
    enter_root(&tree)?;
    for place in ["/proc", "/dev", "/sys", "/tmp", "/run", "/var/tmp"] {
        uncover(place)?;
    }
    mount_tmpfs("/run", "0755", "1m", 64)?;
    fill_run("/run", resolv_conf)?;
    mount_tmpfs("/dev", "0755", "64k", 64)?;
    fill_dev("/dev")?;
    mount_sysfs("/sys")?;
    cover("/var/tmp")?;
    for hidden in &spec.hidden {
        // What lies below /run or /tmp is out of sight already.
        if !["/run", "/tmp", "/var/tmp"].iter().any(|gone| hidden.starts_with(gone)) && hidden.is_dir() {
            cover(&hidden.to_string_lossy())?;
        }
    }
    for bind in binds {
        if bind.target.starts_with("/run") {
            make_target(bind)?;
        }
        attach(&bind.tree, &bind.target.to_string_lossy())?;
    }
    for place in &spec.places {
        places::make(place)?;
    }
    for place in ["/run", "/dev"] {
        let mount = open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(step("open", place))?;
        set_attributes(mount.as_fd(), ATTR_RDONLY, false, "make read-only", place)?;
    }
    Ok(())
}

/// A root with nothing in it but what every worker has and what is bound, none of which can be written.
fn bare_root(spec: &TemplateSpec, binds: &[BindTree<'_>]) -> Result<()> {
    let root = detached_tmpfs("0755", "256k", 256)?;
    enter_root(&root)?;
    for place in ["/proc", "/dev", "/sys", "/tmp", "/run"] {
        make_dir(place)?;
    }
    fill_run("/run", None)?;
    mount_tmpfs("/dev", "0755", "64k", 64)?;
    fill_dev("/dev")?;
    for bind in binds {
        make_target(bind)?;
        attach(&bind.tree, &bind.target.to_string_lossy())?;
    }
    for place in &spec.places {
        make_dirs(place)?;
    }
    for place in ["/", "/dev"] {
        let mount = open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(step("open", place))?;
        set_attributes(mount.as_fd(), ATTR_RDONLY, false, "make read-only", place)?;
    }
    Ok(())
}

/// The parts of a worker with an overlay root, ready to be put together by the spawn: `/lower`, `/stage`, `/new`, `/carry`.
fn overlay_parts(directory: &Path, binds: &[BindTree<'_>]) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let lower = open_tree(CWD, directory, flags).map_err(step("open root directory", directory.display()))?;
    for missing in ["proc", "dev", "sys", "run", "tmp"] {
        let opening = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolving = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&lower, missing, opening, Mode::empty(), resolving).map_err(|e| MountError::NotARoot {
            root: directory.display().to_string(),
            missing,
            source: e.into(),
        })?;
    }
    set_attributes(
        lower.as_fd(),
        ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV,
        false,
        "make read-only",
        directory.display(),
    )?;
    let root = detached_tmpfs("0755", "1m", 64)?;
    enter_root(&root)?;
    for dir in ["/lower", "/stage", "/new", "/carry", "/carry/dev", "/carry/run", "/carry/sys"] {
        make_dir(dir)?;
    }
    attach(&lower, "/lower")?;
    mount_tmpfs("/carry/run", "0755", "1m", 64)?;
    fill_run("/carry/run", None)?;
    mount_tmpfs("/carry/dev", "0755", "64k", 64)?;
    fill_dev("/carry/dev")?;
    mount_sysfs("/carry/sys")?;
    for (number, bind) in binds.iter().enumerate() {
        let place = carried_bind(number);
        make_dir(&place)?;
        attach(&bind.tree, &place)?;
    }
    for place in ["/carry/run", "/carry/dev"] {
        let mount = open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(step("open", place))?;
        set_attributes(mount.as_fd(), ATTR_RDONLY, false, "make read-only", place)?;
    }
    Ok(())
}

/// Where an overlay template keeps bind `number` until the spawn moves it into the worker's root.
#[must_use]
pub fn carried_bind(number: usize) -> String {
    format!("/carry/bind-{number}")
}

/// Makes a detached mount the root of this process's mount namespace and lets go of the old one.
///
/// # Errors
/// [`MountError::Step`].
pub fn enter_root(tree: &OwnedFd) -> Result<()> {
    attach(tree, "/")?;
    rustix::process::fchdir(tree).map_err(step("enter", "the new root"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot to", "the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("detach", "the old root"))?;
    rustix::process::chdir("/").map_err(step("enter", "/"))
}

fn attach(tree: &OwnedFd, target: &str) -> Result<()> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("mount on", target))
}

/// Takes every mount away from `place`, so that none of the host's shows below what comes on it.
fn uncover(place: &str) -> Result<()> {
    loop {
        match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: nothing is mounted there any more; ENOENT: the host has no such directory.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(step("unmount", place)(errno)),
        }
    }
}

fn detached_tmpfs(mode: &str, size: &str, inodes: u32) -> Result<OwnedFd> {
    let made = (|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "mode", mode)?;
        fsconfig_set_string(context.as_fd(), "size", size)?;
        fsconfig_set_string(context.as_fd(), "nr_inodes", inodes.to_string().as_str())?;
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)
    })();
    made.map_err(step("make", "a tmpfs"))
}

fn mount_tmpfs(target: &str, mode: &str, size: &str, inodes: u32) -> Result<()> {
    attach(&detached_tmpfs(mode, size, inodes)?, target)
}

/// Opens a `/dev/null` for workers. It is no node of the host's: a worker that is the host's root could change that one's mode
/// through its descriptor. It lies on a read-only mount of its own, where none can.
///
/// # Errors
/// [`MountError::Step`].
pub fn private_null() -> Result<OwnedFd> {
    let dir = detached_tmpfs("0755", "4k", 4)?;
    let mode = Mode::from_raw_mode(0o666);
    mknodat(&dir, "null", FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3)).map_err(step("make", "null"))?;
    rustix::fs::chmodat(&dir, "null", mode, rustix::fs::AtFlags::empty())
        .map_err(step("change the mode of", "null"))?;
    set_attributes(dir.as_fd(), ATTR_RDONLY, false, "make read-only", "null")?;
    openat(&dir, "null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(step("open", "null"))
}

/// Covers a directory with an empty one that cannot be written.
fn cover(place: &str) -> Result<()> {
    let tmpfs = detached_tmpfs("0555", "4k", 1)?;
    set_attributes(tmpfs.as_fd(), ATTR_RDONLY | ATTR_NODEV, false, "make read-only", place)?;
    match move_mount(&tmpfs, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
        // ENOENT: the host has no such directory, so there is nothing to cover.
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(step("cover", place)(errno)),
    }
}

fn mount_sysfs(target: &str) -> Result<()> {
    let made = (|| {
        let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    })();
    attach(&made.map_err(step("make", "a sysfs"))?, target)
}

fn make_dir(path: &str) -> Result<()> {
    mkdir(path, Mode::from_raw_mode(0o755)).map_err(step("make", path))?;
    // The daemon's umask does not decide what a worker can enter.
    chmod(path, Mode::from_raw_mode(0o755)).map_err(step("change the mode of", path))
}

/// Makes every directory of a path that is not there, so that workers can enter it.
fn make_dirs(path: &Path) -> Result<()> {
    let mut way = PathBuf::new();
    for part in path {
        way.push(part);
        if !way.is_dir() {
            make_dir(&way.to_string_lossy())?;
        }
    }
    Ok(())
}

/// Makes what a bind is mounted on: a directory for a directory, a file for anything else.
fn make_target(bind: &BindTree<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(&bind.tree).map_err(step("look at", bind.target.display()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return make_dirs(bind.target);
    }
    if let Some(parent) = bind.target.parent() {
        make_dirs(parent)?;
    }
    std::fs::write(bind.target, []).map_err(step("make", bind.target.display()))
}

fn fill_run(run: &str, resolv_conf: Option<&(PathBuf, Vec<u8>)>) -> Result<()> {
    for dir in ["/worker", "/worker/work", "/worker/notify", "/secrets"] {
        make_dir(&format!("{run}{dir}"))?;
    }
    if let Some((path, text)) = resolv_conf {
        if let Some(parent) = path.parent() {
            make_dirs(parent)?;
        }
        std::fs::write(path, text).map_err(step("write", path.display()))?;
        chmod(path, Mode::from_raw_mode(0o644)).map_err(step("change the mode of", path.display()))?;
    }
    Ok(())
}

/// The six device nodes, the links, and the mount points of a private `/dev`.
fn fill_dev(dev: &str) -> Result<()> {
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        let path = format!("{dev}/{name}");
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, &path, FileType::CharacterDevice, mode, rustix::fs::makedev(major, minor))
            .map_err(step("make device", &path))?;
        chmod(&path, mode).map_err(step("change the mode of", &path))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, format!("{dev}/{name}")).map_err(step("link", format_args!("{dev}/{name}")))?;
    }
    make_dir(&format!("{dev}/shm"))?;
    make_dir(&format!("{dev}/pts"))
}
