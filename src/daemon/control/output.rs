//! Replies on their way to one client, bounded.
//!
//! A client that never reads costs at most the reply being written and [`QUEUED_BYTES_MAX`] behind it, then it is let go
//! (HARDENING R24).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::daemon::message::send_with;

/// How much may wait behind the reply that is being written, in bytes.
pub(super) const QUEUED_BYTES_MAX: usize = 1 << 20;

/// How much is written in one turn of the loop, in bytes.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// The reader is too slow: the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// How far a write came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing is left.
    All,
    /// The socket takes no more for now; the kernel says when it does.
    Blocked,
    /// The budget of the turn is spent; the kernel will not say so.
    More,
    /// The client is gone.
    Gone,
}

/// A reply, and the descriptor that goes with its first byte.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    passed: Option<OwnedFd>,
}

impl Outgoing {
    fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Output {
    frames: VecDeque<Outgoing>,
    /// How much of the first one is written.
    written: usize,
    /// Length of all of them.
    bytes: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Queues a frame. The first is always taken, whatever its length: the protocol bounds it.
    pub(super) fn push(&mut self, frame: Vec<u8>) -> Result<(), Full> {
        self.push_with(frame, None)
    }

    /// Queues a frame with the descriptor that goes with it.
    pub(super) fn push_with(&mut self, frame: Vec<u8>, passed: Option<OwnedFd>) -> Result<(), Full> {
        let behind = self.bytes - self.frames.front().map_or(0, Outgoing::len);
        if !self.frames.is_empty() && behind + frame.len() > QUEUED_BYTES_MAX {
            return Err(Full);
        }
        self.bytes += frame.len();
        self.frames.push_back(Outgoing { bytes: frame, passed });
        Ok(())
    }

    /// Forgets all that has not begun to be written.
    pub(super) fn cut(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
        self.bytes = self.frames.front().map_or(0, Outgoing::len);
    }

    /// Writes as much as the socket and the budget take.
    pub(super) fn write(&mut self, socket: BorrowedFd<'_>) -> Written {
        let mut budget = WRITE_BYTES_MAX;
        while let Some(frame) = self.frames.front() {
            let rest = frame.bytes.get(self.written..).unwrap_or_default();
            let passed = frame.passed.as_ref().filter(|_| self.written == 0);
            match send_with(socket, rest, passed.map(AsFd::as_fd)) {
                Ok(count) if count >= rest.len() => {
                    self.bytes -= frame.len();
                    self.written = 0;
                    self.frames.pop_front();
                    budget = budget.saturating_sub(count);
                }
                Ok(count) => {
                    self.written += count;
                    budget = budget.saturating_sub(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Written::Blocked,
                Err(_gone) => return Written::Gone,
            }
            if budget == 0 && !self.frames.is_empty() {
                return Written::More;
            }
        }
        Written::All
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn one_reply_of_any_length_and_a_bounded_queue_behind_it() {
        let mut output = Output::default();
        assert_eq!(output.push(vec![1; 4 * QUEUED_BYTES_MAX]), Ok(()));
        assert_eq!(output.push(vec![2; QUEUED_BYTES_MAX]), Ok(()));
        assert_eq!(output.push(vec![3; 1]), Err(Full));
        output.cut();
        assert!(output.is_empty(), "nothing had begun");
        assert_eq!(output.push(vec![1; 10]), Ok(()));
    }

    #[test]
    fn all_arrives_in_order_however_it_is_cut() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut output = Output::default();
        let frames: Vec<Vec<u8>> = (1..=8_u8).map(|n| vec![n; 100_000]).collect();
        for frame in &frames {
            output.push(frame.clone()).unwrap();
        }
        let mut received = vec![0; 800_000];
        let mut filled = 0;
        let mut blocked = false;
        loop {
            match output.write(near.as_fd()) {
                Written::All => break,
                Written::Blocked => blocked = true,
                Written::More => {}
                Written::Gone => panic!("the peer is there"),
            }
            filled += far.read(&mut received[filled..]).unwrap();
        }
        far.read_exact(&mut received[filled..]).unwrap();
        assert!(blocked, "800 kB do not fit the socket at once");
        assert!(received == frames.concat());
        assert!(output.is_empty() && output.bytes == 0);
    }

    #[test]
    fn a_cut_leaves_what_has_begun() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut output = Output::default();
        output.push(vec![1; 1 << 20]).unwrap();
        output.push(vec![2; 10]).unwrap();
        assert_eq!(output.write(near.as_fd()), Written::Blocked);
        output.cut();
        assert_eq!((output.frames.len(), output.bytes), (1, 1 << 20), "half a frame cannot be taken back");
    }

    #[test]
    fn a_peer_that_is_gone_is_no_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let mut output = Output::default();
        output.push(vec![1]).unwrap();
        assert_eq!(output.write(near.as_fd()), Written::Gone);
    }
}
