//! TCP ports of this network namespace: whether one is free, and who has it if not.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::listener::listener;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// Processes and descriptors that a search for a holder looks at; beyond that it gives up.
const LOOKS_MAX: usize = 100_000;

/// Whether a listener could be bound to `port` on every address.
///
/// # Errors
/// `AddrInUse` if not; what else the kernel says.
pub fn check_free(port: u16) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    // Connections of an earlier listener that are still closing are in nobody's way.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    Ok(())
}

/// The process that listens on `port`, as `name (pid N)`; `None` if it cannot be seen from here. Reads all of `/proc`: for
/// an error's text only.
#[must_use]
pub fn holder(port: u16) -> Option<String> {
    let inode = listening_inode(port)?;
    let wanted = format!("socket:[{inode}]");
    let mut looks = 0;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        // Processes come and go while this looks; one that cannot be read is not the one that can be named.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            looks += 1;
            if looks > LOOKS_MAX {
                return None;
            }
            if fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (pid {pid})", name.trim()));
            }
        }
    }
    None
}

/// The inode of the listening socket, from the kernel's tables.
fn listening_inode(port: u16) -> Option<u64> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        let mut listeners = text.lines().skip(1).filter_map(listener);
        if let Some(found) = listeners.find(|found| found.port == port) {
            return Some(found.inode);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_is_not_free_and_its_holder_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(check_free(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(holder(port).unwrap().ends_with(&format!("(pid {})", std::process::id())));
        drop(listener);
        check_free(port).unwrap();
        assert_eq!(holder(port), None);
    }
}
