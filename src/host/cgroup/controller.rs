//! The controllers that halsup uses, and why one may be missing.

use std::fmt;

use rustix::io::Errno;

/// A controller of cgroup v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Which processors.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// Number of processes.
    Pids,
    /// Block devices.
    Io,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Cpuset, Self::Memory, Self::Pids, Self::Io];

    /// The kernel's name, as in `cgroup.controllers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    /// The name of the version 1 controller that takes this one away from version 2.
    pub(super) fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            Self::Cpu | Self::Cpuset | Self::Memory | Self::Pids => self.name(),
        }
    }

    /// What is written to `cgroup.subtree_control`.
    pub(super) fn enable(self) -> &'static str {
        match self {
            Self::Cpu => "+cpu",
            Self::Cpuset => "+cpuset",
            Self::Memory => "+memory",
            Self::Pids => "+pids",
            Self::Io => "+io",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Cpu => 0,
            Self::Cpuset => 1,
            Self::Memory => 2,
            Self::Pids => 3,
            Self::Io => 4,
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a limit is not enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// A version 1 hierarchy holds the controller.
    #[error("controller {0} is on a cgroup v1 hierarchy (boot with systemd.unified_cgroup_hierarchy=1)")]
    OnV1(Controller),
    /// The kernel has no such controller, or it was disabled at boot.
    #[error("controller {0} is not in this kernel, or was disabled at boot")]
    NotInKernel(Controller),
    /// The controller is not among those that this subtree was given.
    #[error("controller {0} is not delegated to this cgroup (in a systemd unit: Delegate=yes)")]
    NotDelegated(Controller),
    /// Processes live in a cgroup of which children were to be controlled.
    #[error("controller {0} cannot be enabled while other processes live in the parent cgroup")]
    ParentHasProcesses(Controller),
    /// The kernel refused to enable the controller.
    #[error("controller {0} cannot be enabled: {1}")]
    NotEnabled(Controller, Errno),
    /// The controller is there, but not this file of it.
    #[error("this kernel has no such file for controller {0}")]
    NoFile(Controller),
    /// The kernel refused the value.
    #[error("the kernel refused it: {0}")]
    Refused(Errno),
    /// The kernel accepted the value and holds another.
    #[error("the kernel holds another value after writing")]
    NotKept,
    /// None of the processors asked for is usable here, so the kernel takes those of the parent instead.
    #[error("none of these processors is usable here")]
    NoSuchProcessor,
}

/// Whether a controller can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It is enabled for workers.
    Enabled,
    /// It is not, for this reason.
    Missing(Missing),
}

/// What of each controller can be used at one level of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controllers([Availability; 5]);

impl Controllers {
    pub(super) fn from_fn(mut availability: impl FnMut(Controller) -> Availability) -> Self {
        Self(Controller::ALL.map(&mut availability))
    }

    /// Whether `controller` can be used, and if not, why.
    #[must_use]
    pub fn availability(&self, controller: Controller) -> Availability {
        self.0.get(controller.index()).copied().unwrap_or(Availability::Missing(Missing::NotInKernel(controller)))
    }

    /// Each controller with its availability.
    pub fn iter(&self) -> impl Iterator<Item = (Controller, Availability)> + '_ {
        Controller::ALL.into_iter().map(|controller| (controller, self.availability(controller)))
    }

    pub(super) fn set(&mut self, controller: Controller, availability: Availability) {
        if let Some(place) = self.0.get_mut(controller.index()) {
            *place = availability;
        }
    }
}

/// Whether the space-separated `list` of a `cgroup.controllers` names `controller`.
pub(super) fn lists(list: &str, controller: Controller) -> bool {
    list.split_ascii_whitespace().any(|name| name == controller.name())
}
