//! Holds a delegated cgroup for daemons that come and go: what `halsup-workers.service` runs.
//!
//! systemd removes a unit's cgroup with its last process, and starts nothing in one whose children have controllers. So workers
//! that are to outlive a daemon live in a unit of their own, and one process sits in a leaf of it and does nothing.

use super::Error;
use super::manager::Manager;
use crate::host::cgroup::{CgroupError, CgroupRoot, Delegation, Location};
use crate::spec::InstanceName;

/// Prepares the cgroup that this process was delegated and stays in it until it is killed.
pub(super) fn hold() -> Result<(), Error> {
    let location = Location::discover(&InstanceName::default(), None)?;
    if location.delegation != Delegation::Delegated {
        let path = location.own.display().to_string();
        return Err(CgroupError::NotDelegated { path }.into());
    }
    let base = location.base.display().to_string();
    let _prepared = CgroupRoot::prepare(location)?;
    Manager::from_environment(&super::launch::environment()).ready(&format!("holds cgroup {base}"));
    loop {
        rustix::event::pause();
    }
}
