//! Connections: taken from the sockets that the daemon has bound, each with its limits, and ended in order.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use halsup::host::spawn::take_inherited;
use halsup::protocol::control::{DrainReply, DrainRequest, IdentifyReply, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::answer::Refusal;
use crate::arguments::Arguments;
use crate::counts::Counts;
use crate::guard::Shown;
use crate::hub::Hubs;
use crate::link::{Address, Link, LinkError};
use crate::manager::Manager;
use crate::routes::{self, Door, Peer};
use crate::sse::{LOGS_MAX, STREAMS_MAX, Streams};
use crate::strict::Strict;
use crate::tickets::Tickets;
use halsup::protocol::control::CallFailure;
use halsup::protocol::service::ServiceError;

/// More sockets than a daemon passes.
const LISTENERS_MAX: usize = 64;
/// How many connections there may be.
const CONNECTIONS_MAX: usize = 1_024;
/// How many of them may have changed their protocol: each holds a worker for long, and leaves places for requests that do not.
const UPGRADES_MAX: usize = 48;
/// How many requests are in workers, or wait for one: each has a connection to the daemon, and others need some too.
const LEASES_MAX: usize = 128;
/// A head has to be whole within this time, and a connection that says nothing is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// What is under way at the end has this long.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most fields in a head.
const FIELDS_MAX: usize = 100;
/// What the kernel keeps for a client that does not read, in bytes; it doubles it.
const SEND_BYTES: usize = 128 * 1024;
/// What is read ahead of one connection, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// What all routes know.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    arguments: Arguments,
    /// The addresses that it was told to listen on: its own names, too.
    own: Vec<IpAddr>,
    address: Address,
    /// Places for requests that have, or wait for, a worker.
    leases: Arc<Semaphore>,
    /// Places of connections that are free.
    room: Arc<Semaphore>,
    /// Of those that have changed their protocol.
    upgrades: Arc<Semaphore>,
    /// Says when the gateway ends.
    ending: watch::Receiver<()>,
    tickets: Tickets,
    streams: Streams,
    logs: Streams,
    hubs: Hubs,
    counts: Counts,
    draining: Mutex<Draining>,
}

/// Whether new work is taken, and what was done about it.
#[derive(Debug, Default)]
struct Draining {
    is_on: bool,
    paused: BTreeSet<String>,
}

impl Shared {
    fn new(arguments: Arguments, own: Vec<IpAddr>, ending: watch::Receiver<()>) -> Self {
        Self(Arc::new(Inner {
            address: Address::new(arguments.daemon.clone()),
            arguments,
            own,
            leases: Arc::new(Semaphore::new(LEASES_MAX)),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            upgrades: Arc::new(Semaphore::new(UPGRADES_MAX)),
            ending,
            tickets: Tickets::default(),
            streams: Streams::new(STREAMS_MAX),
            logs: Streams::new(LOGS_MAX),
            hubs: Hubs::default(),
            counts: Counts::default(),
            draining: Mutex::default(),
        }))
    }

    pub(crate) fn tickets(&self) -> &Tickets {
        &self.0.tickets
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.0.streams
    }

    /// Those of logs.
    pub(crate) fn logs(&self) -> &Streams {
        &self.0.logs
    }

    pub(crate) fn hubs(&self) -> &Hubs {
        &self.0.hubs
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// What changes, or rather is closed, when the gateway ends.
    pub(crate) fn ending(&self) -> watch::Receiver<()> {
        self.0.ending.clone()
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        CONNECTIONS_MAX.saturating_sub(self.0.room.available_permits())
    }

    /// Whether no new work is taken. Routes that begin work ask this first.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining().is_on
    }

    /// Takes no new work from now on, or does again.
    pub(crate) fn drain(&self, is_on: bool) {
        self.draining().is_on = is_on;
    }

    /// As an earlier gateway was, by what the daemon has kept of it: `None` where it was not drained.
    fn drain_as(&self, paused: Option<Vec<String>>) {
        let mut draining = self.draining();
        draining.is_on = paused.is_some();
        draining.paused.extend(paused.unwrap_or_default());
    }

    /// The pools that are paused because of [`Shared::drain`].
    pub(crate) fn paused(&self) -> Vec<String> {
        self.draining().paused.iter().cloned().collect()
    }

    /// Whether a pool is paused because of [`Shared::drain`].
    pub(crate) fn has_paused(&self, pool: &str) -> bool {
        self.draining().paused.contains(pool)
    }

    pub(crate) fn note_paused(&self, pool: &str, paused: bool) {
        let mut draining = self.draining();
        if paused {
            draining.paused.insert(pool.to_owned());
        } else {
            draining.paused.remove(pool);
        }
    }

    fn draining(&self) -> std::sync::MutexGuard<'_, Draining> {
        self.0.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Shared::link`], with the daemon's own answer where there is none.
    pub(crate) async fn connect(&self, shown: &Shown) -> Result<(Link, IdentifyReply), LinkError> {
        self.0.address.link(shown.0.as_deref()).await
    }

    /// Where the daemon is.
    pub(crate) fn address(&self) -> &Address {
        &self.0.address
    }

    /// A place for a request that needs a worker; who comes first has it first. Never ends where nobody leaves.
    pub(crate) async fn lease_place(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.0.leases).acquire_owned().await {
            Ok(place) => place,
            // Nobody closes it.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// A place for a connection that changes its protocol, if one is free.
    pub(crate) fn upgrade_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.upgrades).try_acquire_owned().ok()
    }

    /// What this worker is called, in short and in words.
    pub(crate) fn worker(&self) -> (&str, &str) {
        (&self.0.arguments.worker_id, &self.0.arguments.worker_name)
    }

    /// The pool that the operator has named for the endpoints that speak of one.
    pub(crate) fn pool(&self) -> Option<&str> {
        self.0.arguments.pool.as_deref()
    }

    /// A connection to the daemon, on behalf of whoever has shown this.
    ///
    /// # Errors
    /// 401 where nothing, or nothing good, was shown and something is needed.
    pub(crate) async fn link(&self, shown: &Shown) -> Result<(Link, IdentifyReply), Refusal> {
        self.connect(shown).await.map_err(|error| match error {
            LinkError::Failed(CallFailure::Service(ServiceError::PermissionDenied {})) => Refusal::unauthorized(),
            other @ (LinkError::Unreachable(_)
            | LinkError::Silent
            | LinkError::Busy
            | LinkError::Garbled
            | LinkError::NoToken
            | LinkError::Failed(_)) => other.into(),
        })
    }

    /// Whether `host`, as it stands in `Host` or behind the scheme of an origin, is a name of this gateway.
    pub(crate) fn is_own_host(&self, host: &str) -> bool {
        let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, rest)) => (name, rest.strip_prefix(':')),
            None => match host.rsplit_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (host, None),
            },
        };
        if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
            return false;
        }
        // A literal address is no name that anybody could have made to lead here.
        let is_own = |address: IpAddr| address.is_loopback() || self.0.own.contains(&address);
        let is_literal = name.parse::<IpAddr>().is_ok_and(is_own);
        let named = |own: &String| own.trim_matches(['[', ']']).eq_ignore_ascii_case(name);
        is_literal || name.eq_ignore_ascii_case("localhost") || self.0.arguments.hosts.iter().any(named)
    }
}

/// The sockets that the daemon has bound and passed. To be called once, before anything is opened.
pub(crate) fn listeners() -> io::Result<Vec<TcpListener>> {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let passed = take_inherited(count.min(LISTENERS_MAX))?;
    let listen = |(_, fd): (i32, OwnedFd)| {
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true).and_then(|()| listener.local_addr()).map(|_| listener)
    };
    let listeners: Vec<TcpListener> = passed.into_iter().map(listen).collect::<io::Result<_>>()?;
    if listeners.is_empty() {
        let what = "no socket was passed: it is started by a daemon, by [gateway] of its configuration";
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    Ok(listeners)
}

/// Serves until it is told to end.
pub(crate) async fn serve(arguments: Arguments, listeners: Vec<TcpListener>) -> io::Result<()> {
    let (open, closed) = watch::channel(());
    let bound = listeners.iter().filter_map(|listener| listener.local_addr().ok()).map(|address| address.ip());
    // One that listens on all addresses has not been told which of them are meant.
    let shared = Shared::new(arguments, bound.filter(|address| !address.is_unspecified()).collect(), closed.clone());
    let doors = shared.0.arguments.doors.clone();
    let room = Arc::clone(&shared.0.room);
    let router = routes::router(shared.clone());
    let manager = Manager::from_environment();
    // Whoever drained it has not said that this is over because it was started anew.
    match drained(&shared).await {
        Ok(paused) => shared.drain_as(paused),
        Err(error) => tracing::warn!(%error, "ask whether the gateway is drained: it is taken for one that is not"),
    }
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let door = doors.iter().find(|(own, _)| *own == address).map(|(_, pool)| Door(pool.clone()));
        let router = door.map_or_else(|| router.clone(), |door| routes::door(shared.clone(), door));
        accepting.spawn(accept(listener, router, Arc::clone(&room), closed.clone()));
    }
    let mut ended = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    manager.ready();
    let mut beats = manager.interval().map(tokio::time::interval);
    loop {
        let beat = async {
            match &mut beats {
                Some(beats) => beats.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = beat => manager.beat(),
            _ = ended.recv() => break,
            _ = interrupted.recv() => break,
        }
    }
    manager.stopping();
    drop(open);
    let last = async {
        while accepting.join_next().await.is_some() {}
        // Every connection has one of its places, to its end.
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        drop(room.acquire_many(all).await);
    };
    if tokio::time::timeout(END_PATIENCE, last).await.is_err() {
        tracing::info!("some connections were still open at the end");
    }
    Ok(())
}

/// Whether the daemon was told that the gateway is drained, and what is paused for that.
async fn drained(shared: &Shared) -> Result<Option<Vec<String>>, LinkError> {
    let mut link = shared.address().connect().await?;
    let question = Request::Drain(DrainRequest { draining: None, pools: None });
    let told: DrainReply = link.call(&question).await?;
    Ok(told.drained)
}

/// Takes connections until nobody is served any more.
async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    room: Arc<Semaphore>,
    mut closed: watch::Receiver<()>,
) {
    loop {
        // Where all places are taken, whoever comes waits in the socket's own queue.
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = closed.changed() => return,
        };
        match (place, accepted) {
            (Ok(place), Ok((stream, peer))) => {
                tokio::spawn(connection(stream, Peer(peer.ip()), router.clone(), closed.clone(), place));
            }
            // Nobody closes it.
            (Err(_), _) => return,
            (_, Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            (_, Err(error)) => {
                tracing::warn!(%error, "accept a connection; it is tried again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    mut closed: watch::Receiver<()>,
    place: OwnedSemaphorePermit,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "have a connection send at once");
    }
    // Else the kernel keeps megabytes for each client that does not read, and they are this program's.
    if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BYTES) {
        tracing::debug!(%error, "bound what a connection keeps");
    }
    // What a request makes of its connection may last longer than this.
    let room = Room(Arc::new(place));
    let kept = room.clone();
    let answers = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(room.clone());
        answers.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(FIELDS_MAX)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Strict::new(stream)), service)
        .with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        _ = closed.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
    drop(kept);
}

/// The place of a connection among all.
#[derive(Debug, Clone)]
pub(crate) struct Room(pub(crate) Arc<OwnedSemaphorePermit>);

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(hosts: &[&str], own: &[&str]) -> Shared {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let arguments = Arguments {
            hosts,
            doors: Vec::new(),
            open_status: true,
            pool: None,
            worker_id: "w".into(),
            worker_name: "W".into(),
            daemon: "/x".into(),
        };
        let own = own.iter().map(|address| address.parse().unwrap()).collect();
        Shared::new(arguments, own, watch::channel(()).1)
    }

    #[test]
    fn only_own_names_are_hosts() {
        let shared = shared(&["halsup.example.org", "10.0.0.1"], &["192.0.2.7", "2001:db8::7"]);
        for host in [
            "localhost",
            "localhost:8000",
            "LOCALHOST",
            "127.0.0.1:1",
            "127.0.0.2",
            "[::1]:8000",
            "[::1]",
            "Halsup.Example.Org:80",
            "10.0.0.1",
            "192.0.2.7:8000",
            "[2001:db8::7]:8000",
        ] {
            assert!(shared.is_own_host(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.org",
            "localhost.evil.org",
            "evil.org:localhost",
            "localhost:",
            "localhost:8000x",
            "0.0.0.0",
            "10.0.0.2",
            "192.0.2.8",
            "[2001:db8::8]",
            "127.0.0.1.nip.io",
            "user@localhost",
            "localhost/",
            "[::2]",
            "[::1",
            "xlocalhost",
        ] {
            assert!(!shared.is_own_host(host), "{host}");
        }
    }
}
