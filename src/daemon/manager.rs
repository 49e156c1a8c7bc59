//! What the daemon says to whoever manages it as a service, by sd_notify(3): systemd, or another halsup.
//!
//! Never waiting: the daemon goes on while a manager does not read. What the manager waits for (`READY=1` above all) is kept
//! and said again until its queue takes it; a beat of the watchdog that finds the queue full is dropped. Without
//! `NOTIFY_SOCKET` everything here does nothing.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::log::best_effort;

/// A status longer than this is cut, in characters.
const STATUS_CHARS_MAX: usize = 200;

/// The service manager.
#[derive(Debug, Default)]
pub(super) struct Manager {
    /// Where it listens.
    address: Option<SocketAddrUnix>,
    /// A socket of our own, made by the first message that could have one: a start short of memory or descriptors is still
    /// to be told as ready later. Not connected: the manager may be started anew at the same place.
    socket: OnceCell<OwnedFd>,
    watchdog: Option<Duration>,
    /// The latest news that its queue was too full for.
    unheard: Option<String>,
    /// Somebody will call [`Manager::say_again`].
    awaited: bool,
}

impl Manager {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. What is not understood is as if it were not there, and
    /// logged.
    pub(super) fn from_environment(env: &BTreeMap<String, String>) -> Self {
        let Some(named) = env.get("NOTIFY_SOCKET").filter(|named| !named.is_empty()) else { return Self::default() };
        let address = match (named.strip_prefix('@'), named.starts_with('/')) {
            (Some(name), _) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            (None, true) => SocketAddrUnix::new(named.as_str()),
            (None, false) => Err(Errno::AFNOSUPPORT),
        };
        match address {
            Ok(address) => {
                let watchdog = watchdog(env, std::process::id());
                Self { address: Some(address), watchdog, ..Self::default() }
            }
            Err(error) => {
                tracing::warn!(target: "control", socket = named, %error, "cannot notify the service manager");
                Self::default()
            }
        }
    }

    /// How often to call [`Manager::watchdog`]: twice in the time that the manager waits.
    pub(super) const fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Everything is up. Also ends what [`Manager::reloading`] began.
    pub(super) fn ready(&mut self, status: &str) {
        self.tell(format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The end has begun.
    pub(super) fn stopping(&mut self) {
        self.tell("STOPPING=1".to_owned());
    }

    /// The loop still turns.
    pub(super) fn watchdog(&self) {
        best_effort(self.send("WATCHDOG=1"), "the next beat says the same");
    }

    /// A reload has begun, at this point of CLOCK_MONOTONIC; [`Manager::ready`] ends it.
    pub(super) fn reloading(&mut self, monotonic_usec: u64) {
        self.tell(format!("RELOADING=1\nMONOTONIC_USEC={monotonic_usec}"));
    }

    /// Whether [`Manager::say_again`] is to be called in a moment: there is news that was not taken, and nobody does yet.
    pub(super) const fn wants_call(&mut self) -> bool {
        let wants = self.unheard.is_some() && !self.awaited;
        self.awaited |= wants;
        wants
    }

    /// Tries once more to say what was not taken.
    pub(super) fn say_again(&mut self) {
        self.awaited = false;
        if let Some(news) = self.unheard.take() {
            self.tell(news);
        }
    }

    /// Later news makes earlier ones void.
    fn tell(&mut self, news: String) {
        self.unheard = None;
        match self.send(&news) {
            Err(Errno::AGAIN) => self.unheard = Some(news),
            sent => best_effort(sent, "nobody listens for the service manager, and nothing depends on it"),
        }
    }

    /// Whether there is a manager to talk to.
    pub(super) const fn is_there(&self) -> bool {
        self.address.is_some()
    }

    /// The socket to speak from; made where there is none yet.
    fn socket(&self) -> Result<&OwnedFd, Errno> {
        if let Some(socket) = self.socket.get() {
            return Ok(socket);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(self.socket.get_or_init(|| socket))
    }

    /// Says something about a descriptor, and passes it.
    ///
    /// # Errors
    /// EAGAIN: not now; else nobody listens.
    pub(super) fn send_with(&self, message: &str, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some(address) = &self.address else { return Ok(()) };
        let socket = self.socket().map_err(not_now)?;
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::NOBUFS);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let text = [IoSlice::new(message.as_bytes())];
        rustix::io::retry_on_intr(|| rustix::net::sendmsg_addr(socket, address, &text, &mut control, flags))
            .map(drop)
            .map_err(not_now)
    }

    /// Says something that needs no answer.
    ///
    /// # Errors
    /// EAGAIN: not now; else nobody listens.
    pub(super) fn send(&self, message: &str) -> Result<(), Errno> {
        let Some(address) = &self.address else { return Ok(()) };
        let socket = self.socket().map_err(not_now)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| rustix::net::sendto(socket, message.as_bytes(), flags, address))
            .map(drop)
            .map_err(not_now)
    }
}

/// Nothing to make a message or a socket of is as good as a full queue: neither says that nobody listens.
const fn not_now(error: Errno) -> Errno {
    match error {
        Errno::NOBUFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE => Errno::AGAIN,
        other => other,
    }
}

/// Half of `WATCHDOG_USEC`, where it is meant for this process.
fn watchdog(env: &BTreeMap<String, String>, pid: u32) -> Option<Duration> {
    let ours = env.get("WATCHDOG_PID").is_none_or(|named| named.parse() == Ok(pid));
    let usec: u64 = env.get("WATCHDOG_USEC")?.parse().ok()?;
    (ours && usec > 1).then(|| Duration::from_micros(usec / 2))
}

/// A line end would begin a message that nobody meant.
fn one_line(status: &str) -> String {
    status.chars().take(STATUS_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1_024];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_what_the_protocol_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut manager = Manager::from_environment(&environment(&[("NOTIFY_SOCKET", path.to_str().unwrap())]));
        manager.ready("5 workers\nSTOPPING=1");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=5 workers STOPPING=1");
        manager.reloading(42);
        assert_eq!(heard(&socket), "RELOADING=1\nMONOTONIC_USEC=42");
        manager.watchdog();
        assert_eq!(heard(&socket), "WATCHDOG=1");
        manager.stopping();
        assert_eq!(heard(&socket), "STOPPING=1");
    }

    #[test]
    fn an_abstract_name_is_a_name_too() {
        let name = format!("halsup-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Manager::from_environment(&environment(&[("NOTIFY_SOCKET", &format!("@{name}"))])).watchdog();
        assert_eq!(heard(&socket), "WATCHDOG=1");
    }

    #[test]
    fn a_manager_that_does_not_read_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::from_environment(&environment(&[("NOTIFY_SOCKET", path.to_str().unwrap())]));
        // More than any queue of datagrams holds: if one of them waited, this test would not end.
        (0..10_000).for_each(|_| manager.watchdog());
        assert_eq!(heard(&socket), "WATCHDOG=1");
        drop(socket);
        manager.watchdog();
    }

    #[test]
    fn news_is_said_again_until_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut manager = Manager::from_environment(&environment(&[("NOTIFY_SOCKET", path.to_str().unwrap())]));
        (0..10_000).for_each(|_| manager.watchdog());
        manager.reloading(7);
        manager.ready("late");
        assert!(manager.wants_call() && !manager.wants_call(), "one call is enough");
        manager.say_again();
        assert!(manager.wants_call(), "nobody has read");
        while socket.recv(&mut [0; 100]).is_ok() {}
        manager.say_again();
        assert!(!manager.wants_call());
        assert_eq!(heard(&socket), "READY=1\nSTATUS=late");
        drop(socket);
        manager.stopping();
        assert!(!manager.wants_call(), "nobody is there to be told");
    }

    #[test]
    fn nobody_to_notify_is_no_error() {
        for named in [&[][..], &[("NOTIFY_SOCKET", "")], &[("NOTIFY_SOCKET", "vsock:2:1")]] {
            let mut manager = Manager::from_environment(&environment(named));
            assert!(!manager.is_there(), "{named:?}");
            manager.ready("alone");
        }
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_and_only_by_whom_it_means() {
        let of = |pairs: &[(&str, &str)]| watchdog(&environment(pairs), 7);
        assert_eq!(of(&[("WATCHDOG_USEC", "30000000")]), Some(Duration::from_secs(15)));
        assert_eq!(of(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(15)));
        assert_eq!(of(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "8")]), None);
        for none in ["", "0", "1", "-5", "soon", "99999999999999999999999"] {
            assert_eq!(of(&[("WATCHDOG_USEC", none)]), None, "{none}");
        }
        assert_eq!(of(&[]), None);
    }
}
