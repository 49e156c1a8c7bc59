//! A pool as the daemon holds it: its specification, and what every spawn of it needs, prepared once.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::host::cgroup::PoolCgroup;
use crate::host::workdir::LinkEntry;
use crate::spec::{PoolId, PoolSpec};

/// What every spawn of a pool needs, made at start and reload.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Finished mount namespace.
    pub(super) template: Rc<OwnedFd>,
    /// For a root that is a directory: that directory, to be id-mapped.
    pub(super) lower: Option<OwnedFd>,
    /// Mounts that an overlay's template carries into the root: from, to.
    pub(super) carry: Vec<(std::ffi::CString, std::ffi::CString)>,
    /// System call filter, eight bytes an instruction; empty is none.
    pub(super) filter: Vec<u8>,
    /// What appears in each work directory.
    pub(super) links: Vec<LinkEntry>,
    /// Network namespace to join.
    pub(super) net: Option<Rc<OwnedFd>>,
    /// Parent of its workers' cgroups.
    pub(super) cgroup: PoolCgroup,
    /// Sockets handed in as `LISTEN_FDS`.
    pub(super) listeners: Vec<OwnedFd>,
    /// Uid and gid on the host, where the identity is one of the host's.
    pub(super) host_ids: Option<(u32, u32)>,
    /// RLIMIT_* numbers and values.
    pub(super) rlimits: Vec<(u32, u64)>,
}

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: PoolId,
    pub(super) spec: PoolSpec,
    pub(super) prepared: Prepared,
}

impl Pool {
    /// The name of the worker in `slot`: `web.3`, or a service's own.
    pub(super) fn worker_name(&self, slot: u32) -> String {
        if self.spec.service { self.spec.name.to_string() } else { format!("{}.{slot}", self.spec.name) }
    }
}
