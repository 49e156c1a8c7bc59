//! Sends bytes on a unix socket with at most one descriptor beside them: to clients and to workers, never waiting.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};

/// Sends once, with the descriptor beside the first byte if there is one. How many bytes the socket took.
///
/// # Errors
/// The kernel's: `EAGAIN` where the socket takes nothing for now.
pub(super) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], passed: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let Some(passed) = passed else { return send(socket, bytes, flags) };
    let fds = [passed];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The room is that of one descriptor; without it the bytes would speak of what never comes.
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}
