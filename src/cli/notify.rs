//! The service manager's side of sd_notify(3), for a daemon that ends before it is ready: tells why.
//!
//! The daemon says by itself when it is ready; here is only what it can no longer say.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::error::Error;
use crate::protocol::escape;

/// The variable that names the manager's socket.
pub(super) const SOCKET: &str = "NOTIFY_SOCKET";

/// How long a manager may take to make room in its queue, before the daemon ends without its last word.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells the manager, if there is one, why the daemon ends. Best effort: the log has it too.
pub(super) fn tell_failure(socket: Option<&str>, error: &Error) {
    if let Some(socket) = socket.filter(|socket| !socket.is_empty()) {
        let message = format!("STATUS={}\n", escape::text(&error.sentence()));
        send(socket, message.as_bytes()).unwrap_or_default();
    }
}

fn send(socket: &str, message: &[u8]) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(PATIENCE))?;
    sender.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::notify;

    #[test]
    fn the_manager_hears_the_sentence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let error = Error::Usage { reason: "no\u{1b}".into() };
        tell_failure(path.to_str(), &error);
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(notify::parse(&buffer[..length]).status.as_deref(), Some("no\\x1b"));
        // More than any queue of datagrams holds: if the last one waited without end, this test would not end.
        manager.set_nonblocking(true).unwrap();
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"x", &path).is_ok() {}
        tell_failure(path.to_str(), &error);
        tell_failure(Some("/nowhere/at/all"), &error);
        tell_failure(None, &error);
    }
}
