//! What the gateway is: where it listens, for whom it answers, and the service that it runs as.
//!
//! The service is made here and not written by an operator: its root, its filter and its user are not for choosing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{
    Heartbeat, HeartbeatSource, Limit, Listen, LogSpec, Net, OnSupervisorDeath, PoolName, PoolSpec, Ready, Restart,
    Root, Seccomp,
};

/// Where the gateway's program is inside its root.
pub const GATEWAY_PROGRAM: &str = "/halsup-gateway";
/// Where it finds the daemon's socket for it, inside its root.
pub const GATEWAY_SOCKET_DIR: &str = "/daemon";

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it answers with one pool alone, and with which.
    pub doors: Vec<(SocketAddr, PoolName)>,
    /// Names that a request's `Host` may have, beside the literal addresses of loopback and `localhost`.
    pub hosts: Vec<String>,
    /// Whether status is told without a token.
    pub open_status: bool,
    /// The pool that `/health/pool` speaks of.
    pub pool: Option<PoolName>,
    /// What `/hello` says that it is called, in short and in words.
    pub worker: (String, String),
    /// Its memory, in bytes.
    pub memory_bytes: u64,
}

impl GatewaySpec {
    /// The name of the service that it runs as; always one.
    #[must_use]
    pub fn name() -> Option<PoolName> {
        PoolName::parse("gateway").ok()
    }

    /// The service that it runs as. What its program needs of the host's files is bound by the daemon, which can look.
    #[must_use]
    pub fn service(&self, name: PoolName) -> PoolSpec {
        let mut spec = PoolSpec::with_defaults(name, self.command());
        spec.service = true;
        spec.root = Root::Empty;
        spec.seccomp = Seccomp::Gateway;
        // What it serves was bound in the daemon's network; for itself it needs none, and can reach nobody in it.
        spec.net = Net::Own;
        let doors = self.doors.iter().map(|(address, _)| *address);
        spec.listen = self.listen.iter().copied().chain(doors).map(Listen::Tcp).collect();
        spec.limits.memory_bytes = Some(Limit { value: self.memory_bytes, asked: false });
        spec.limits.pids = Some(Limit { value: 16, asked: false });
        spec.rlimits.insert("nofile".to_owned(), 4_096);
        spec.ready = Ready::Notify;
        spec.log = LogSpec { max_bytes: 10 << 20, keep: 3, json: false };
        spec.policy.startup.waits_for_ready = true;
        spec.policy.startup.ready_timeout = Duration::from_secs(10);
        // Whoever waits for an answer waits for it: it comes back at once, and however often it went.
        spec.policy.restart = Restart {
            delay: Duration::from_millis(20),
            delay_max: Duration::from_secs(1),
            max_restarts: 10_000,
            stable_after: Duration::from_secs(2),
            ..spec.policy.restart
        };
        spec.policy.heartbeat = Some(Heartbeat {
            source: HeartbeatSource::Notify,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            max_missed: 2,
            initial_delay: Duration::ZERO,
            dependent: true,
        });
        // Its connections end with the daemon's; the next one makes a new one.
        spec.on_supervisor_death = OnSupervisorDeath::EndAfter(Duration::from_secs(60));
        spec
    }

    fn command(&self) -> Vec<String> {
        let mut command = vec![GATEWAY_PROGRAM.to_owned()];
        for host in &self.hosts {
            command.extend(["--host".to_owned(), host.clone()]);
        }
        for (address, pool) in &self.doors {
            command.extend(["--door".to_owned(), format!("{address}={pool}")]);
        }
        if self.open_status {
            command.push("--open-status".to_owned());
        }
        if let Some(pool) = &self.pool {
            command.extend(["--pool".to_owned(), pool.to_string()]);
        }
        let (id, name) = &self.worker;
        // What an operator writes is no template.
        let text = |text: &String| text.replace('{', "{{").replace('}', "}}");
        command.extend(["--worker-id".to_owned(), text(id), "--worker-name".to_owned(), text(name)]);
        command
    }

    /// Where the daemon's socket for it is, in the daemon's runtime directory: outer directory, inner directory.
    #[must_use]
    pub fn socket_dirs(runtime_dir: &std::path::Path) -> (PathBuf, PathBuf) {
        let outer = runtime_dir.join("gateway");
        let inner = outer.join("inside");
        (outer, inner)
    }
}
