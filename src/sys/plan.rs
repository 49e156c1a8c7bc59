//! What a child between clone and exec is given: everything it needs, prepared, and a place to say how far it came.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, AtomicU32};

/// Descriptors that a worker's init can be given, standard ones included.
pub const PASSED_MAX: usize = 32;
/// Low descriptor numbers of one stack that has them: one to fill with, and more than any plan of the daemon's needs.
pub(super) const SLOTS: usize = 32;
/// How many stacks can have low descriptor numbers: children that are between clone and exec at once, usually.
pub const SLOTTED_STACKS_MAX: usize = 10;
/// What a child takes along of a large descriptor table lies below this number; there is room for what was open before.
pub(super) const LOW_END: usize = PASSED_MAX + SLOTS * SLOTTED_STACKS_MAX + 56;

/// Mounts of its own that a worker can be given, beside its root and its directories.
pub const EXTRA_MOUNTS_MAX: usize = 8;

/// Where a worker's own directory appears inside.
pub const WORK_TARGET: &CStr = c"/run/worker/work";
/// Where the directory with its notify socket appears inside.
pub const NOTIFY_TARGET: &CStr = c"/run/worker/notify";

/// The step that the child was at when it failed. The order is that of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[expect(missing_docs, reason = "host::spawn has a sentence for each")]
pub enum Stage {
    Started = 0,
    Session,
    OpenWorkDir,
    OpenRoot,
    JoinTemplate,
    Unshare,
    JoinNetwork,
    Loopback,
    AttachRoot,
    AttachWorkDir,
    MountProc,
    MaskProc,
    MountTmp,
    MountShm,
    MountPts,
    AttachExtra,
    PivotRoot,
    Hostname,
    Keyring,
    BoundingSet,
    JoinUser,
    Groups,
    Gid,
    Uid,
    VerifyIds,
    Capabilities,
    NoNewPrivileges,
    ParentDeath,
    Descriptors,
    Exec,
}

impl Stage {
    pub(super) const ALL: [Self; 30] = [
        Self::Started,
        Self::Session,
        Self::OpenWorkDir,
        Self::OpenRoot,
        Self::JoinTemplate,
        Self::Unshare,
        Self::JoinNetwork,
        Self::Loopback,
        Self::AttachRoot,
        Self::AttachWorkDir,
        Self::MountProc,
        Self::MaskProc,
        Self::MountTmp,
        Self::MountShm,
        Self::MountPts,
        Self::AttachExtra,
        Self::PivotRoot,
        Self::Hostname,
        Self::Keyring,
        Self::BoundingSet,
        Self::JoinUser,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::VerifyIds,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::ParentDeath,
        Self::Descriptors,
        Self::Exec,
    ];
}

/// The root of a worker whose root is a directory: an overlay, put together inside the template.
#[derive(Debug)]
pub struct Overlay {
    /// A directory with `upper` and `work` in it, on a filesystem that can be an overlay's upper layer.
    pub stage: OwnedFd,
    /// The lower directory, where it has to be id-mapped for this worker; else the template has it.
    pub mapped_lower: Option<OwnedFd>,
    /// Mounts of the template that move into the root: from, to.
    pub carry: Vec<(CString, CString)>,
}

/// A mount that is ready to be attached.
#[derive(Debug)]
pub struct ExtraMount {
    /// The detached mount.
    pub tree: OwnedFd,
    /// Every directory above the target that may be missing, outermost first, and the target itself.
    pub directories: Vec<CString>,
    /// Where it appears inside.
    pub target: CString,
}

/// All that the child needs, prepared before the clone and owned until the child has exec'd or is gone.
#[derive(Debug)]
pub struct Plan {
    /// Finished mount namespace that the child copies.
    pub template: Rc<OwnedFd>,
    /// Network namespace to join; `None` inherits the daemon's.
    pub net: Option<Rc<OwnedFd>>,
    /// Whether it gets a network namespace of its own.
    pub own_net: bool,
    /// User namespace to join, made for this worker's id range.
    pub userns: Option<Rc<OwnedFd>>,
    /// The worker's directory on the host.
    pub work_dir: OwnedFd,
    /// The directory with its notify socket, if it has one.
    pub notify_dir: Option<OwnedFd>,
    /// For a root that is a directory.
    pub overlay: Option<Overlay>,
    /// What else appears inside, at most [`EXTRA_MOUNTS_MAX`]; those beyond are not attached.
    pub extra: Vec<ExtraMount>,
    /// The program of the init, a sealed memfd.
    pub init: Rc<OwnedFd>,
    /// UTS host name.
    pub hostname: CString,
    /// Options of the private tmpfs on `/tmp`.
    pub tmp_options: CString,
    /// Options of the private tmpfs on `/dev/shm`.
    pub shm_options: CString,
    /// Whether `/proc` is made harmless to uid 0 (needed where uid 0 is the host's).
    pub mask_proc: bool,
    /// Whether the child is killed with the daemon.
    pub dies_with_parent: bool,
    /// Uid to become, in the terms of the user namespace that is joined.
    pub uid: u32,
    /// Gid to become, likewise, and the only supplementary group.
    pub gid: u32,
    /// Descriptors that become 0, 1, 2, … in this order; each number is at least [`PASSED_MAX`].
    pub passed: Vec<OwnedFd>,
}

/// How far the child has come; it writes, the daemon reads.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) stage: AtomicU32,
    pub(super) errno: AtomicI32,
}

/// The plan's descriptors by the numbers at which the child finds them; -1 is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) template: i32,
    pub(super) net: i32,
    pub(super) userns: i32,
    pub(super) work_dir: i32,
    pub(super) notify_dir: i32,
    pub(super) stage: i32,
    pub(super) mapped_lower: i32,
    pub(super) init: i32,
    pub(super) extra: [i32; EXTRA_MOUNTS_MAX],
    pub(super) passed: [i32; PASSED_MAX],
}

impl Numbers {
    /// As the daemon has them. Beyond [`PASSED_MAX`] nothing is passed.
    pub(super) fn of(plan: &Plan) -> Self {
        let shared = |fd: &Option<Rc<OwnedFd>>| fd.as_ref().map_or(-1, |fd| fd.as_raw_fd());
        let own = |fd: Option<&OwnedFd>| fd.map_or(-1, AsRawFd::as_raw_fd);
        let mut passed = [-1; PASSED_MAX];
        for (number, fd) in passed.iter_mut().zip(&plan.passed) {
            *number = fd.as_raw_fd();
        }
        let mut extra = [-1; EXTRA_MOUNTS_MAX];
        for (number, mount) in extra.iter_mut().zip(&plan.extra) {
            *number = mount.tree.as_raw_fd();
        }
        Self {
            template: plan.template.as_raw_fd(),
            net: shared(&plan.net),
            userns: shared(&plan.userns),
            work_dir: plan.work_dir.as_raw_fd(),
            notify_dir: own(plan.notify_dir.as_ref()),
            stage: own(plan.overlay.as_ref().map(|overlay| &overlay.stage)),
            mapped_lower: own(plan.overlay.as_ref().and_then(|overlay| overlay.mapped_lower.as_ref())),
            init: plan.init.as_raw_fd(),
            extra,
            passed,
        }
    }

    /// Those that there are.
    pub(super) fn present(&mut self) -> impl Iterator<Item = &mut i32> {
        let single = [
            &mut self.template,
            &mut self.net,
            &mut self.userns,
            &mut self.work_dir,
            &mut self.notify_dir,
            &mut self.stage,
            &mut self.mapped_lower,
            &mut self.init,
        ];
        single.into_iter().chain(&mut self.extra).chain(&mut self.passed).filter(|number| **number >= 0)
    }
}

/// What the child is given: one pointer to all.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) plan: Plan,
    pub(super) numbers: Numbers,
    /// Whether the child begins in the daemon's own descriptor table and has to leave it, taking the low numbers along.
    pub(super) leaves_table: bool,
    pub(super) progress: Progress,
}
