//! Requests under way: what each says, who waits for it, and the way to its worker and back.
//!
//! The engine decides which worker gets a request and when it is over; here are its bytes. A request is taken from a client
//! (`accept.rs`), handed to a worker when the engine says so (`deliver.rs`), and what the worker answers is kept for the turn
//! until the engine has said whose answer it is (`hear.rs`). What workers call back for goes to clients that serve it
//! (`tools.rs`); what callers send piece by piece goes to workers (`input.rs`). Of a lease (`lease.rs`) there are no bytes: it is a connection that is passed on. `told.rs` and `past.rs` answer who asks. Payloads go through as descriptors and are never read. Nobody can
//! make this grow: a client waits for one request at a time, the engine bounds who waits, and what memory is held for a user
//! is counted.

mod accept;
mod bill;
mod deliver;
mod hear;
mod input;
mod lease;
mod past;
#[cfg(test)]
mod tests;
mod told;
mod tools;

pub(super) use deliver::word;
pub(super) use lease::Lines;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use crate::engine::{AttemptId, CallId, Delivery, RequestId, SessionId, Time};
use crate::host::cgroup::Meter;
use crate::protocol::channel::{Answer, Failed, Verbatim};
use crate::protocol::control::SentPayload;
use crate::spec::{Generation, PoolId, PoolName, WorkerId};

/// How many chunks a worker may have sent that its client has not read.
const CREDIT: u32 = 8;

/// A request that is not concluded.
#[derive(Debug)]
struct Open {
    /// Place and number of who waits for it.
    waits: (u32, u64),
    /// Who that is.
    uid: u32,
    pool: PoolId,
    command: String,
    args: Option<Verbatim>,
    session: Option<String>,
    correlation: String,
    payload: Option<Payload>,
    stream: bool,
    submitted: Time,
    /// When it was first given to a worker.
    began: Option<Time>,
    /// Who has it, or had it last.
    delivery: Option<Delivery>,
    /// How many chunks its worker may still send.
    credit: u32,
    /// What its caller sends to it piece by piece, if it does.
    inflow: Option<input::Inflow>,
    /// What it uses, if that is wanted.
    meter: Metering,
    /// How far it is, if it is a lease.
    lease: Option<lease::Stage>,
}

/// Whether and how it is known what a request uses.
#[derive(Debug)]
enum Metering {
    /// Nobody wants to know.
    Unwanted,
    /// Somebody will.
    Wanted,
    /// Its worker was read when it got it.
    Running(Box<Meter>),
    /// It cannot be known, and why.
    Unknown(String),
}

/// Memory that came with a request.
#[derive(Debug)]
struct Payload {
    said: SentPayload,
    fd: OwnedFd,
    /// How large it is, whatever is said of it, in bytes.
    size: u64,
}

impl Payload {
    fn is_lent(&self) -> bool {
        self.said.shared == Some(true)
    }
}

/// What a worker has answered an attempt, before the engine has said whose answer that is.
#[derive(Debug)]
enum Heard {
    Result(Answer, Option<OwnedFd>),
    Error(Box<Failed>),
    /// Something that is no answer, and why.
    Broken(String),
    /// A lease has ended well.
    Ended,
}

/// What is told of a request, beside what became of it.
#[derive(Debug, Clone)]
pub(super) struct RequestTold {
    /// Its number as clients know it.
    pub(super) name: String,
    pub(super) pool: PoolId,
    pub(super) command: String,
    pub(super) correlation: String,
    pub(super) session: Option<String>,
    pub(super) stream: bool,
    pub(super) payload_bytes: Option<u64>,
    pub(super) submitted: Time,
    pub(super) began: Option<Time>,
    pub(super) delivery: Option<Delivery>,
    /// How often it was given to a worker.
    pub(super) attempts: u32,
}

/// What is told of an answer.
#[derive(Debug)]
pub(super) struct HeardTold {
    /// Of a payload of its own.
    pub(super) payload_bytes: Option<u64>,
    pub(super) result_bytes: u64,
    /// The error that it is, if it is one.
    pub(super) failure: Option<FailureTold>,
}

/// What is told of an error.
#[derive(Debug)]
pub(super) struct FailureTold {
    pub(super) category: Option<String>,
    pub(super) reason: String,
}

/// An order about requests.
#[derive(Debug)]
enum Ordered {
    /// To have a session, and what it is called.
    Open(SessionId, String),
    /// To end one.
    Close,
    /// To close breakers.
    Reset,
}

/// All requests under way.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<RequestId, Open>,
    /// Which request an attempt is of, while its worker has it.
    attempts: BTreeMap<AttemptId, RequestId>,
    heard: BTreeMap<AttemptId, Heard>,
    /// Requests of which a chunk waits for room in the socket of their worker.
    holding: BTreeSet<(WorkerId, RequestId)>,
    sessions: BTreeMap<(PoolName, String), SessionId>,
    session_names: BTreeMap<SessionId, (PoolName, String)>,
    /// Orders about requests that wait for the engine.
    asked: BTreeMap<CallId, Ordered>,
    last: u64,
    last_session: u64,
    past: past::Past,
    /// What workers may call back for.
    tools: tools::Tools,
    /// The first half of every request's number: no other daemon has it.
    run: u64,
}

impl Requests {
    /// `run` is what numbers of requests begin with.
    pub(super) fn new(run: u64) -> Self {
        Self { run, ..Self::default() }
    }

    /// A request's number as clients know it.
    fn name(&self, id: RequestId) -> String {
        format!("{:016x}{:016x}", self.run, id.0)
    }

    /// How many bytes of payloads are held for a user. Counted anew: there are few who have some, and nothing can be forgotten.
    fn payload_bytes_of(&self, uid: u32) -> u64 {
        let of_user = self.open.values().filter(|open| open.uid == uid);
        let held = |open: &Open| {
            let of_chunk = open.inflow.as_ref().map_or(0, input::Inflow::held_bytes);
            open.payload.as_ref().map_or(0, |payload| payload.size).saturating_add(of_chunk)
        };
        of_user.map(held).fold(0, u64::saturating_add)
    }

    /// The number of what clients know by this name: a request, or a call of a worker's.
    fn number(&self, name: &str) -> Option<u64> {
        let (run, number) = name.split_at_checked(16)?;
        let run = u64::from_str_radix(run, 16).ok().filter(|run| *run == self.run);
        run.and_then(|_| u64::from_str_radix(number, 16).ok())
    }

    /// The request whose attempt this worker has.
    fn of_attempt(&self, attempt: AttemptId, worker: WorkerId, generation: Generation) -> Option<RequestId> {
        let id = *self.attempts.get(&attempt)?;
        let delivery = self.open.get(&id)?.delivery?;
        (delivery.attempt == attempt && delivery.worker == worker && delivery.generation == generation).then_some(id)
    }

    /// The engine's number for a session.
    fn session(&mut self, pool: &PoolName, name: &str) -> SessionId {
        let key = (pool.clone(), name.to_owned());
        if let Some(known) = self.sessions.get(&key) {
            return *known;
        }
        self.last_session += 1;
        let id = SessionId(self.last_session);
        self.sessions.insert(key.clone(), id);
        self.session_names.insert(id, key);
        id
    }

    /// What is told of a request that is not concluded.
    pub(super) fn told(&self, id: RequestId) -> Option<RequestTold> {
        let open = self.open.get(&id)?;
        Some(RequestTold {
            name: self.name(id),
            pool: open.pool,
            command: open.command.clone(),
            correlation: open.correlation.clone(),
            session: open.session.clone(),
            stream: open.stream,
            payload_bytes: open.payload.as_ref().map(|payload| payload.said.bytes),
            submitted: open.submitted,
            began: open.began,
            delivery: open.delivery,
            attempts: open.delivery.map_or(0, |delivery| delivery.number),
        })
    }

    /// What is told of the answer to an attempt.
    pub(super) fn heard_told(&self, attempt: AttemptId) -> Option<HeardTold> {
        let length = |text: &Verbatim| u64::try_from(text.text().len()).unwrap_or(u64::MAX);
        let failed = |category: Option<&String>, reason: &str| {
            let failure = FailureTold { category: category.cloned(), reason: reason.to_owned() };
            HeardTold { payload_bytes: None, result_bytes: 0, failure: Some(failure) }
        };
        Some(match self.heard.get(&attempt)? {
            Heard::Result(answer, _) => HeardTold {
                payload_bytes: answer.payload.map(|payload| payload.bytes),
                result_bytes: answer.result.as_ref().map_or(0, length),
                failure: None,
            },
            Heard::Error(error) => {
                let error = &error.error;
                let reason = error.reason.as_deref().unwrap_or("application");
                failed(error.category.as_ref(), reason)
            }
            Heard::Broken(_) => failed(None, "worker_broken"),
            Heard::Ended => HeardTold { payload_bytes: None, result_bytes: 0, failure: None },
        })
    }

    /// Which session of which pool a number is.
    pub(super) fn session_told(&self, id: SessionId) -> Option<(PoolName, String)> {
        self.session_names.get(&id).cloned()
    }

    fn forget_session(&mut self, id: SessionId) -> Option<(PoolName, String)> {
        let key = self.session_names.remove(&id)?;
        self.sessions.remove(&key);
        Some(key)
    }
}
