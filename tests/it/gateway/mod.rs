//! The gateway: HTTP for the world, from outside.

mod cluster;
mod doors;
mod health;
mod hostile;
mod life;
mod operations;
mod own_port;
mod owners;
mod page;
mod pooled;
mod proxy;
mod refusals;
mod schema;
mod seeds;
mod streams;
mod tasks;
mod upgrade;

use serde_json::Value;

use crate::fixture::Daemon;
use crate::http::{Answer, ask, get};
use crate::ports::free_ports;

/// A daemon with a gateway.
pub(crate) struct Served {
    pub(crate) daemon: Daemon,
    pub(crate) port: u16,
}

impl Served {
    /// Starts one with these pools, and waits until the gateway answers.
    pub(crate) fn start(pools: &str) -> Self {
        Self::start_with("", pools)
    }

    /// The same with further keys of `[gateway]`.
    pub(crate) fn start_with(keys: &str, pools: &str) -> Self {
        let port = free_ports(1);
        let config = format!("[gateway]\nlisten = ['127.0.0.1:{port}']\n{keys}{pools}");
        let mut served = Self { daemon: Daemon::start(&config), port };
        served.daemon.wait_until("the gateway answers", |_| Some(()).filter(|()| get(port, "/livez").status == 200));
        served
    }

    /// Makes a token.
    pub(crate) fn token(&self, name: &str, options: &[&str]) -> String {
        let arguments: Vec<&str> = ["token", "create", name].into_iter().chain(options.iter().copied()).collect();
        let made = self.daemon.cli(&arguments);
        assert_eq!(made.status, 0, "{made:?}");
        made.stdout.trim().to_owned()
    }

    /// `GET` what is JSON, without a token.
    #[track_caller]
    pub(crate) fn json(&self, path: &str) -> Value {
        let answer = get(self.port, path);
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Asks with a token.
    #[track_caller]
    pub(crate) fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut fields = vec![("Authorization", bearer.as_str())];
        if !body.is_empty() {
            fields.push(("Content-Type", "application/json"));
        }
        ask(self.port, method, path, &fields, body)
    }
}
