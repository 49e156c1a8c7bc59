//! What the loop listens to: one numbered place for each registered descriptor, with a generation, so that an event of a
//! descriptor that is closed and numbered anew meets nobody (HARDENING R44).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::engine::AttemptId;
use crate::host::logfile::Stream;
use crate::spec::WorkerId;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A signal to the daemon arrived.
    Signals,
    /// Somebody connects to the control socket.
    Listener,
    /// The gateway connects.
    Gateway,
    /// A control client, by its place.
    Client(u32),
    /// A worker's first process ended.
    Exit(WorkerId),
    /// A worker's init reports.
    Init(WorkerId),
    /// A worker writes.
    Output(WorkerId, Stream),
    /// A terminal is written to, or read by its program; by its number.
    Terminal(u64),
    /// A worker sends to its notify socket.
    Notify(WorkerId),
    /// A worker speaks on its channel.
    Channel(WorkerId),
    /// A worker's cgroup changed.
    Cgroup(WorkerId),
    /// A probe's connection goes on, by the probe's place.
    Probe(u32),
    /// The connection of a lease has news, by its attempt.
    Lease(WorkerId, AttemptId),
    /// Some worker has run into a limit.
    Limits,
    /// A helper ended, by its job's number.
    Job(u64),
    /// The guard of frozen workers ended.
    ThawGuard,
    /// Memory was taken from a frozen worker.
    Reclaim,
    /// The trial of an upgrade ended.
    Trial,
    /// Somebody touched the daemon's own files.
    OwnFiles,
    /// A file appeared in some worker's directory.
    Files,
    /// The reader of an archive reports, by the number of the import.
    Import(u64),
    /// The reader of an archive has ended.
    ImportEnd(u64),
    /// The pull of an image has ended, by its number.
    PullEnd(u64),
}

#[derive(Debug)]
struct Place {
    generation: u32,
    source: Option<Source>,
}

/// The registered descriptors.
#[derive(Debug)]
pub(super) struct Sources {
    registry: Registry,
    places: Vec<Place>,
    free: Vec<u32>,
    /// Sources that still had something when their budget was spent; mio will not name them again by itself.
    again: VecDeque<Token>,
}

impl Sources {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, places: Vec::new(), free: Vec::new(), again: VecDeque::new() }
    }

    /// Registers a descriptor.
    ///
    /// # Errors
    /// ENOMEM, ENOSPC (too many watches).
    pub(super) fn add(&mut self, fd: BorrowedFd<'_>, source: Source, interest: Interest) -> io::Result<Token> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.places.len()).map_err(io::Error::other)?;
                self.places.push(Place { generation: 0, source: None });
                index
            }
        };
        let Some(place) = self.places.get_mut(index as usize) else { return Err(io::ErrorKind::NotFound.into()) };
        let token = token(index, place.generation);
        match self.registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest) {
            Ok(()) => {
                place.source = Some(source);
                Ok(token)
            }
            Err(error) => {
                self.free.push(index);
                Err(error)
            }
        }
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// What epoll says.
    pub(super) fn change(&self, token: Token, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.registry.reregister(&mut SourceFd(&fd.as_raw_fd()), token, interest)
    }

    /// Forgets a descriptor, before it is closed.
    pub(super) fn remove(&mut self, token: Token, fd: BorrowedFd<'_>) {
        let (index, generation) = parts(token);
        let Some(place) = self.places.get_mut(index as usize) else { return };
        if place.generation != generation || place.source.is_none() {
            return;
        }
        place.source = None;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        super::log::best_effort(
            self.registry.deregister(&mut SourceFd(&fd.as_raw_fd())),
            "the descriptor is closed next, which deregisters it too",
        );
    }

    /// What a token is about; `None` is stale news.
    pub(super) fn source(&self, token: Token) -> Option<Source> {
        let (index, generation) = parts(token);
        self.places.get(index as usize).filter(|place| place.generation == generation)?.source
    }

    /// Has a source named once more in the next turn, because its budget was spent before it was empty.
    pub(super) fn again(&mut self, token: Token) {
        self.again.push_back(token);
    }

    /// Whether some source waits to be named once more.
    pub(super) fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Takes the sources to be named once more.
    pub(super) fn take_again(&mut self) -> VecDeque<Token> {
        std::mem::take(&mut self.again)
    }
}

const fn token(index: u32, generation: u32) -> Token {
    Token((generation as usize) << 32 | index as usize)
}

const fn parts(token: Token) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of what `token` put together")]
    (token.0 as u32, (token.0 >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_closed_descriptor_meets_nobody() {
        use std::os::fd::AsFd;
        let poll = mio::Poll::new().unwrap();
        let mut sources = Sources::new(poll.registry().try_clone().unwrap());
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        let first = sources.add(one.as_fd(), Source::Listener, Interest::READABLE).unwrap();
        sources.remove(first, one.as_fd());
        let second = sources.add(two.as_fd(), Source::Signals, Interest::READABLE).unwrap();
        assert_eq!(sources.source(first), None);
        assert_eq!(sources.source(second), Some(Source::Signals));
        assert_eq!(parts(first).0, parts(second).0, "the place is used again");
    }
}
