//! Everything that is known of one worker, in the words of the configuration.

use super::super::live::Live;
use super::super::pool::Pool;
use super::super::state::Daemon;
use super::dispatch::{Asked, Outcome};
use super::pieces::What;
use super::roles::Principal;
use crate::engine::WorkerView;
use crate::host::cgroup::{Availability, Missing, WantedLimit, wanted_limits};
use crate::protocol::control::{Inspection, LimitInfo, Target};
use crate::spec::{Heartbeat, HeartbeatSource, Identity, Listen, Net, PoolSpec, Probe, Ready, Root, format_duration};

/// How many certificates one inspected worker has, and each of many.
const CERTIFICATES_ALONE_MAX: usize = 10;
const CERTIFICATES_EACH_MAX: usize = 3;

impl Daemon {
    pub(super) fn inspect(&self, asked: Asked, target: &Target) -> Outcome {
        self.of_workers(asked, What::Inspection, target)
    }

    /// All of one worker, for this user. One that is `alone` in its answer has more certificates.
    pub(super) fn inspection(&self, view: &WorkerView, alone: bool, by: Principal) -> Option<Inspection> {
        let pool = self.pools.get(&view.worker.pool)?;
        let spec = &pool.spec;
        let live = self.live_of(view);
        let worker = self.worker_for(by, self.worker_info(view));
        let certificates = if alone { CERTIFICATES_ALONE_MAX } else { CERTIFICATES_EACH_MAX };
        let own = worker.name.parse::<Target>().ok();
        let log = self.spec.state_dir.join("logs/workers").join(format!("{}.log", worker.name)).display().to_string();
        Some(Inspection {
            command: spec.command.clone(),
            identity: identity(&spec.identity),
            root: root(&spec.root),
            net: net(&spec.net),
            ready: ready(&spec.ready),
            heartbeat: spec.policy.heartbeat.map(|heartbeat| heartbeat_of(spec, heartbeat)),
            limits: wanted_limits(&spec.limits).into_iter().map(|wanted| limit(wanted, pool, live)).collect(),
            listen: spec.listen.iter().map(listen).collect(),
            stdout_path: Some(log.clone()),
            stderr_path: Some(log),
            certificates: self.latest(own.as_ref(), certificates, None, by),
            worker,
        })
    }
}

fn limit(wanted: WantedLimit, pool: &Pool, live: Option<&Live>) -> LimitInfo {
    let missing: Option<Missing> = match live {
        Some(live) => {
            live.enforcement.missing.iter().find(|missed| missed.limit == wanted.limit).map(|missed| missed.reason)
        }
        None => match pool.prepared.cgroup.controllers().availability(wanted.limit.controller()) {
            Availability::Enabled => None,
            Availability::Missing(reason) => Some(reason),
        },
    };
    LimitInfo {
        name: wanted.limit.file().into(),
        value: wanted.value,
        asked: wanted.asked,
        enforced: missing.is_none(),
        reason: missing.map(|reason| reason.to_string()),
    }
}

fn identity(identity: &Identity) -> String {
    match identity {
        Identity::Dynamic => "dynamic".into(),
        Identity::Mapped => "mapped".into(),
        Identity::Host(name) => format!("host:{name}"),
        Identity::UnsafeRoot => "unsafe-root".into(),
    }
}

fn root(root: &Root) -> String {
    match root {
        root @ (Root::Host | Root::Empty | Root::Directory(_) | Root::Image(_)) => root.to_string(),
    }
}

fn net(net: &Net) -> String {
    match net {
        Net::Parent => "parent".into(),
        Net::Own => "own".into(),
        Net::Path(path) => path.display().to_string(),
    }
}

fn probe(probe: &Probe) -> String {
    match probe {
        Probe::Http { path } => format!("http:{path}"),
        Probe::Tcp => "tcp".into(),
        Probe::Grpc => "grpc".into(),
    }
}

fn ready(ready: &Ready) -> String {
    match ready {
        Ready::Exec => "exec".into(),
        Ready::Notify => "notify".into(),
        Ready::Channel => "channel".into(),
        Ready::Probe(how) => probe(how),
        Ready::File(path) => format!("file:{}", path.display()),
        Ready::PortFile(path) => format!("port-file:{}", path.display()),
    }
}

fn listen(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => format!("tcp:{address}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn heartbeat_of(spec: &PoolSpec, heartbeat: Heartbeat) -> String {
    let source = match heartbeat.source {
        HeartbeatSource::Channel => "channel".into(),
        HeartbeatSource::Notify => "notify".into(),
        HeartbeatSource::Probe => spec.heartbeat_probe.as_ref().map_or_else(|| "probe".into(), probe),
    };
    format!("{source} every {}", format_duration(heartbeat.interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_configuration() {
        assert_eq!(identity(&Identity::Host("nobody".into())), "host:nobody");
        assert_eq!(ready(&Ready::Probe(Probe::Http { path: "/x".into() })), "http:/x");
        assert_eq!(ready(&Ready::File("a/b".into())), "file:a/b");
        assert_eq!(listen(&Listen::Tcp("127.0.0.1:9000".parse().unwrap())), "tcp:127.0.0.1:9000");
        assert_eq!(listen(&Listen::Unix("/run/x.sock".into())), "unix:/run/x.sock");
        assert_eq!(net(&Net::Path("/run/netns/blue".into())), "/run/netns/blue");
    }
}
