//! The gateway as the daemon sees it: the socket on which it alone can be heard, and what its empty root has to hold.
//!
//! Whoever speaks on that socket speaks for people who came by HTTP: with the rights of the token that was shown, or with
//! none. That a connection is of the gateway is known by where it was accepted: the socket lies in a directory that only root
//! can enter, and that is bound into the gateway's root and nowhere else.

use std::fs::{remove_dir, remove_file};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use mio::Interest;
use rustix::fs::{AtFlags, Mode, chmodat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

use super::birth::chain;
use super::control::{ACCEPTS_MAX, SOCKET_NAME, Web};
use super::live::Watched;
use super::log::best_effort;
use super::pool::PoolError;
use super::sources::Source;
use super::state::Daemon;
use crate::host::own_dir::{OwnDirError, own_dir};
use crate::spec::{Bind, DaemonSpec, GATEWAY_PROGRAM, GATEWAY_SOCKET_DIR, GatewaySpec, PoolSpec, Seccomp};

/// The gateway's program, beside the daemon's own.
const PROGRAM_NAME: &str = "halsup-gateway";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// What a pool's root has of the host: what its configuration binds, and of the gateway's all that its program needs.
///
/// # Errors
/// [`PoolError::File`], when something of the gateway's is not there.
pub(super) fn binds(spec: &PoolSpec, daemon: &DaemonSpec) -> Result<Vec<Bind>, PoolError> {
    let mut binds = spec.binds.clone();
    if spec.seccomp != Seccomp::Gateway {
        return Ok(binds);
    }
    let failed = |operation, path: &Path| {
        let path = path.display().to_string();
        move |source: io::Error| PoolError::File { operation, path, source }
    };
    let own = std::env::current_exe().map_err(failed("find", Path::new("the program of this daemon")))?;
    let program = own.with_file_name(PROGRAM_NAME);
    std::fs::metadata(&program).map_err(failed("find the gateway's program", &program))?;
    let (outer, inner) = GatewaySpec::socket_dirs(&daemon.runtime_dir);
    let made = own_dir(&outer, 0o700).and_then(|_| own_dir(&inner, 0o755));
    made.map_err(|error: OwnDirError| failed("make", &inner)(io::Error::other(chain(&error))))?;
    let mut bind = |source: PathBuf, target: String| {
        binds.push(Bind { source, target: target.into(), writable: false });
    };
    bind(program, GATEWAY_PROGRAM.to_owned());
    bind(inner, GATEWAY_SOCKET_DIR.to_owned());
    for library in libraries().map_err(failed("read", Path::new("/proc/self/maps")))? {
        let Some(name) = library.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        // Where programs look for their loader, by their architecture, and the loader for libraries.
        let directory = if name.starts_with("ld-") && cfg!(target_arch = "x86_64") { "/lib64" } else { "/lib" };
        bind(library, format!("{directory}/{name}"));
    }
    Ok(binds)
}

/// The shared libraries that this process runs with, which its sibling needs too: none, where it is linked statically.
fn libraries() -> io::Result<Vec<PathBuf>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| PathBuf::from(format!("/{path}")));
    let is_library = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
    let mut libraries: Vec<PathBuf> = paths.filter(is_library).collect();
    // Part of the same C library; whether this process needed it says nothing of its sibling.
    let beside = libraries.iter().find(|path| path.file_name().is_some_and(|name| name == "libc.so.6"));
    if let Some(mathematics) = beside.map(|path| path.with_file_name("libm.so.6")).filter(|path| path.exists()) {
        libraries.push(mathematics);
    }
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

/// Makes the gateway's socket. One that an earlier daemon has left gives way: the caller holds the lock.
fn open(daemon: &DaemonSpec) -> io::Result<OwnedFd> {
    let (outer, inner) = GatewaySpec::socket_dirs(&daemon.runtime_dir);
    let dir =
        own_dir(&outer, 0o700).and_then(|_| own_dir(&inner, 0o755)).map_err(|error| io::Error::other(chain(&error)))?;
    match unlinkat(&dir, SOCKET_NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(inner.join(SOCKET_NAME))?)?;
    // The gateway's user is not known yet; who can come here at all, the outer directory says.
    chmodat(&dir, SOCKET_NAME, Mode::from_raw_mode(0o666), AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes the socket and its directories.
fn remove(daemon: &DaemonSpec) {
    let (outer, inner) = GatewaySpec::socket_dirs(&daemon.runtime_dir);
    for removed in [remove_file(inner.join(SOCKET_NAME)), remove_dir(&inner), remove_dir(&outer)] {
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => best_effort(removed, "an empty directory stays"),
        }
    }
}

impl Daemon {
    /// Listens for the gateway, if there is to be one, or does not any more.
    pub(super) fn look_after_gateway(&mut self) {
        match (&self.gateway_spec, self.gateway.is_some()) {
            (Some(_), false) => {
                let opened = open(&self.spec).and_then(|socket| {
                    let token = self.sources.add(socket.as_fd(), Source::Gateway, Interest::READABLE)?;
                    Ok(Watched { fd: socket, token })
                });
                match opened {
                    Ok(listener) => self.gateway = Some(listener),
                    Err(error) => {
                        tracing::error!(target: "control", %error, "open the gateway's socket: nobody can come by HTTP");
                    }
                }
            }
            (None, true) => self.close_gateway(),
            (Some(_), true) | (None, false) => {}
        }
    }

    /// Ends the gateway's socket, and removes it.
    pub(super) fn close_gateway(&mut self) {
        if let Some(listener) = self.gateway.take() {
            listener.close(&mut self.sources);
            remove(&self.spec);
        }
    }

    /// The gateway connects.
    pub(super) fn on_gateway(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = &self.gateway else { return };
            match accept_with(&listener.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.welcome(socket, Some(Web::Nobody)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    // Whoever waits to be accepted makes the listener ready again.
                    return tracing::warn!(target: "control", %errno, "accept a connection of the gateway's");
                }
            }
        }
        if let Some(listener) = &self.gateway {
            self.sources.again(listener.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_process_are_files() {
        for library in libraries().unwrap() {
            assert!(library.is_file(), "{}", library.display());
        }
    }
}
