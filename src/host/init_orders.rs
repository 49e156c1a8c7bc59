//! What the daemon says to an init: one packet with the descriptors that belong to it. Never waits.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::protocol::init::{ORDER_FDS_MAX, Order};

/// An order as it is sent.
fn packet(order: Order) -> [u8; size_of::<Order>()] {
    let mut bytes = [0_u8; size_of::<Order>()];
    for (to, word) in bytes.chunks_exact_mut(8).zip([order.what, order.program]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Sends an order with at most [`ORDER_FDS_MAX`] descriptors.
///
/// # Errors
/// EPIPE when the init has just ended, EAGAIN when it does not read, ENOMEM.
pub fn order(socket: BorrowedFd<'_>, order: Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ORDER_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS.into());
    }
    let bytes = packet(order);
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[io::IoSlice::new(&bytes)], &mut ancillary, flags)?;
    Ok(())
}
