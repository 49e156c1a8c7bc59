//! Whose a listening port is: before a worker's port is trusted, the socket behind it has to be one of the worker's own.
//!
//! The kernel's tables say which socket gets connections to the port, and the descriptors of the processes in the worker's
//! cgroup whether it is among them. Done once for each spawn of a worker, and again where another socket than those gets the
//! connections (`sock_diag.rs`), since a worker may let go of its port and live on. Where it fails the caller remembers it for a
//! while, since whoever waits for an answer here is the daemon's loop.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::cgroup::{CgroupError, WorkerCgroup};

/// Processes of a worker that are looked at.
const PROCESSES_MAX: usize = 1_024;
/// Their descriptors.
const DESCRIPTORS_MAX: usize = 2_048;
/// Listening sockets of this network that are looked at.
const LISTENERS_MAX: usize = 65_536;

/// A port is not the worker's, or that cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The kernel's table of sockets.
    #[error("read {path}")]
    Table {
        /// Its path.
        path: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The worker's processes.
    #[error("look for who listens")]
    Processes(#[source] CgroupError),
    /// No socket.
    #[error("nobody listens on port {port}")]
    Nobody {
        /// The port.
        port: u16,
    },
    /// One of somebody else's.
    #[error("somebody else listens on port {port}")]
    Foreign {
        /// The port.
        port: u16,
    },
    /// More descriptors than are looked at.
    #[error(
        "nobody is found who listens on port {port}, among the first {DESCRIPTORS_MAX} descriptors of its processes"
    )]
    TooMany {
        /// The port.
        port: u16,
    },
}

impl ListenerError {
    /// Whether it took long to find out, and takes so again.
    #[must_use]
    pub const fn is_costly(&self) -> bool {
        matches!(self, Self::Foreign { .. } | Self::TooMany { .. })
    }
}

/// Checks that whatever gets connections to `127.0.0.1:port` is a socket of a process in `cgroup`; the inodes of those that do.
///
/// # Errors
/// [`ListenerError`]: then nothing that comes from there is the worker's.
pub fn check_listener(port: u16, cgroup: &WorkerCgroup) -> Result<BTreeSet<u64>, ListenerError> {
    // A socket of IPv4 comes before one of IPv6 that takes both; and no two of different users can be bound side by side.
    let mut wanted = listening(port, "/proc/self/net/tcp")?;
    if wanted.is_empty() {
        wanted = listening(port, "/proc/self/net/tcp6")?;
    }
    if wanted.is_empty() {
        return Err(ListenerError::Nobody { port });
    }
    let found = wanted.clone();
    let pids = |()| cgroup.pids(PROCESSES_MAX).map(|found| found.pids).map_err(ListenerError::Processes);
    let (mut looks, mut holders) = (0, BTreeSet::new());
    for pid in pids(())? {
        if wanted.is_empty() {
            break;
        }
        // Processes come and go while this looks; one that cannot be read holds nothing that can be believed.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if wanted.is_empty() {
                break;
            }
            looks += 1;
            if looks > DESCRIPTORS_MAX {
                return Err(ListenerError::TooMany { port });
            }
            let link = fs::read_link(descriptor.path());
            if link.is_ok_and(|target| inode(&target.to_string_lossy()).is_some_and(|inode| wanted.remove(&inode))) {
                holders.insert(pid);
            }
        }
    }
    // A number may have become somebody else's while it was looked at: whoever holds the socket is still in the worker.
    let still: BTreeSet<u32> = pids(())?.into_iter().collect();
    if wanted.is_empty() && holders.is_subset(&still) { Ok(found) } else { Err(ListenerError::Foreign { port }) }
}

/// The number of a socket, of what a descriptor's link says.
fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The sockets that get connections to this port of 127.0.0.1.
fn listening(port: u16, path: &'static str) -> Result<BTreeSet<u64>, ListenerError> {
    let failed = |source| ListenerError::Table { path, source };
    let file = match File::open(path) {
        Ok(file) => file,
        // Without IPv6 there is no such table.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = BTreeSet::new();
    for line in BufReader::new(file).lines().skip(1).take(LISTENERS_MAX) {
        let line = line.map_err(failed)?;
        // Those that listen come first.
        let Some(listener) = listener(&line) else { break };
        if listener.port == port && listener.reached {
            found.insert(listener.inode);
        }
    }
    Ok(found)
}

/// A line of the kernel's table that is of a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) port: u16,
    /// Whether connections to 127.0.0.1 reach it.
    reached: bool,
    pub(super) inode: u64,
}

pub(super) fn listener(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (address, port) = local.split_once(':').filter(|_| *state == LISTEN)?;
    // Each group of eight digits is four bytes of the address as a number of this machine's.
    let mut bytes = Vec::new();
    for group in address.as_bytes().chunks(8) {
        let group = std::str::from_utf8(group).ok().and_then(|group| u32::from_str_radix(group, 16).ok())?;
        bytes.extend(group.to_ne_bytes());
    }
    let reached = match (<[u8; 4]>::try_from(bytes.as_slice()), <[u8; 16]>::try_from(bytes.as_slice())) {
        (Ok(v4), _) => [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST].contains(&v4.into()),
        (_, Ok(v6)) => {
            let v6 = Ipv6Addr::from(v6);
            v6.is_unspecified() || v6.to_ipv4_mapped() == Some(Ipv4Addr::LOCALHOST)
        }
        (Err(_), Err(_)) => return None,
    };
    Some(Listener { port: u16::from_str_radix(port, 16).ok()?, reached, inode: inode.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_of_the_kernel_are_read() {
        let rest = "00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        let of = |local: &str, state: &str| listener(&format!("   0: {local} 00000000:0000 {state} {rest}"));
        let found = |reached| Some(Listener { port: 8080, reached, inode: 4711 });
        assert_eq!(of("0100007F:1F90", "0A"), found(true));
        assert_eq!(of("00000000:1F90", "0A"), found(true));
        assert_eq!(of("0200007F:1F90", "0A"), found(false));
        assert_eq!(of("00000000000000000000000000000000:1F90", "0A"), found(true));
        assert_eq!(of("0000000000000000FFFF00000100007F:1F90", "0A"), found(true));
        assert_eq!(of("00000000000000000000000001000000:1F90", "0A"), found(false), "::1 alone");
        assert_eq!(of("0100007F:1F90", "01"), None);
        assert_eq!(of("0100007F", "0A"), None);
        assert_eq!(listener(""), None);
    }

    #[test]
    fn a_listener_is_found_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listening(port, "/proc/self/net/tcp").unwrap().len(), 1);
        drop(socket);
        assert!(listening(port, "/proc/self/net/tcp").unwrap().is_empty());
    }
}
