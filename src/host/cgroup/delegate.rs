//! Makes the base ready: the daemon in its own leaf, every controller that can be had enabled down to the pools.
//!
//! Never writes to a cgroup above the base, but for `+controller` in `cgroup.subtree_control` on the way from a hierarchy's
//! or namespace's root down. Never moves a process but the daemon, except out of the root of a cgroup namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::controller::{Availability, Controller, Controllers, Missing, lists};
use super::discover::{Delegation, Location, SUPERVISOR, open_below};
use super::files::{ATTRIBUTE_BYTES_MAX, ensure_dir, read_attribute, write_attribute};
use super::{CgroupError, Removal, events};

/// A container's own cgroup is emptied in at most this many passes: its processes may fork meanwhile, and the runtime puts
/// new ones there until controllers are enabled, but not for ever.
const EVACUATION_PASSES: u32 = 250;
/// Pause between passes: what a runtime executes here is for a moment a process that only it can move.
const EVACUATION_PAUSE: Duration = Duration::from_millis(20);
/// At most this many processes are moved in one pass.
const EVACUATION_PIDS_MAX: usize = 4096;

/// The prepared base of one instance.
#[derive(Debug)]
pub struct CgroupRoot {
    location: Location,
    base: OwnedFd,
    controllers: Controllers,
}

impl CgroupRoot {
    /// Creates the base, moves the daemon into `<base>/supervisor`, unless it lives in another unit, and enables controllers
    /// down to the pools' level.
    ///
    /// A controller that cannot be had is no error here: [`Self::controllers`] says which and why.
    ///
    /// # Errors
    /// When the base or the leaf cannot be created, or the daemon cannot be moved.
    pub fn prepare(location: Location) -> Result<Self, CgroupError> {
        let chain = open_chain(&location)?;
        let base = chain.last().map_or(location.mount.as_fd(), |level| level.fd.as_fd());
        let top = open_beneath(&location, &location.top)?;
        let mut controllers = available(&location, top.as_fd())?;
        match location.delegation {
            Delegation::Named => {}
            Delegation::Delegated => drop(enter_leaf(&location, base)?),
            Delegation::HierarchyRoot => {
                enter_leaf(&location, base)?;
                enable(top.as_fd(), "the root", &mut controllers)?;
            }
            Delegation::NamespaceRoot | Delegation::Container => {
                let leaf = enter_leaf(&location, base)?;
                evacuate(top.as_fd(), leaf.as_fd(), &mut controllers)?;
            }
        }
        for level in &chain {
            enable(level.fd.as_fd(), &level.name, &mut controllers)?;
        }
        let base = chain.into_iter().next_back().map(|level| level.fd);
        let base = base.ok_or_else(|| CgroupError::Open { name: String::new(), source: Errno::INVAL })?;
        Ok(Self { location, base, controllers })
    }

    /// Where the base is, and whose.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What workers can be limited by, and what is missing, with the reason.
    #[must_use]
    pub fn controllers(&self) -> &Controllers {
        &self.controllers
    }

    /// Takes the base for this process alone, for as long as the descriptor lives; `None` if another has it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn lock(&self) -> Result<Option<OwnedFd>, CgroupError> {
        use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
        let failed = |source| CgroupError::Open { name: self.location.base.display().to_string(), source };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = openat(self.base.as_fd(), ".", flags, Mode::empty()).map_err(failed)?;
        match flock(&base, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(base)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    pub(super) fn base(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }

    /// Gives the base up at the end of the daemon: goes back to the cgroup it came from and removes what is empty.
    ///
    /// Only below a hierarchy's root; elsewhere whoever gave us the cgroup removes it. `Busy` means that pools or
    /// processes are left and the base stays.
    ///
    /// # Errors
    /// When the daemon cannot leave its leaf, or a removal fails for another reason than use.
    pub fn release(self) -> Result<Removal, CgroupError> {
        if self.location.delegation != Delegation::HierarchyRoot {
            return Ok(Removal::Busy);
        }
        let back = self.location.own.as_path();
        // After a restart the daemon was born in its own leaf: the hierarchy's root takes any process.
        let inside = back.starts_with(&self.location.base);
        let target = open_beneath(&self.location, if inside { Path::new("") } else { back })?;
        write_attribute(target.as_fd(), "cgroup.procs", "0").map_err(|source| CgroupError::Write {
            name: back.display().to_string(),
            file: "cgroup.procs",
            value: "0".to_owned(),
            source,
        })?;
        let mut removal = remove_dir(self.base.as_fd(), SUPERVISOR)?;
        for path in self.location.base.ancestors() {
            let (Some(name), Some(parent)) = (path.file_name().and_then(|name| name.to_str()), path.parent()) else {
                break;
            };
            let parent = open_beneath(&self.location, parent)?;
            let outcome = remove_dir(parent.as_fd(), name)?;
            if outcome == Removal::Busy {
                // The directory above the instance is shared with other instances.
                let own = path == self.location.base;
                removal = if own { Removal::Busy } else { removal };
                break;
            }
        }
        Ok(removal)
    }
}

impl Location {
    /// What the base could have, before anything is created or enabled; for `doctor`.
    ///
    /// # Errors
    /// When a `cgroup.controllers` cannot be read.
    pub fn controllers(&self) -> Result<Controllers, CgroupError> {
        available(self, open_beneath(self, &self.top)?.as_fd())
    }
}

/// Makes the daemon's own leaf and moves it there.
fn enter_leaf(location: &Location, base: BorrowedFd<'_>) -> Result<OwnedFd, CgroupError> {
    let leaf =
        ensure_dir(base, SUPERVISOR).map_err(|source| CgroupError::Create { name: SUPERVISOR.to_owned(), source })?;
    if location.own != location.base.join(SUPERVISOR) {
        write_attribute(leaf.as_fd(), "cgroup.procs", "0").map_err(|source| CgroupError::Write {
            name: SUPERVISOR.to_owned(),
            file: "cgroup.procs",
            value: "0".to_owned(),
            source,
        })?;
    }
    Ok(leaf)
}

/// One directory from the top of what we may touch down to the base.
struct Level {
    name: String,
    fd: OwnedFd,
}

fn open_chain(location: &Location) -> Result<Vec<Level>, CgroupError> {
    if location.delegation.is_given() {
        let fd = open_beneath(location, &location.base)?;
        return Ok(vec![Level { name: location.base.display().to_string(), fd }]);
    }
    let top = open_beneath(location, &location.top)?;
    let mut chain: Vec<Level> = Vec::new();
    for part in location.base.strip_prefix(&location.top).unwrap_or(&location.base) {
        let name = part.to_string_lossy().into_owned();
        let parent = chain.last().map_or(top.as_fd(), |level| level.fd.as_fd());
        let fd = ensure_dir(parent, &name).map_err(|source| CgroupError::Create { name: name.clone(), source })?;
        chain.push(Level { name, fd });
    }
    Ok(chain)
}

fn open_beneath(location: &Location, path: &Path) -> Result<OwnedFd, CgroupError> {
    open_below(location.mount.as_fd(), path)
        .map_err(|source| CgroupError::Open { name: path.display().to_string(), source })
}

/// What the top level could give, before anything is enabled.
fn available(location: &Location, top: BorrowedFd<'_>) -> Result<Controllers, CgroupError> {
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    let listed = read(top, "the base", "cgroup.controllers", &mut buffer)?;
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    let whole = read(location.mount.as_fd(), "the root", "cgroup.controllers", &mut buffer)?;
    Ok(Controllers::from_fn(|controller| {
        if lists(listed, controller) {
            return Availability::Enabled;
        }
        Availability::Missing(why_absent(location, whole, controller))
    }))
}

fn why_absent(location: &Location, listed_at_mount: &str, controller: Controller) -> Missing {
    if location.on_v1.contains(&controller) {
        Missing::OnV1(controller)
    } else if location.real_root && !lists(listed_at_mount, controller) {
        Missing::NotInKernel(controller)
    } else {
        Missing::NotDelegated(controller)
    }
}

/// Enables in `dir`'s children whatever is still available, one by one: the kernel refuses a list as a whole.
pub(super) fn enable(dir: BorrowedFd<'_>, name: &str, controllers: &mut Controllers) -> Result<(), CgroupError> {
    let mut buffer = [0; ATTRIBUTE_BYTES_MAX];
    let enabled = read(dir, name, "cgroup.subtree_control", &mut buffer)?;
    for controller in Controller::ALL {
        if controllers.availability(controller) != Availability::Enabled || lists(enabled, controller) {
            continue;
        }
        if let Err(errno) = write_attribute(dir, "cgroup.subtree_control", controller.enable()) {
            let missing = match errno {
                Errno::BUSY => Missing::ParentHasProcesses(controller),
                Errno::NOENT => Missing::NotDelegated(controller),
                other => Missing::NotEnabled(controller, other),
            };
            controllers.set(controller, Availability::Missing(missing));
        }
    }
    Ok(())
}

/// Moves what lives in `from` to `to` and enables controllers below `from`, until both are done: whatever comes into `from` in
/// between is moved with the next pass. What cannot be moved stays, and is then the reason for what is missing.
fn evacuate(from: BorrowedFd<'_>, to: BorrowedFd<'_>, controllers: &mut Controllers) -> Result<(), CgroupError> {
    let wanted = *controllers;
    for pass in 0..EVACUATION_PASSES {
        let listed = events::pids(from, "the root", EVACUATION_PIDS_MAX)?;
        // A process outside this pid namespace shows as 0, and writing 0 would mean ourselves.
        for pid in listed.pids.iter().filter(|pid| **pid != 0) {
            // One that has ended meanwhile, or that only its runtime can move: the next pass sees which.
            write_attribute(to, "cgroup.procs", &pid.to_string()).unwrap_or_default();
        }
        *controllers = wanted;
        enable(from, "the root", controllers)?;
        let busy =
            |(controller, availability)| availability == Availability::Missing(Missing::ParentHasProcesses(controller));
        if !controllers.iter().any(busy) {
            break;
        }
        // The first passes chase processes that fork; later ones wait for what others do.
        if pass > 2 && !listed.more {
            pause(EVACUATION_PAUSE);
        }
    }
    Ok(())
}

/// Waits a moment, before there is a loop that could: for what the kernel announces to nobody.
pub(super) fn pause(time: Duration) {
    let timeout = Timespec::try_from(time).unwrap_or_default();
    // A signal ends it early, which only makes the next look come sooner.
    poll(&mut [], Some(&timeout)).unwrap_or_default();
}

pub(super) fn remove_dir(parent: BorrowedFd<'_>, name: &str) -> Result<Removal, CgroupError> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Removal::Removed),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(Removal::Busy),
        Err(source) => Err(CgroupError::Remove { name: name.to_owned(), source }),
    }
}

pub(super) fn read<'b>(
    dir: BorrowedFd<'_>,
    name: &str,
    file: &'static str,
    buffer: &'b mut [u8],
) -> Result<&'b str, CgroupError> {
    read_attribute(dir, file, buffer).map_err(|source| CgroupError::Read { name: name.to_owned(), file, source })
}
