//! Directories that the host does not have, in a view of the host that cannot be written.
//!
//! The deepest directory on the way that exists is replaced by a small file system with the same entries, each bound where
//! it was, and the missing one beside them. The host itself is not touched. Called while a template is built, inside it.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdir, open, statat, symlink};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::{ATTR_NODEV, ATTR_RDONLY, MountError, Result, attach, detached_tmpfs, make_dirs, set_attributes, step};

/// More entries than this are not bound one by one: every worker would pay for each of them.
const ENTRIES_MAX: usize = 128;
/// A directory of every template that every worker covers: what is built is built there.
const SITE: &str = "/tmp";

/// Makes the directory `place`, and what is above it, where it is missing.
pub(super) fn make(place: &Path) -> Result<()> {
    if place.is_dir() {
        return Ok(());
    }
    if is_own(place) {
        return make_dirs(place);
    }
    let existing = |path: &&Path| path.is_dir();
    let at = place.ancestors().find(existing).unwrap_or(Path::new("/")).to_owned();
    let entries = entries(&at, place)?;
    let copy = detached_tmpfs("0755", "1m", 1024)?;
    attach(&copy, SITE)?;
    for name in &entries {
        bind(&at, name)?;
    }
    let inside = Path::new(SITE).join(place.strip_prefix(&at).unwrap_or(place));
    make_dirs(&inside)?;
    set_attributes(copy.as_fd(), ATTR_RDONLY | ATTR_NODEV, false, "make read-only", at.display())?;
    if at == Path::new("/") { become_root(&copy) } else { move_to(&at) }
}

/// Whether it lies where the template has a file system of its own, which can still be written.
fn is_own(place: &Path) -> bool {
    ["/run", "/dev"].iter().any(|own| place.starts_with(own))
}

fn entries(at: &Path, place: &Path) -> Result<Vec<std::ffi::OsString>> {
    let failed = |source| MountError::Step { operation: "list", object: at.display().to_string(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(at).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
        if names.len() > ENTRIES_MAX {
            let (place, at) = (place.display().to_string(), at.display().to_string());
            return Err(MountError::Crowded { place, at, most: ENTRIES_MAX });
        }
    }
    Ok(names)
}

/// Puts one entry of `at` into the copy.
fn bind(at: &Path, name: &OsStr) -> Result<()> {
    let (from, to) = (at.join(name), Path::new(SITE).join(name));
    let stat = match statat(CWD, &from, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        // Gone since it was listed.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(step("look at", from.display())(errno)),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = std::fs::read_link(&from).map_err(|source| read_failed(&from, source))?;
            return symlink(target, &to).map_err(step("link", from.display()));
        }
        FileType::Directory => mkdir(&to, Mode::from_raw_mode(0o755)).map_err(step("make", to.display()))?,
        FileType::RegularFile
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(open(&to, flags, Mode::from_raw_mode(0o644)).map_err(step("make", to.display()))?);
        }
    }
    if to == Path::new(SITE).join(SITE.trim_start_matches('/')) && at == Path::new("/") {
        // The site itself, which would hold all this once more.
        return Ok(());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, &from, flags).map_err(step("bind", from.display()))?;
    attach(&tree, &to.to_string_lossy())
}

fn read_failed(path: &Path, source: std::io::Error) -> MountError {
    MountError::Step { operation: "read link", object: path.display().to_string(), source }
}

/// Makes the copy the root of this namespace.
fn become_root(copy: &OwnedFd) -> Result<()> {
    rustix::process::fchdir(copy).map_err(step("enter", "the new root"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot to", "the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("detach", "the old root"))?;
    rustix::process::chdir("/").map_err(step("enter", "/"))
}

/// Puts a second name of the copy where it belongs, and takes the first away.
fn move_to(at: &Path) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, SITE, flags).map_err(step("clone", SITE))?;
    unmount(SITE, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(step("unmount", SITE))?;
    let to: PathBuf = at.to_owned();
    move_mount(&tree, "", CWD, &to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("mount on", at.display()))
}
