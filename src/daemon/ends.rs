//! The sockets and pipes between the daemon and a worker: both ends of each, and the order in which the worker gets its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::birth::{BirthError, Ids, Made, step};
use super::environment;
use super::pool::Pool;
use super::state::{Place, Shared};
use crate::protocol::init::kept;

/// The daemon's ends of a worker's sockets, and the worker's.
pub(super) struct Ends {
    pub(super) init: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) channel: Option<OwnedFd>,
    pub(super) notify: Option<OwnedFd>,
    pub(super) notify_dir: Option<OwnedFd>,
    /// In the order in which the worker gets them, without the image.
    pub(super) theirs: Vec<OwnedFd>,
}

impl Ends {
    /// How many of the worker's descriptors are for its program, beside the standard ones. To be asked before the image is
    /// among them.
    pub(super) const fn for_program(&self) -> usize {
        self.theirs.len() - FOR_INIT
    }

    /// Adds to a worker's descriptors what its init keeps for a later daemon, in the order of `protocol::init::kept`.
    pub(super) fn keep(&mut self, shared: &Shared) -> io::Result<()> {
        let null = &shared.null;
        let kept = [
            self.init.as_fd(),
            shared.daemon.as_fd(),
            shared.ledger.file(),
            self.stdout.as_fd(),
            self.stderr.as_fd(),
            null.as_fd(),
            self.channel.as_ref().unwrap_or(null).as_fd(),
            self.notify.as_ref().unwrap_or(null).as_fd(),
            null.as_fd(),
            null.as_fd(),
        ];
        const { assert!(kept::COUNT == 10, "these are all that there are") };
        let copies: io::Result<Vec<OwnedFd>> = kept.into_iter().map(|fd| fd.try_clone_to_owned()).collect();
        self.theirs.extend(copies?);
        Ok(())
    }
}

/// The standard descriptors and the init's socket come first.
const FOR_INIT: usize = 4;

pub(super) fn make_dir(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_raw_mode(mode))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    Ok(dir)
}

pub(super) fn give(dir: BorrowedFd<'_>, name: &str, uid: u32, gid: u32) -> io::Result<()> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?;
    Ok(())
}

/// Makes the sockets between daemon and worker. The worker gets: /dev/null, two pipes, its init's socket, (the image,) the
/// pool's listeners, the channel.
pub(super) fn ends(
    pool: &Pool,
    ids: &Ids,
    null: BorrowedFd<'_>,
    notify_dirs: BorrowedFd<'_>,
    place: &str,
    made: &mut Made,
) -> Result<Ends, BirthError> {
    let pair = || {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok::<_, rustix::io::Errno>((ours, theirs))
    };
    let pipe = || {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok::<_, rustix::io::Errno>((read, write))
    };
    let (stdout, their_stdout) = pipe().map_err(step("make its output pipes"))?;
    let (stderr, their_stderr) = pipe().map_err(step("make its output pipes"))?;
    for end in [&their_stdout, &their_stderr] {
        // So that it can open them again, as /dev/stdout and /dev/stderr.
        give(end.as_fd(), "", ids.uid, ids.gid).map_err(step("give it its output pipes"))?;
    }
    let (init, their_init) = pair().map_err(step("make its init's socket"))?;
    let null = null.try_clone_to_owned().map_err(step("open /dev/null"))?;
    let mut theirs = vec![null, their_stdout, their_stderr, their_init];
    for (_, listener) in &pool.prepared.listeners {
        theirs.push(listener.try_clone().map_err(step("pass its listeners"))?);
    }
    let mut channel = None;
    if environment::has_channel(pool) {
        let (ours, their_channel) = pair().map_err(step("make its channel"))?;
        theirs.push(their_channel);
        channel = Some(ours);
    }
    let (mut notify, mut notify_dir) = (None, None);
    if environment::has_notify(pool) {
        made.chore.trees.push((Place::Notify, place.to_owned()));
        let dir = make_dir(notify_dirs, place, 0o755).map_err(step("make the directory of its notify socket"))?;
        let socket = notify_socket(dir.as_fd(), ids).map_err(step("make its notify socket"))?;
        (notify, notify_dir) = (Some(socket), Some(dir));
    }
    Ok(Ends { init, stdout, stderr, channel, notify, notify_dir, theirs })
}

/// A socket of its own for each worker: who sends is known by where it arrives, and a flood drowns only itself.
fn notify_socket(dir: BorrowedFd<'_>, ids: &Ids) -> io::Result<OwnedFd> {
    // By the descriptor, since the path of a directory may be longer than a socket's name can be.
    let socket = UnixDatagram::bind(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()))?;
    socket.set_nonblocking(true)?;
    rustix::fs::chmodat(dir, "socket", Mode::from_raw_mode(0o600), AtFlags::empty())?;
    give(dir, "socket", ids.uid, ids.gid)?;
    Ok(socket.into())
}
