//! The control socket: who is connected, what was asked, and the answers on their way.
//!
//! This file owns the socket and the set of connections, with their limits. `client.rs` is one connection, `dispatch.rs`
//! what a call means, `roles.rs` who may ask, `orders.rs` what goes to the engine and comes back, `answers.rs`,
//! `inspect.rs`, `images.rs`, `usage.rs` and `pieces.rs` what is told, `follow.rs` streams without end, `waiting.rs` who waits
//! for pools. Nothing here blocks, and no
//! client can make it grow without bound. The loop calls `on_listener`, `on_client`, `on_client_timeout`, `answer` as facts
//! come, and `flush_clients` at the end of each turn.

mod answers;
mod attached;
mod claim;
mod client;
mod dispatch;
mod follow;
mod images;
mod inspect;
mod kept;
mod orders;
mod output;
mod pieces;
mod roles;
pub(super) mod running;
mod socket;
mod usage;
mod waiting;
mod web;
mod whose;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::remove_file;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::time::Duration;

use mio::Interest;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};

pub(super) use self::answers::{missed_of, occupancy};
use self::claim::Claims;
use self::client::Client;
pub(super) use self::client::Task;
pub(super) use self::dispatch::{Asked, Outcome};
use self::follow::FollowedLines;
use self::orders::Orders;
pub(super) use self::pieces::Pieces;
pub(super) use self::roles::{Principal, WEB_UID, Web};
pub(super) use self::socket::Origin;
use self::socket::{bind, check, mode, watch};
use super::clock;
use super::live::Watched;
use super::log::best_effort;
use super::sources::{Source, Sources};
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::{RequestId, Time};
use crate::protocol::control::Error as Refusal;
use crate::protocol::varlink::Reply;
use crate::spec::DaemonSpec;

/// The socket's name in the runtime directory.
pub(in crate::daemon) const SOCKET_NAME: &str = "control.sock";
/// Its name until it is ready; of the same length, so that one fits an address if the other does.
const SOCKET_NAME_NEW: &str = "control.tmp!";
/// The daemon's own orders have this bit in their number.
pub(super) const OWN_CALLS: u64 = 1 << 63;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How many connections are accepted in one turn.
pub(super) const ACCEPTS_MAX: u32 = 16;
/// How many clients there may be.
const CLIENTS_MAX: usize = 512;
/// Of them, for root alone.
const CLIENTS_RESERVED: usize = 16;
/// How many of one user other than root.
const CLIENTS_OF_USER_MAX: usize = 64;
/// How many of the gateway, who speaks for many.
const CLIENTS_OF_GATEWAY_MAX: usize = 256;
/// How long nothing is accepted after descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long after a failure it is tried again to make the socket that somebody has removed.
const SOCKET_PAUSE: Duration = Duration::from_secs(1);
/// How often refusals are logged at the most.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(1);

/// The control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Its path does not fit an address.
    #[error("make control socket {path}: the path is too long for a socket")]
    Address {
        /// Where it was to be.
        path: PathBuf,
        /// The kernel's reason.
        source: Errno,
    },
    /// What the service manager passed as its listener is something else.
    #[error(
        "take the control socket that the service manager passed: expected a listening unix stream socket at {path}, found {found}"
    )]
    Passed {
        /// Where it has to be.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A step was refused.
    #[error("{step} control socket {path}")]
    Step {
        /// Which, such as `bind`.
        step: &'static str,
        /// Where it was to be.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The control socket and its clients.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) listener: Option<Watched>,
    path: PathBuf,
    /// The service manager's, who holds it while no daemon runs and removes it.
    passed: bool,
    own_uid: u32,
    /// Nothing is accepted until a timer says so.
    pub(super) paused: bool,
    /// How many connections were accepted.
    pub(super) accepted: u64,
    /// Since the last connection that was accepted, one could not be.
    is_short: bool,
    /// By place, which is the lowest that was free.
    clients: BTreeMap<u32, Client>,
    next_number: u64,
    orders: Orders,
    claims: Claims,
    lines: FollowedLines,
    /// When something refused was last logged, and how often it was not since.
    complained: Option<Time>,
    unsaid: u64,
}

impl Control {
    /// Takes the listener that a service manager passed, or makes one: `control.sock` in the runtime directory.
    ///
    /// # Errors
    /// [`ControlError`] names the step that was refused.
    pub(super) fn open(spec: &DaemonSpec, origin: Origin, sources: &mut Sources) -> Result<Self, ControlError> {
        let path = spec.runtime_dir.join(SOCKET_NAME);
        let (socket, passed) = match origin {
            Origin::Nobody => (bind(spec, &path)?, false),
            Origin::Manager(socket) => (check(socket, &path, mode(spec))?, true),
            Origin::Before { socket, passed } => (socket, passed),
        };
        Ok(Self {
            listener: Some(watch(socket, &path, sources)?),
            path,
            passed,
            own_uid: rustix::process::geteuid().as_raw(),
            paused: false,
            accepted: 0,
            is_short: false,
            clients: BTreeMap::new(),
            next_number: 0,
            orders: Orders::default(),
            claims: Claims::default(),
            lines: FollowedLines::default(),
            complained: None,
            unsaid: 0,
        })
    }

    /// The listening socket.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(|listener| listener.fd.as_fd())
    }

    /// The sockets of clients that wait for nothing and have said and read everything, and of the one that `asked`, which
    /// is marked.
    pub(super) fn idle_sockets(&self, asked: (u32, u64)) -> Vec<(BorrowedFd<'_>, bool)> {
        let is_asking = |place: u32, client: &Client| (place, client.number) == asked;
        // The gateway says anew on whose behalf it speaks.
        let stays = |client: &Client| client.is_idle() && client.peer.web.is_none();
        let kept = self.clients.iter().filter(|(place, client)| stays(client) || is_asking(**place, client));
        kept.map(|(place, client)| (client.socket(), is_asking(*place, client))).collect()
    }

    /// Answers everybody who waits but the one that `asked`: orders with `last`, streams with their end.
    pub(super) fn dismiss(&mut self, asked: (u32, u64), last: &Reply, now: Time) {
        for (place, client) in &mut self.clients {
            if (*place, client.number) == asked {
                continue;
            }
            match client.task {
                Task::Idle => {}
                Task::Events(_)
                | Task::Telemetry(..)
                | Task::Logs(_)
                | Task::Story(_)
                | Task::Attached(_)
                | Task::Piped(_) => client.finish_stream(),
                Task::Order
                | Task::Request(_)
                | Task::Pieces(_)
                | Task::Tools
                | Task::Await(_)
                | Task::Shutdown(_)
                | Task::Import(..) => {
                    client.task = Task::Idle;
                    client.say(last, now);
                }
            }
        }
    }

    /// Gives a client that waits its answer, if it is still there.
    pub(super) fn answer_waiting(&mut self, (place, number): (u32, u64), reply: &Reply, now: Time) {
        if let Some(client) = self.clients.get_mut(&place).filter(|client| client.number == number) {
            client.task = Task::Idle;
            client.say(reply, now);
        }
    }

    /// Gives a client that waits for a request its answer, written already, if it is still there.
    pub(super) fn finish_request(
        &mut self,
        (place, number): (u32, u64),
        frame: Vec<u8>,
        passed: Option<OwnedFd>,
        now: Time,
    ) {
        if let Some(client) = self.clients.get_mut(&place).filter(|client| client.number == number) {
            client.task = Task::Idle;
            client.say_written(frame, passed, now);
        }
    }

    /// Gives a client that waits for a lease the connection that it is, if the client is still there.
    pub(super) fn grant_lease(
        &mut self,
        (place, number): (u32, u64),
        lease: RequestId,
        frame: Vec<u8>,
        passed: OwnedFd,
        now: Time,
    ) {
        if let Some(client) = self.clients.get_mut(&place).filter(|client| client.number == number) {
            client.task = Task::Idle;
            client.lease = Some(lease);
            client.say_written(frame, Some(passed), now);
        }
    }

    /// Passes a piece on to a client that waits for more, if it is still there.
    pub(super) fn pass_on(&mut self, (place, number): (u32, u64), frame: Vec<u8>, passed: Option<OwnedFd>, now: Time) {
        if let Some(client) = self.clients.get_mut(&place).filter(|client| client.number == number) {
            client.say_written(frame, passed, now);
        }
    }

    /// Offers a piece to a client that waits for more. Whether it takes it: it is there, and has room for it.
    pub(super) fn offer(&mut self, (place, number): (u32, u64), frame: Vec<u8>) -> bool {
        let client = self.clients.get_mut(&place).filter(|client| client.number == number);
        client.is_some_and(|client| client.takes(frame))
    }

    /// The token of a client that waits, if it is still there.
    pub(super) fn token_of(&self, (place, number): (u32, u64)) -> Option<mio::Token> {
        self.clients.get(&place).filter(|client| client.number == number).map(|client| client.token)
    }

    /// Gives a client that waits a first answer, if it is still there.
    pub(super) fn say_waiting(&mut self, (place, number): (u32, u64), reply: &Reply, now: Time) {
        if let Some(client) = self.clients.get_mut(&place).filter(|client| client.number == number) {
            client.say(reply, now);
        }
    }

    /// Takes a connection over from the program before; its place and number.
    pub(super) fn take_over(&mut self, socket: OwnedFd, sources: &mut Sources, now: Time) -> Option<(u32, u64)> {
        let peer = peer_of(&socket).ok()?;
        let place = self.free_place();
        let token = sources.add(socket.as_fd(), Source::Client(place), Interest::READABLE).ok()?;
        self.next_number = self.next_number.wrapping_add(1);
        let number = self.next_number;
        self.clients.insert(place, Client::greeted(socket, token, number, peer, now));
        Some((place, number))
    }

    /// Has a client wait for an answer.
    pub(super) fn have_wait(&mut self, (place, number): (u32, u64)) {
        if let Some(client) = self.clients.get_mut(&place).filter(|client| client.number == number) {
            client.task = Task::Order;
        }
    }

    /// Whether one more client of `uid` is too many, and why.
    fn refuses(&self, uid: u32) -> Option<&'static str> {
        let all = self.clients.len();
        if all >= CLIENTS_MAX {
            return Some("too many clients are connected");
        }
        if uid == 0 {
            return None;
        }
        if all >= CLIENTS_MAX - CLIENTS_RESERVED {
            return Some("too many clients are connected");
        }
        let own = self.clients.values().filter(|client| client.peer.uid == uid).count();
        let most = if uid == WEB_UID { CLIENTS_OF_GATEWAY_MAX } else { CLIENTS_OF_USER_MAX };
        (own >= most).then_some("too many clients of this user are connected")
    }

    /// Logs what was refused to whom, at most once a second: nobody can fill a log by asking.
    fn complain(&mut self, by: Principal, what: &str, now: Time) {
        if self.complained.is_some_and(|last| clock::since(last, now) < COMPLAINT_PAUSE) {
            self.unsaid = self.unsaid.saturating_add(1);
            return;
        }
        self.complained = Some(now);
        let unsaid = std::mem::take(&mut self.unsaid);
        tracing::warn!(target: "control", %by, unsaid, "{what}");
    }

    fn free_place(&self) -> u32 {
        (0_u32..)
            .zip(self.clients.keys())
            .find(|(free, taken)| free < *taken)
            .map_or_else(|| u32::try_from(self.clients.len()).unwrap_or(u32::MAX), |(free, _)| free)
    }
}

/// Who is at the other end of a connection.
fn peer_of(socket: &OwnedFd) -> nix::Result<Principal> {
    let peer = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(Principal { uid: peer.uid(), gid: peer.gid(), pid: peer.pid(), web: None })
}

impl Daemon {
    /// Somebody has removed the socket's name: it is made anew. Connections that there are go on.
    pub(super) fn look_after_socket(&mut self) {
        // The name is this listener's for as long as it leads to a socket; nobody but root can put another one there.
        let named = std::fs::symlink_metadata(&self.control.path).is_ok_and(|found| found.file_type().is_socket());
        if named || self.control.listener.is_none() {
            return;
        }
        tracing::warn!(target: "control", "the control socket was removed by somebody else: it is made anew");
        let made = bind(&self.spec, &self.control.path)
            .and_then(|socket| watch(socket, &self.control.path, &mut self.sources));
        match made {
            Ok(listener) => {
                self.control.passed = false;
                if let Some(old) = self.control.listener.replace(listener) {
                    old.close(&mut self.sources);
                }
            }
            Err(error) => {
                tracing::error!(target: "control", "{}; it is tried again", crate::daemon::birth::chain(&error));
                self.timers.set(clock::after(self.now, SOCKET_PAUSE), Timer::ResumeAccept);
            }
        }
    }

    /// Somebody connects.
    pub(super) fn on_listener(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = self.control.listener.as_ref().filter(|_| !self.control.paused) else { return };
            match accept_with(&listener.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    self.control.accepted = self.control.accepted.wrapping_add(1);
                    self.control.is_short = false;
                    self.welcome(socket, None);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    if !std::mem::replace(&mut self.control.is_short, true) {
                        tracing::warn!(target: "control", %errno, "accept a control connection; it is tried again until it goes");
                    }
                    self.control.paused = true;
                    self.timers.set(clock::after(self.now, ACCEPT_PAUSE), Timer::ResumeAccept);
                    return;
                }
            }
        }
        if let Some(listener) = &self.control.listener {
            self.sources.again(listener.token);
        }
    }

    /// Accepts connections again, on a socket that can be found.
    pub(super) fn resume_accept(&mut self) {
        self.look_after_socket();
        self.control.paused = false;
        self.on_listener();
    }

    /// Takes a connection; `web` is for one of the gateway's.
    pub(super) fn welcome(&mut self, socket: OwnedFd, web: Option<Web>) {
        let peer = match web.map_or_else(|| peer_of(&socket), |web| Ok(Principal::of_web(web))) {
            Ok(peer) => peer,
            Err(errno) => {
                return tracing::warn!(target: "control", %errno, "ask who connects; the connection is closed");
            }
        };
        if let Some(reason) = self.control.refuses(peer.uid) {
            self.control.complain(peer, reason, self.now);
            self.audit_refusal((peer.uid, peer.pid), "connect", reason);
            let reply = Refusal::Refused { reason: reason.into() }.to_reply().encode();
            let sent = send(&socket, &reply, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            return best_effort(sent, "who is refused may be gone already");
        }
        let place = self.control.free_place();
        match self.sources.add(socket.as_fd(), Source::Client(place), Interest::READABLE) {
            Ok(token) => {
                self.control.next_number = self.control.next_number.wrapping_add(1);
                let client = Client::new(socket, token, self.control.next_number, peer, self.now);
                self.put_back(place, client);
            }
            Err(error) => tracing::warn!(target: "control", %error, "watch a control connection; it is closed"),
        }
    }

    /// A client says something, takes something, or goes.
    pub(super) fn on_client(&mut self, place: u32) {
        if let Some(mut client) = self.control.clients.remove(&place) {
            self.serve(place, &mut client);
            self.put_back(place, client);
        }
    }

    /// A client has had its time for something, unless it was in time.
    pub(super) fn on_client_timeout(&mut self, place: u32, number: u64) {
        if let Some(mut client) = self.control.clients.remove(&place) {
            if client.number == number {
                client.expire(self.now);
            }
            self.put_back(place, client);
        }
    }

    /// Keeps a client, or forgets it if it is gone.
    fn put_back(&mut self, place: u32, mut client: Client) {
        client.adjust_interest(&self.sources);
        let looks = matches!(client.task, Task::Attached(_)) && !client.is_gone();
        let (number, terminal) = (client.number, if looks { None } else { client.terminal.take() });
        if client.is_gone() {
            match std::mem::take(&mut client.task) {
                Task::Piped(piped) => self.leave_program(*piped),
                Task::Import(import, _) => self.cancel_import(import),
                Task::Request(request) => self.abandon_request(request),
                Task::Idle
                | Task::Order
                | Task::Pieces(_)
                | Task::Events(_)
                | Task::Telemetry(..)
                | Task::Logs(_)
                | Task::Story(_)
                | Task::Attached(_)
                | Task::Tools
                | Task::Await(_)
                | Task::Shutdown(_) => {}
            }
            if let Some(lease) = client.lease.take() {
                self.abandon_request(lease);
            }
            self.end_tools(number);
            self.end_hold(number);
            client.end(&mut self.sources);
        } else {
            if let Some(due) = client.arm() {
                self.timers.set(due, Timer::ClientTimeout(place, number));
            }
            self.control.clients.insert(place, client);
        }
        if let Some(terminal) = terminal {
            self.leave_terminal(terminal, number);
        }
    }

    /// Writes what is on its way to clients, as far as they take it. To be called at the end of each turn.
    pub(super) fn flush_clients(&mut self) {
        let has_work = |client: &Client| client.can_be_written() || client.has_calls() || self.has_news(client);
        let places: Vec<u32> =
            self.control.clients.iter().filter(|(_, client)| has_work(client)).map(|(place, _)| *place).collect();
        for place in places {
            let Some(mut client) = self.control.clients.remove(&place) else { continue };
            self.feed(&mut client);
            let more = client.write();
            if let Some(request) = client.read_up_stream() {
                self.grant_credit(request);
            }
            if !client.is_gone() && (more || client.has_calls() || client.is_read_up() && self.has_news(&client)) {
                self.sources.again(client.token);
            }
            let terminal = client.terminal;
            self.put_back(place, client);
            if let Some(terminal) = terminal {
                self.go_on_with_terminal(terminal);
            }
        }
        self.forget_followed_lines();
    }

    /// Ends all connections, with what can be written at once, and removes the socket, unless it is a service manager's.
    pub(super) fn close_control(&mut self) {
        self.close_gateway();
        if let Some(listener) = self.control.listener.take() {
            if !self.control.passed {
                best_effort(remove_file(&self.control.path), "a socket without a daemon refuses, as none would");
            }
            listener.close(&mut self.sources);
        }
        for (_, mut client) in std::mem::take(&mut self.control.clients) {
            client.finish_stream();
            while client.write() {}
            client.end(&mut self.sources);
        }
    }
}
