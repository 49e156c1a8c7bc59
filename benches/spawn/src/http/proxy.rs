//! haproxy over the same servers, as the peer: one request at a time in each, and whoever comes meanwhile waits.

use std::fs;
use std::io::ErrorKind;
use std::process::{Child, Command, Stdio};

use super::{SERVERS, wait_listens};
use crate::Result;
use crate::place::Place;

/// Ports that it has: one for each of its ways.
pub const PORTS: u16 = 2;

/// One that runs; ended on drop.
pub struct Proxy {
    child: Child,
    port: u16,
}

impl Proxy {
    /// `None` where it is not installed.
    pub fn start(place: &Place, first: u16, port: u16) -> Result<Option<Self>> {
        let (file, log) = (place.path("haproxy.cfg"), place.path("haproxy.log"));
        fs::write(&file, config(first, port))?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(fs::File::create(log)?);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let proxy = Self { child, port };
        for port in port..port + PORTS {
            wait_listens(port)?;
        }
        Ok(Some(proxy))
    }

    /// Where jobs that take so many milliseconds are asked of it.
    pub fn through(&self, ms: u64) -> String {
        format!("http://127.0.0.1:{}/{ms}", self.port)
    }

    /// The same where it tries again whatever may be tried again, and elsewhere at once.
    pub fn through_eager(&self, ms: u64) -> String {
        format!("http://127.0.0.1:{}/{ms}", self.port + 1)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("end haproxy: {error}");
        }
    }
}

/// Its times are those of the pool.
fn config(first: u16, port: u16) -> String {
    let servers: String =
        (0..SERVERS).map(|slot| format!("    server s{slot} 127.0.0.1:{} maxconn 1\n", first + slot)).collect();
    format!(
        "global\n    nbthread 1\n    maxconn 200\n\
         defaults\n    mode http\n    balance roundrobin\n    retries 3\n    option redispatch\n    timeout connect 1s\n    \
         timeout client 60s\n    timeout server 10s\n    timeout queue 5s\n\
         listen usual\n    bind 127.0.0.1:{port}\n{servers}\
         listen eager\n    bind 127.0.0.1:{}\n    option redispatch 1\n    retry-on all-retryable-errors\n{servers}",
        port + 1
    )
}
