//! Watches the daemon's own files: what somebody removes or replaces while it runs is made anew.
//!
//! One inotify descriptor on the state and the runtime directory, which are the daemon's own; it says nothing while nobody
//! touches them. Only names that matter are looked at, and never what is below.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::Interest;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::persist::{CERTIFICATES_NAME, STATE_NAME};
use super::sources::{Source, Sources};
use super::state::Daemon;
use crate::host::ledger::LEDGER_NAME;

/// Events read in one turn.
const EVENTS_A_TURN: usize = 256;
const BUFFER_BYTES: usize = 4096;

/// The watch, where one could be had.
#[derive(Debug)]
pub(super) struct OwnFiles {
    inotify: Option<OwnedFd>,
}

/// A directory that is watched for removals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watch(i32);

/// What has gone from such a directory.
#[derive(Debug)]
pub(super) struct Removed {
    pub(super) watch: Watch,
    pub(super) name: String,
}

impl OwnFiles {
    /// Watches one more directory, for removals alone: what the daemon writes there is no event.
    pub(super) fn watch_removals(&self, dir: impl AsFd) -> Option<Watch> {
        use std::os::fd::AsRawFd as _;
        let gone = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        match inotify::add_watch(self.inotify.as_ref()?, path, gone | WatchFlags::ONLYDIR | WatchFlags::MASK_ADD) {
            Ok(watch) => Some(Watch(watch)),
            Err(error) => {
                tracing::warn!(target: "state", %error, "watch the files of sessions");
                None
            }
        }
    }

    /// Begins to watch. Where the host's inotify instances are used up, files are made anew only when they are next written.
    pub(super) fn watch(dirs: [BorrowedFd<'_>; 2], sources: &mut Sources) -> Self {
        match watch(dirs, sources) {
            Ok(inotify) => Self { inotify: Some(inotify) },
            Err(error) => {
                tracing::warn!(target: "state", %error, "watch the daemon's own files");
                Self { inotify: None }
            }
        }
    }
}

fn watch(dirs: [BorrowedFd<'_>; 2], sources: &mut Sources) -> std::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let events = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
    for dir in dirs {
        inotify::add_watch(&inotify, format!("/proc/self/fd/{}", dir.as_raw_fd()), events | WatchFlags::ONLYDIR)?;
    }
    sources.add(inotify.as_fd(), Source::OwnFiles, Interest::READABLE)?;
    Ok(inotify)
}

impl Daemon {
    /// Something has happened in the daemon's own directories.
    pub(super) fn on_own_files(&mut self) {
        let (mut state, mut socket, mut ledger, mut lost) = (false, false, false, false);
        let mut removed = Vec::new();
        if let Some(inotify) = &self.own_files.inotify {
            let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
            let mut reader = Reader::new(inotify, &mut buffer);
            for _ in 0..EVENTS_A_TURN {
                match reader.next() {
                    Ok(event) => match event.file_name().map(std::ffi::CStr::to_bytes) {
                        Some(name) => {
                            let gone = inotify::ReadFlags::DELETE | inotify::ReadFlags::MOVED_FROM;
                            if event.events().intersects(gone) && removed.len() < EVENTS_A_TURN {
                                let name = String::from_utf8_lossy(name).into_owned();
                                removed.push(Removed { watch: Watch(event.wd()), name });
                            }
                            state |= [STATE_NAME, CERTIFICATES_NAME].iter().any(|known| name == known.as_bytes());
                            ledger |= name == LEDGER_NAME.as_bytes();
                            socket |= name == super::control::SOCKET_NAME.as_bytes();
                        }
                        // Of a directory that was removed, which the one above it has told.
                        None if event.events().contains(inotify::ReadFlags::IGNORED) => {}
                        // Events were lost: look at all.
                        None => (state, socket, ledger, lost) = (true, true, true, true),
                    },
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        if lost {
            self.renew_session_files();
        } else if !removed.is_empty() {
            self.look_after_session_files(&removed);
        }
        if state {
            self.look_after_state();
        }
        if ledger && let Some(renewed) = self.shared.ledger.renew().transpose() {
            tracing::warn!(target: "state", "the exit ledger was removed by somebody else: it is made anew");
            if let Err(error) = renewed {
                tracing::error!(target: "state", "{}", super::birth::chain(&error));
            }
        }
        if socket {
            self.look_after_socket();
        }
    }
}
