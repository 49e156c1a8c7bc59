//! What is said between the daemon and the process that reads an archive: one job, then reports until the last.
//!
//! The job comes from the daemon and is believed. Reports come from a process that may have been taken over by what it
//! reads: whoever receives one checks it as if a stranger had written it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::pack::{Pack, Packed};
use super::unpack::{Limits, Totals};

/// The longest message, in bytes.
pub(super) const MESSAGE_BYTES_MAX: usize = 96 << 10;
/// Descriptors of a job: the archive, the target's mount, the user namespace.
const DESCRIPTORS: usize = 3;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Whose death ends it: the daemon's pid.
    pub parent: u32,
    /// What the archive is.
    pub task: Task,
    /// What it may cost.
    pub limits: Limits,
}

/// What an archive is taken for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A tar of a directory's content, compressed or not; it goes into the target as it is.
    Tree,
    /// An image: a tar of a root file system, what `docker save` wrote, or a tar of an OCI layout. The target becomes its root
    /// file system.
    Image,
    /// No archive yet: the target, which is not written, becomes one.
    Pack(Pack),
}

/// What a reader of archives says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// It goes on.
    Progress {
        /// Bytes of the archive that were read.
        read: u64,
        /// What was made of them.
        totals: Totals,
    },
    /// All is on the disk.
    Done(Box<Done>),
    /// All is in the archive.
    Packed(Packed),
    /// It is not taken, and why, as one sentence.
    Refused(String),
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Of the whole, as `sha256:…`: of an image's configuration, or of the tar without its compression.
    pub digest: String,
    /// Counts.
    pub totals: Totals,
    /// Names that the archive has for an image.
    pub names: Vec<String>,
    /// What an image says of the program in it; untrusted.
    pub config: crate::spec::ImageConfig,
}

/// Sends a job with its descriptors.
///
/// # Errors
/// What the kernel says.
pub(super) fn send_job(socket: BorrowedFd<'_>, job: &[u8], fds: [BorrowedFd<'_>; DESCRIPTORS]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let text = [IoSlice::new(job)];
    retry_on_intr(|| sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives a job.
///
/// # Errors
/// What the kernel says; EBADMSG for anything but a job.
pub(super) fn receive_job(socket: BorrowedFd<'_>) -> Result<(Job, [OwnedFd; DESCRIPTORS]), Errno> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let job = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default());
    match (job, <[OwnedFd; DESCRIPTORS]>::try_from(fds)) {
        (Ok(job), Ok(fds)) => Ok((job, fds)),
        (_, _) => Err(Errno::BADMSG),
    }
}

/// Whether a report has to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Better late than never.
    Certain,
    /// A later one says more.
    IfThereIsRoom,
}

impl Report {
    /// Sends it.
    pub(super) fn send(&self, socket: BorrowedFd<'_>, delivery: Delivery) -> Result<(), Errno> {
        let flags = match delivery {
            Delivery::Certain => SendFlags::NOSIGNAL,
            Delivery::IfThereIsRoom => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        };
        let text = serde_json::to_vec(self).map_err(|_unwritable| Errno::BADMSG)?;
        match retry_on_intr(|| send(socket.as_fd(), &text, flags)) {
            Err(Errno::AGAIN) if delivery == Delivery::IfThereIsRoom => Ok(()),
            sent => sent.map(drop),
        }
    }
}
