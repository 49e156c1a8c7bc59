//! Decides where halsup's subtree goes: the cgroup that systemd delegated, a container's root, or the hierarchy's root.
//!
//! Reads only; creates and moves nothing, so `doctor` may call it too.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fgetxattr, fstatfs, openat, openat2, statat};
use rustix::io::Errno;

use super::controller::Controller;
use super::{CgroupError, container};
use crate::host::mountinfo::{self, Mount};
use crate::spec::InstanceName;

/// The directory that holds all instances where halsup is not in a subtree of its own.
pub(super) const TOP: &str = "halsup";
/// The daemon's own leaf.
pub(super) const SUPERVISOR: &str = "supervisor";
/// `/proc/self/cgroup` has a line per hierarchy, each with a path.
const OWN_BYTES_MAX: u64 = 64 << 10;
/// From linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Whose cgroup the base is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delegation {
    /// A container's cgroup, seen from the host's cgroup namespace (`docker run --cgroupns host`): the base is
    /// `halsup/<instance>` below it, and what lives in it is moved there, as with a namespace's root.
    Container,
    /// systemd gave this unit's cgroup to us (`Delegate=yes`): the base is that cgroup.
    Delegated,
    /// The root of a cgroup namespace, as in a privileged container: the base is `halsup/<instance>` below it, and what
    /// lives in that root is moved out of it.
    NamespaceRoot,
    /// The base is a delegated cgroup that was named to us and that the daemon does not live in, as that of
    /// `halsup-workers.service`.
    Named,
    /// The base is `halsup/<instance>` below the root of the hierarchy.
    HierarchyRoot,
}

impl Delegation {
    /// Whether somebody gave us the base: then what is above it is not ours to touch.
    pub(super) const fn is_given(self) -> bool {
        matches!(self, Self::Delegated | Self::Named)
    }
}

/// Where the subtree is, or is to be.
#[derive(Debug)]
pub struct Location {
    /// Where the hierarchy is mounted.
    pub mount_point: PathBuf,
    /// The base below the mount point; empty is the mount point itself.
    pub base: PathBuf,
    /// Whose the base is.
    pub delegation: Delegation,
    /// The highest cgroup in which anything is written, below the mount point; empty is the mount point itself.
    pub(super) top: PathBuf,
    /// This process's cgroup below the mount point.
    pub own: PathBuf,
    /// Whether the mount point shows the hierarchy's real root, which has no `cgroup.type`.
    pub(super) real_root: bool,
    /// Controllers that version 1 holds.
    pub(super) on_v1: Vec<Controller>,
    pub(super) mount: OwnedFd,
}

/// What [`decide`] asks of the hierarchy.
struct Facts<'f> {
    own: &'f Path,
    /// The cgroup of the container that this is, where it is not the root of a cgroup namespace.
    container: Option<&'f Path>,
    real_root: bool,
    own_delegated: bool,
    parent_delegated: bool,
}

impl Location {
    /// Finds the version 2 hierarchy and this process in it, and decides on the base: `named`, if there is one, absolute
    /// in the hierarchy or beside this process's cgroup.
    ///
    /// # Errors
    /// Says whether nothing is mounted, this process's cgroup is outside what is mounted, or `named` was not delegated.
    pub fn discover(instance: &InstanceName, named: Option<&Path>) -> Result<Self, CgroupError> {
        let text = read_own()?;
        let own_name = own_path(&text).ok_or_else(|| CgroupError::OwnCgroup(io::ErrorKind::InvalidData.into()))?;
        let mounts = mountinfo::read()?;
        let (mount_point, own) = visible(&mounts, own_name)?;
        let mount = open_mount(&mount_point)?;
        let real_root = statat(&mount, "cgroup.type", AtFlags::empty()).is_err();
        if let Some(named) = named {
            let base = beside(&own, named);
            if !is_delegated(mount.as_fd(), &base) {
                return Err(CgroupError::NotDelegated { path: base.display().to_string() });
            }
            let delegation = if own.starts_with(&base) { Delegation::Delegated } else { Delegation::Named };
            let top = base.clone();
            return Ok(Self { mount_point, base, delegation, top, own, real_root, on_v1: on_v1(&text), mount });
        }
        let container = container::own_cgroup(&mounts, mount.as_fd(), &own);
        let facts = Facts {
            own: &own,
            container: container.as_deref(),
            real_root,
            own_delegated: is_delegated(mount.as_fd(), &own),
            parent_delegated: own.parent().is_some_and(|parent| is_delegated(mount.as_fd(), parent)),
        };
        let (delegation, base) = decide(&facts, instance);
        let top = match delegation {
            Delegation::Container => container.unwrap_or_default(),
            Delegation::Delegated | Delegation::Named => base.clone(),
            Delegation::NamespaceRoot | Delegation::HierarchyRoot => PathBuf::new(),
        };
        Ok(Self { mount_point, base, delegation, top, own, real_root, on_v1: on_v1(&text), mount })
    }

    /// The base as a path to show.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.mount_point.join(&self.base)
    }
}

fn decide(facts: &Facts<'_>, instance: &InstanceName) -> (Delegation, PathBuf) {
    let base = Path::new(TOP).join(instance.as_str());
    if let Some(container) = facts.container {
        return (Delegation::Container, container.join(base));
    }
    let in_leaf = facts.own.file_name().is_some_and(|name| name == SUPERVISOR);
    if facts.own_delegated && facts.own.parent().is_some() {
        return (Delegation::Delegated, facts.own.to_path_buf());
    }
    if in_leaf && facts.parent_delegated {
        let parent = facts.own.parent().unwrap_or(Path::new(""));
        return (Delegation::Delegated, parent.to_path_buf());
    }
    // A namespace's root is shared by all instances in the container, so the base is the same as on a bare host; two
    // instances then never meet.
    let ours = facts.own.as_os_str().is_empty() || facts.own.starts_with(TOP);
    if !facts.real_root && ours { (Delegation::NamespaceRoot, base) } else { (Delegation::HierarchyRoot, base) }
}

/// Where the cgroup is that was named, below the mount point.
fn beside(own: &Path, named: &Path) -> PathBuf {
    named
        .strip_prefix("/")
        .map_or_else(|_relative| own.parent().unwrap_or(Path::new("")).join(named), Path::to_path_buf)
}

fn read_own() -> Result<String, CgroupError> {
    let mut text = String::new();
    let file = File::open("/proc/self/cgroup").map_err(CgroupError::OwnCgroup)?;
    file.take(OWN_BYTES_MAX).read_to_string(&mut text).map_err(CgroupError::OwnCgroup)?;
    Ok(text)
}

/// The path of the `0::` line.
pub(super) fn own_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.starts_with('/'))
}

/// The controllers that stand in lines of version 1 hierarchies, which are all but the one with number 0.
fn on_v1(text: &str) -> Vec<Controller> {
    let names = text.lines().filter(|line| !line.starts_with("0::")).filter_map(|line| line.split(':').nth(1));
    let names: Vec<&str> = names.flat_map(|names| names.split(',')).collect();
    Controller::ALL.into_iter().filter(|controller| names.contains(&controller.v1_name())).collect()
}

/// The first version 2 mount below which `own` can be seen, and `own` relative to it.
fn visible(mounts: &[Mount], own: &str) -> Result<(PathBuf, PathBuf), CgroupError> {
    let mut candidates = mounts.iter().filter(|mount| mount.fs_type == super::FS_TYPE).peekable();
    if candidates.peek().is_none() {
        return Err(CgroupError::NotMounted);
    }
    // A later mount on the same point hides an earlier one; both show the same hierarchy, so the first that fits is right.
    candidates
        .find_map(|mount| Some((mount.mount_point.clone(), relative(&mount.root, own)?)))
        .ok_or_else(|| CgroupError::NotVisible { own: own.chars().take(200).collect() })
}

/// `own` below `root`, where both are as the kernel shows them in this cgroup namespace: what is outside has a `..`.
pub(super) fn relative(root: &Path, own: &str) -> Option<PathBuf> {
    let own = own.strip_suffix(" (deleted)").unwrap_or(own);
    let climbs = |path: &Path| path.components().any(|part| part == std::path::Component::ParentDir);
    let own = Path::new(own);
    if climbs(root) || climbs(own) {
        return None;
    }
    own.strip_prefix(root).ok().map(Path::to_path_buf)
}

/// Opens a directory of the hierarchy by its path below the mount; an empty one is the mount itself.
pub(super) fn open_below(mount: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(
        mount,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

fn open_mount(path: &Path) -> Result<OwnedFd, CgroupError> {
    let name = || path.display().to_string();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty()).map_err(|source| CgroupError::Open { name: name(), source })?;
    let stat = fstatfs(&fd).map_err(|source| CgroupError::Open { name: name(), source })?;
    if u64::try_from(stat.f_type).ok() == Some(CGROUP2_SUPER_MAGIC) {
        Ok(fd)
    } else {
        Err(CgroupError::NotCgroup2 { path: name() })
    }
}

/// Whether systemd marked the cgroup at `path` as delegated. As root it sets the trusted attribute, else the user one.
fn is_delegated(mount: BorrowedFd<'_>, path: &Path) -> bool {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let Ok(dir) = openat2(mount, path, flags, Mode::empty(), resolve) else { return false };
    ["trusted.delegate", "user.delegate"].into_iter().any(|name| {
        let mut value = [0_u8; 8];
        fgetxattr(&dir, name, &mut value[..]).is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(own: &str, real_root: bool, own_delegated: bool, parent_delegated: bool) -> (Delegation, String) {
        let facts = Facts { own: Path::new(own), container: None, real_root, own_delegated, parent_delegated };
        let (delegation, base) = decide(&facts, &InstanceName::default());
        (delegation, base.display().to_string())
    }

    #[test]
    fn the_base_is_decided_by_whose_cgroup_we_are_in() {
        let unit = "system.slice/halsup.service";
        let leaf = "system.slice/halsup.service/supervisor";
        let own = "halsup/default";
        let table = [
            (unit, true, true, false, Delegation::Delegated, unit),
            (leaf, true, false, true, Delegation::Delegated, unit),
            (unit, true, false, false, Delegation::HierarchyRoot, own),
            (unit, true, false, true, Delegation::HierarchyRoot, own),
            ("", true, false, false, Delegation::HierarchyRoot, own),
            ("", true, true, false, Delegation::HierarchyRoot, own),
            ("halsup/default/supervisor", true, false, false, Delegation::HierarchyRoot, own),
            ("", false, false, false, Delegation::NamespaceRoot, own),
            ("halsup/default/supervisor", false, false, false, Delegation::NamespaceRoot, own),
            ("halsup/other/supervisor", false, false, false, Delegation::NamespaceRoot, own),
            ("init", false, false, false, Delegation::HierarchyRoot, own),
        ];
        for (path, real_root, own_delegated, parent_delegated, delegation, base) in table {
            let found = decided(path, real_root, own_delegated, parent_delegated);
            assert_eq!(found, (delegation, base.to_owned()), "{path} {real_root} {own_delegated} {parent_delegated}");
        }
    }

    #[test]
    fn a_cgroup_that_is_named_is_absolute_or_beside_our_own() {
        let at = |own: &str, named: &str| beside(Path::new(own), Path::new(named)).display().to_string();
        assert_eq!(at("a.slice/halsup.service", "w.service"), "a.slice/w.service");
        assert_eq!(at("a.slice/halsup.service", "/b.slice/w.service"), "b.slice/w.service");
        assert_eq!(at("halsup.service", "w.service"), "w.service");
        assert_eq!(at("", "w.service"), "w.service");
    }

    #[test]
    fn a_container_that_sees_the_host_s_hierarchy_stays_in_its_own_cgroup() {
        // As systemd makes them for Docker, such cgroups are delegated.
        for (own, delegated) in [("docker/1", false), ("docker/1", true), ("docker/1/halsup/default/supervisor", false)]
        {
            let container = Some(Path::new("docker/1"));
            let facts = Facts {
                own: Path::new(own),
                container,
                real_root: true,
                own_delegated: delegated,
                parent_delegated: false,
            };
            let base = PathBuf::from("docker/1/halsup/default");
            assert_eq!(decide(&facts, &InstanceName::default()), (Delegation::Container, base), "{own}");
        }
    }

    #[test]
    fn own_path_is_the_line_of_version_2() {
        let hybrid = "9:name=systemd:/\n4:memory:/x\n2:cpu,cpuacct:/\n1:blkio:/\n0::/user.slice/a b\n";
        assert_eq!(own_path(hybrid), Some("/user.slice/a b"));
        assert_eq!(on_v1(hybrid), vec![Controller::Cpu, Controller::Memory, Controller::Io]);
        assert_eq!(own_path("4:memory:/x\n"), None);
        assert_eq!(own_path("0::nonsense\n"), None);
        assert!(on_v1("0::/\n").is_empty());
    }

    #[test]
    fn own_cgroup_is_relative_to_what_the_mount_shows() {
        let at = |root: &str, own: &str| relative(Path::new(root), own).map(|path| path.display().to_string());
        assert_eq!(at("/", "/a/b").as_deref(), Some("a/b"));
        assert_eq!(at("/", "/").as_deref(), Some(""));
        assert_eq!(at("/docker/1", "/docker/1/x").as_deref(), Some("x"));
        assert_eq!(at("/docker/1", "/docker/12"), None);
        assert_eq!(at("/", "/../other"), None);
        assert_eq!(at("/..", "/"), None);
        assert_eq!(at("/", "/gone (deleted)").as_deref(), Some("gone"));
    }

    #[test]
    fn the_mount_is_the_one_that_shows_us() {
        let mounts = mountinfo::parse(
            b"30 1 0:1 / /sys/fs/cgroup rw - tmpfs t rw\n\
              31 30 0:2 / /sys/fs/cgroup/memory rw - cgroup c rw,memory\n\
              32 30 0:3 /elsewhere /mnt rw - cgroup2 c rw\n\
              33 30 0:3 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n",
        );
        let (mount_point, own) = visible(&mounts, "/a").unwrap();
        assert_eq!(mount_point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(own, Path::new("a"));
        assert!(matches!(visible(&mounts[..2], "/a"), Err(CgroupError::NotMounted)));
        assert!(matches!(visible(&mounts[..3], "/a"), Err(CgroupError::NotVisible { .. })));
    }
}
