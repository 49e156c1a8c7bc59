//! Which listening socket gets the connections to a port: one question to the kernel (sock_diag(7)), which looks where it
//! looks for every connection, instead of reading its table of all sockets.

use std::net::Ipv4Addr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

const REQUEST_BYTES: usize = HEADER_BYTES + 8 + ID_BYTES;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;
/// Where `idiag_state` and `idiag_inode` are in an answer: a header and `struct inet_diag_msg`.
const STATE_AT: usize = HEADER_BYTES + 1;
const INODE_AT: usize = HEADER_BYTES + 4 + ID_BYTES + 16;
/// More than an answer to a question without extensions has.
const ANSWER_BYTES: usize = 512;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u8 = 10;

/// The inode of the socket that gets connections to `127.0.0.1:port` in the caller's network namespace; of several that
/// share the port, of one of them. None if there is none, or this kernel cannot be asked.
///
/// # Errors
/// The kernel's reason for not taking the question.
pub fn listener_inode(port: u16) -> Result<Option<u64>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG)) {
        Ok(socket) => socket,
        Err(Errno::PROTONOSUPPORT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    send(&socket, &question(port), SendFlags::empty())?;
    // The answer is there when the question has been taken.
    let mut answer = [0; ANSWER_BYTES];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    Ok(answer.get(..length).and_then(inode))
}

fn question(port: u16) -> [u8; REQUEST_BYTES] {
    let mut id = [0; ID_BYTES];
    let (ports, rest) = id.split_at_mut(4);
    ports[..2].copy_from_slice(&port.to_be_bytes());
    rest[..4].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    // Whatever its cookie is.
    let cookie = ID_BYTES - 8;
    id[cookie..].fill(0xff);
    let mut bytes = [0; REQUEST_BYTES];
    let parts: [&[u8]; 6] = [
        &u32::try_from(REQUEST_BYTES).unwrap_or_default().to_ne_bytes(),
        &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        &NLM_F_REQUEST.to_ne_bytes(),
        &[0; 8],
        &[AF_INET, IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &id,
    ];
    for (to, from) in bytes.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    bytes
}

/// The socket that an answer speaks of, if it is one that listens.
fn inode(answer: &[u8]) -> Option<u64> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes)?;
    let inode = answer.get(INODE_AT..INODE_AT + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)?;
    (kind == SOCK_DIAG_BY_FAMILY && answer.get(STATE_AT) == Some(&TCP_LISTEN)).then_some(u64::from(inode))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn inode_of(socket: &impl std::os::fd::AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let number: String = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
        number.parse().unwrap()
    }

    #[test]
    fn the_socket_that_listens_is_told_and_none_where_none_does() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(listener_inode(port), Ok(Some(inode_of(&listener))), "{address}");
            drop(listener);
            assert_eq!(listener_inode(port), Ok(None), "{address}");
        }
        let elsewhere = TcpListener::bind("127.0.0.2:0").unwrap();
        assert_eq!(listener_inode(elsewhere.local_addr().unwrap().port()), Ok(None));
    }
}
