//! Carries bytes between this program's standard descriptors and a program without a terminal in a worker.
//!
//! Output is shown as fast as it is taken here, and no faster: who reads ours holds back the program there.

use std::io::{ErrorKind, Read as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::relay::Left;
use crate::cli::error::Error;
use crate::protocol::attach::{Decoder, Frame as _, FromViewer, PAYLOAD_BYTES_MAX, ToViewer};

/// Nothing more is read of standard input while this much waits for the daemon.
const OUTGOING_BYTES_MAX: usize = 256 * 1024;
const METHOD: &str = "Exec";

/// What is done with standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Input {
    /// It is the program's.
    Passed,
    /// The program's is at its end.
    Closed,
}

/// A program that is run elsewhere.
struct Piped {
    stream: UnixStream,
    frames: Decoder<ToViewer>,
    outgoing: Vec<u8>,
    /// Standard input is read.
    reads: bool,
    buffer: Vec<u8>,
}

/// Carries bytes until the program has ended or the daemon is gone.
///
/// # Errors
/// The connection is broken, or nobody reads our output.
pub(in crate::cli) fn relay((stream, rest): (UnixStream, Vec<u8>), input: Input) -> Result<Left, Error> {
    let failed = |source| Error::Call { method: METHOD, source };
    stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_write_timeout(None))
        .and_then(|()| stream.set_nonblocking(true))
        .map_err(failed)?;
    let (frames, outgoing) = (Decoder::default(), Vec::new());
    let mut piped =
        Piped { stream, frames, outgoing, reads: input == Input::Passed, buffer: vec![0; PAYLOAD_BYTES_MAX] };
    piped.frames.push(&rest);
    if input == Input::Closed {
        piped.outgoing.extend(FromViewer::InputEnded.encode());
    }
    loop {
        if let Some(left) = piped.take_frames()? {
            return Ok(left);
        }
        let (typed, said) = piped.wait()?;
        if typed {
            piped.read_input()?;
        }
        piped.write();
        if said && !piped.read()? {
            return Ok(piped.take_frames()?.unwrap_or(Left::Lost));
        }
    }
}

impl Piped {
    /// Whether there is standard input to read, and something of the daemon's.
    fn wait(&self) -> Result<(bool, bool), Error> {
        let stdin = std::io::stdin();
        let listens = self.reads && self.outgoing.len() < OUTGOING_BYTES_MAX;
        let writes = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let stream = PollFd::new(&self.stream, PollFlags::IN | writes);
        let mut polled = [stream, PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        // Who does not listen is not told that the other end has hung up either.
        let polled = if listens { &mut polled[..] } else { &mut polled[..1] };
        match poll(polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Call { method: METHOD, source: errno.into() }),
        }
        let is_ready = |place: usize| {
            polled
                .get(place)
                .is_some_and(|one| one.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
        };
        Ok((is_ready(1), is_ready(0)))
    }

    fn read_input(&mut self) -> Result<(), Error> {
        let frame = match rustix::io::read(std::io::stdin(), &mut self.buffer[..]) {
            Ok(0) => {
                self.reads = false;
                FromViewer::InputEnded
            }
            Ok(count) => FromViewer::Input(self.buffer.get(..count).unwrap_or_default().to_vec()),
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(Error::Input { source: errno.into() }),
        };
        self.outgoing.extend(frame.encode());
        Ok(())
    }

    fn write(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) if count > 0 => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // That the daemon is gone is heard by reading.
                Ok(_) | Err(_) => return self.outgoing.clear(),
            }
        }
    }

    /// Reads a piece of what the daemon says; `false` at its end.
    fn read(&mut self) -> Result<bool, Error> {
        match self.stream.read(&mut self.buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.frames.push(self.buffer.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(error) if [ErrorKind::Interrupted, ErrorKind::WouldBlock].contains(&error.kind()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(source) => Err(Error::Call { method: METHOD, source }),
        }
    }

    fn take_frames(&mut self) -> Result<Option<Left>, Error> {
        let unclear =
            |error: crate::protocol::attach::AttachError| Error::Answer { method: METHOD, reason: error.to_string() };
        while let Some(frame) = self.frames.next_frame().map_err(unclear)? {
            match frame {
                ToViewer::Output(bytes) => show(&mut std::io::stdout().lock(), &bytes)?,
                ToViewer::ErrorOutput(bytes) => show(&mut std::io::stderr().lock(), &bytes)?,
                ToViewer::Ended(ended) => return Ok(Some(Left::Ended(ended))),
                ToViewer::Parted(_) => return Ok(Some(Left::Lost)),
                ToViewer::ReplayBegins(_) | ToViewer::ReplayEnds | ToViewer::Seated(_) | ToViewer::Resized(_) => {}
            }
        }
        Ok(None)
    }
}

fn show(place: &mut impl Write, bytes: &[u8]) -> Result<(), Error> {
    place.write_all(bytes).and_then(|()| place.flush()).map_err(Error::output)
}
