//! The listening end of the control socket: made, or taken from a service manager or from the program before this one.

use std::ffi::OsStr;
use std::fs::{Permissions, remove_file, rename, set_permissions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mio::Interest;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::{BACKLOG, ControlError, SOCKET_NAME_NEW};
use crate::daemon::live::Watched;
use crate::daemon::passed::Passed;
use crate::daemon::sources::{Source, Sources};
use crate::daemon::upgrade::Handover;
use crate::spec::DaemonSpec;

/// Where the listener comes from.
#[derive(Debug)]
pub(in crate::daemon) enum Origin {
    /// It is to be made.
    Nobody,
    /// A service manager has passed it.
    Manager(OwnedFd),
    /// The program before this one has left it open; `passed` if a service manager had passed it to that one.
    Before { socket: OwnedFd, passed: bool },
}

impl Origin {
    /// Takes the listener from whoever has one.
    pub(in crate::daemon) fn of(passed: &mut Passed, handover: Option<&mut Handover>) -> Self {
        match (handover.and_then(|handed| handed.listener.take()), passed.control.take()) {
            (Some(socket), _) => Self::Before { socket, passed: passed.has_control },
            (None, Some(socket)) => Self::Manager(socket),
            (None, None) => Self::Nobody,
        }
    }
}

/// The socket file's mode: for root alone, or for all, of whom the roles let through whom they name.
pub(super) fn mode(spec: &DaemonSpec) -> Permissions {
    Permissions::from_mode(if spec.roles.is_empty() { 0o600 } else { 0o666 })
}

/// Makes `control.sock` in the runtime directory, replacing one that a daemon before has left: the caller holds the lock of the
/// state directory. Whoever finds the socket can connect: it gets its name last.
pub(super) fn bind(spec: &DaemonSpec, path: &Path) -> Result<OwnedFd, ControlError> {
    let new = spec.runtime_dir.join(SOCKET_NAME_NEW);
    let failed = |step, source: io::Error| ControlError::Step { step, path: path.to_owned(), source };
    let address =
        SocketAddrUnix::new(&new).map_err(|source| ControlError::Address { path: path.to_owned(), source })?;
    match remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("clear the way for", error)),
        Ok(()) | Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| failed("open", errno.into()))?;
    // The file takes this mode when it is bound, so there is no moment at which it is open to more.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("set mode of", errno.into()))?;
    match rustix::net::bind(&socket, &address) {
        // A disk without room has the room of the socket that nobody listens on any more.
        Err(Errno::NOSPC | Errno::DQUOT) if remove_file(path).is_ok() => rustix::net::bind(&socket, &address),
        bound => bound,
    }
    .map_err(|errno| failed("bind", errno.into()))?;
    set_permissions(&new, mode(spec)).map_err(|error| failed("set mode of", error))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| failed("listen on", errno.into()))?;
    match rename(&new, path) {
        Err(error) if error.raw_os_error() == Some(Errno::ISDIR.raw_os_error()) => {
            std::fs::remove_dir_all(path).and_then(|()| rename(&new, path))
        }
        named => named,
    }
    .map_err(|error| failed("name", error))?;
    Ok(socket)
}

pub(super) fn watch(socket: OwnedFd, path: &Path, sources: &mut Sources) -> Result<Watched, ControlError> {
    match sources.add(socket.as_fd(), Source::Listener, Interest::READABLE) {
        Ok(token) => Ok(Watched { fd: socket, token }),
        Err(source) => Err(ControlError::Step { step: "watch", path: path.to_owned(), source }),
    }
}

/// Looks at a listener that was passed and makes it one that never blocks. Its file's mode follows the roles, as that of a
/// socket of our own.
pub(super) fn check(socket: OwnedFd, path: &Path, mode: Permissions) -> Result<OwnedFd, ControlError> {
    use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
    let failed = |step, source: io::Error| ControlError::Step { step, path: path.to_owned(), source };
    let wrong = |found: String| ControlError::Passed { path: path.to_owned(), found };
    match (socket_domain(&socket), socket_type(&socket), socket_acceptconn(&socket)) {
        (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM), Ok(true)) => {}
        (Err(errno), ..) | (_, Err(errno), _) | (.., Err(errno)) => return Err(wrong(errno.to_string())),
        (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM), Ok(false)) => {
            return Err(wrong("one that does not listen".into()));
        }
        (Ok(_), Ok(_), Ok(_)) => return Err(wrong("a socket of another kind".into())),
    }
    let address = rustix::net::getsockname(&socket).map_err(|errno| failed("ask the address of", errno.into()))?;
    let bound = SocketAddrUnix::try_from(address).map_err(|errno| failed("ask the address of", errno.into()))?;
    let bound = bound.path_bytes().map(|bytes| Path::new(OsStr::from_bytes(bytes)));
    if bound != Some(path) {
        return Err(wrong(bound.map_or_else(|| "one without a path".into(), |path| path.display().to_string())));
    }
    rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| failed("take", errno.into()))?;
    set_permissions(path, mode).map_err(|error| failed("set mode of", error))?;
    Ok(socket)
}
