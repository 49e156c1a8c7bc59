//! The daemon's side: starts a process that reads an archive into a directory, and hears what it reports.
//!
//! The order of calls: [`Reading::start`]; [`Reading::report`] whenever its socket is readable, until there is none;
//! [`Reading::ended`] when its pidfd is. It is the caller's to remove the target if the last report was not `Done`, or the
//! process did not end by itself. Nothing blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{RecvFlags, recv};

use super::VERB;
use super::job::{Job, MESSAGE_BYTES_MAX, Report, Task, send_job};
use crate::host::helper::{Ended, Helper};
use crate::host::identity::{IdentityError, user_namespace};
use crate::sys::mount::{ATTR_IDMAP, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr};

/// The process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The range of ids that it works with.
    #[error("find the reader of the archive an identity")]
    Identity(#[from] IdentityError),
    /// The target's file system cannot show a range of ids as another.
    #[error(
        "the file system of the state directory cannot map ids, which unpacking without root's rights needs: put `state_dir` on ext4, xfs or btrfs (or tmpfs from Linux 6.3 on)"
    )]
    IdMap {
        /// The kernel's reason.
        source: io::Error,
    },
    /// A step that has no sentence of its own.
    #[error("start the reader of the archive: {operation}")]
    Step {
        /// What was being done.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Step { operation, source: source.into() }
}

/// A process that reads an archive.
#[derive(Debug)]
pub struct Reading {
    helper: Helper,
    socket: OwnedFd,
}

impl Reading {
    /// Starts it: `archive` goes into `target`, an empty directory. It works with ids `base`.. on the host, 65,536 of them that
    /// nobody else uses meanwhile; what it makes lies on the disk under ids 0..65,535, as in the archive.
    ///
    /// # Errors
    /// [`StartError`]; then nothing runs.
    pub fn start(archive: BorrowedFd<'_>, target: BorrowedFd<'_>, base: u32, job: &Job) -> Result<Self, StartError> {
        let userns = user_namespace(base)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(target, "", flags).map_err(step("open the target"))?;
        let read_only = if matches!(job.task, Task::Pack(_)) { ATTR_RDONLY } else { 0 };
        let mapped = MountAttr {
            set: ATTR_IDMAP | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | read_only,
            userns_fd: u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&userns)).unwrap_or(u64::MAX),
            ..MountAttr::default()
        };
        mount_setattr(tree.as_fd(), &mapped, false).map_err(|source| StartError::IdMap { source })?;
        let text = serde_json::to_vec(job).map_err(io::Error::from).map_err(step("write its job"))?;
        let (helper, socket) = Helper::run_self(&[VERB]).map_err(step("execute this program"))?;
        match send_job(socket.as_fd(), &text, [archive, tree.as_fd(), userns.as_fd()]) {
            Ok(()) => Ok(Self { helper, socket }),
            Err(errno) => {
                // It has read nothing, and SIGKILL sees to it within a scheduling delay.
                helper.kill().map_err(step("end it"))?;
                crate::host::spawn::wait(helper.pidfd()).map_err(step("wait for its end"))?;
                Err(step("send its job")(errno))
            }
        }
    }

    /// Readable when it reports, and at its end.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Readable when it has ended.
    #[must_use]
    pub const fn pidfd(&self) -> &OwnedFd {
        self.helper.pidfd()
    }

    /// Its next report, if there is one now. What is no report counts as a refusal.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        match retry_on_intr(|| recv(&self.socket, bytes.as_mut_slice(), RecvFlags::DONTWAIT)) {
            Ok((0, _)) | Err(_) => None,
            Ok((count, _)) => {
                let report = serde_json::from_slice(bytes.get(..count).unwrap_or_default());
                Some(report.unwrap_or_else(|_foreign| Report::Refused("its reader spoke nonsense".to_owned())))
            }
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// ESRCH if it was waited for already.
    pub fn kill(&self) -> io::Result<()> {
        self.helper.kill()
    }

    /// How it ended, if it has; reaps it.
    ///
    /// # Errors
    /// ECHILD if somebody else has reaped it.
    pub fn ended(&self) -> io::Result<Option<Ended>> {
        self.helper.ended()
    }
}
