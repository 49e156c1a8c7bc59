//! The gateway as a worker of its daemon: it says when it is ready, and that it lives, as under systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Where its manager listens, and how often it wants to hear.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: Option<(UnixDatagram, String)>,
    interval: Option<Duration>,
}

impl Manager {
    /// As `NOTIFY_SOCKET` and `WATCHDOG_USEC` say.
    pub(crate) fn from_environment() -> Self {
        let path = std::env::var("NOTIFY_SOCKET").ok().filter(|path| path.starts_with('/'));
        let socket = path.and_then(|path| UnixDatagram::unbound().ok().map(|socket| (socket, path)));
        let usec = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse::<u64>().ok());
        // Twice in the time, so that one that is late is none that is missing.
        let interval = usec.filter(|usec| *usec > 0).map(|usec| Duration::from_micros(usec / 2));
        Self { socket, interval }
    }

    /// How often [`Manager::beat`] is wanted.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// It serves.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// It lives.
    pub(crate) fn beat(&self) {
        self.tell("WATCHDOG=1\n");
    }

    /// It serves nobody new.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, message: &str) {
        if let Some((socket, path)) = &self.socket
            && let Err(error) = socket.send_to(message.as_bytes(), path)
        {
            tracing::warn!(%error, "tell the daemon {}", message.trim_end());
        }
    }
}
