//! Where the daemon's log lines go: standard error, without ever waiting for whoever reads it.
//!
//! A pipe or terminal is opened anew for itself, so that `O_NONBLOCK` is not set on what the daemon shares with the shell
//! that started it; a socket (the journal's) is sent to without waiting; only what can be neither is asked first. A line
//! that does not fit is dropped, whole where possible. Called by `log` alone.

use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// What is written at once where the descriptor may block: a pipe that polls writable takes as much.
const CHUNK_BYTES: usize = 4_096;

/// How a descriptor is written to without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is nonblocking itself, or a regular file.
    Write,
    /// By `send`, without waiting.
    Send,
    /// It may block: it is asked before each piece.
    Ask,
}

/// Where lines go.
#[derive(Debug)]
pub(super) struct Sink {
    fd: Option<OwnedFd>,
    way: Way,
    journal: bool,
    terminal: bool,
    /// Whether the last line was lost, in whole or in part.
    behind: bool,
    /// Whether the end of it was: what comes next begins a line of its own.
    torn: bool,
}

impl Sink {
    /// Standard error, as it is now.
    pub(super) fn stderr() -> Self {
        let stderr = std::io::stderr();
        let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|named| is_stream(&stderr, &named));
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let terminal = colours && rustix::termios::isatty(&stderr);
        let (fd, way) = match stderr.as_fd().try_clone_to_owned() {
            Ok(fd) => writable(fd),
            // Too many open files at start: the daemon says so where it needs the next one.
            Err(_) => (None, Way::Write),
        };
        Self { fd, way, journal, terminal, behind: false, torn: false }
    }

    /// Whether the journal reads this: it has its own times, and reads a priority at the start of each line.
    pub(super) const fn is_journal(&self) -> bool {
        self.journal
    }

    /// Whether a person reads this on a terminal that shows colours.
    pub(super) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether the last line was lost.
    pub(super) const fn behind(&self) -> bool {
        self.behind
    }

    /// Writes a line; `false` if it was lost, in whole or in part.
    pub(super) fn write(&mut self, line: &[u8]) -> bool {
        if self.torn && !self.write_all(b"\n") {
            return false;
        }
        self.torn = false;
        let done = self.write_all(line);
        self.behind = !done;
        done
    }

    fn write_all(&mut self, mut rest: &[u8]) -> bool {
        let Some(fd) = &self.fd else { return false };
        let mut begun = false;
        while !rest.is_empty() {
            let written = match self.way {
                Way::Write => rustix::io::write(fd, rest),
                Way::Send => rustix::net::send(fd, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Way::Ask if takes_more(fd) => rustix::io::write(fd, rest.get(..CHUNK_BYTES).unwrap_or(rest)),
                Way::Ask => Err(Errno::AGAIN),
            };
            match written {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => {
                    self.torn |= begun;
                    return false;
                }
                Ok(count) => {
                    begun = true;
                    rest = rest.get(count..).unwrap_or_default();
                }
            }
        }
        true
    }
}

#[cfg(test)]
impl Sink {
    /// A socket, as a plain standard error.
    pub(super) fn of(socket: std::os::unix::net::UnixStream) -> Self {
        let (fd, way) = writable(socket.into());
        Self { fd, way, journal: false, terminal: false, behind: false, torn: false }
    }

    /// A socket, as the journal's.
    pub(super) fn journal(socket: std::os::unix::net::UnixStream) -> Self {
        Self { journal: true, ..Self::of(socket) }
    }
}

/// Whether `JOURNAL_STREAM`, `device:inode`, names this descriptor (systemd.exec(5)); the variable alone may be inherited by
/// a daemon whose standard error leads elsewhere.
fn is_stream(fd: &impl AsFd, named: &str) -> bool {
    let Ok(file) = fd.as_fd().try_clone_to_owned().map(std::fs::File::from) else { return false };
    file.metadata().is_ok_and(|found| format!("{}:{}", found.st_dev(), found.st_ino()) == named)
}

/// How this descriptor is written to without waiting, by what it is.
fn writable(fd: OwnedFd) -> (Option<OwnedFd>, Way) {
    let Ok(stat) = rustix::fs::fstat(&fd) else { return (None, Way::Write) };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => (Some(fd), Way::Send),
        FileType::RegularFile => (Some(fd), Way::Write),
        FileType::Fifo | FileType::CharacterDevice => match reopen(&fd) {
            Some(own) => (Some(own), Way::Write),
            None => (Some(fd), Way::Ask),
        },
        FileType::Directory | FileType::Symlink | FileType::BlockDevice | FileType::Unknown => (Some(fd), Way::Ask),
    }
}

/// The same pipe or device with flags of its own.
fn reopen(fd: &OwnedFd) -> Option<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

fn takes_more(fd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::OUT)];
    let now = Timespec::try_from(Duration::ZERO).ok();
    poll(&mut polled, now.as_ref()).is_ok_and(|ready| ready == 1)
        && polled.iter().all(|one| one.revents().contains(PollFlags::OUT))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_journal_is_known_by_its_descriptor_not_by_its_variable() {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        let stat = rustix::fs::fstat(&one).unwrap();
        let named = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&one, &named));
        assert!(!is_stream(&two, &named));
        assert!(!is_stream(&one, "junk"));
    }

    #[test]
    fn a_full_pipe_is_not_waited_for_and_stays_as_it_was_for_others() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let (fd, way) = writable(writer);
        assert_eq!(way, Way::Write);
        let mut sink = Sink { fd, way, journal: false, terminal: false, behind: false, torn: false };
        while sink.write(&[b'x'; 5_000]) {}
        assert!(sink.behind());
        assert!(!rustix::fs::fcntl_getfl(&shared).unwrap().contains(OFlags::NONBLOCK));
        let mut buffer = vec![0; 1 << 20];
        let mut reader = std::fs::File::from(reader);
        assert!(reader.read(&mut buffer).unwrap() > 5_000);
        assert!(sink.write(b"after\n"));
        assert!(!sink.behind());
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_anew_is_asked_first() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut sink =
            Sink { fd: Some(writer), way: Way::Ask, journal: false, terminal: false, behind: false, torn: false };
        while sink.write(&[b'x'; 5_000]) {}
        assert!(sink.behind());
        drop(reader);
        assert!(!sink.write(b"to nobody"));
    }
}
