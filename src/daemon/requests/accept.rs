//! Takes requests and orders about sessions from clients.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::birth::chain;
use super::super::control::{Asked, Outcome, Task};
use super::super::state::Daemon;
use super::input::Inflow;
use super::{CREDIT, Metering, Open, Ordered, Payload, Requests};
use crate::engine::{Answer, CallId, Demand, Input, RequestId, RequestInput, SessionId};
use crate::host::payload::{PayloadKind, check_payload};
use crate::protocol::channel::{FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX, Verbatim};
use crate::protocol::control::{
    CloseSessionRequest, Empty, Error, ExecuteRequest, OpenSessionReply, OpenSessionRequest, ResetBreakersReply,
    ResetBreakersRequest, SentPayload,
};
use crate::protocol::varlink::Reply;

/// How many bytes of payloads are held for one user, at most, requests that wait and that run together. The memory itself is
/// charged to whoever made it, and goes on being so for as long as it is held here.
pub(super) const PAYLOADS_BYTES_OF_USER_MAX: u64 = 16 << 30;

/// What of a frame is not the arguments, at most, in bytes.
pub(super) const FRAME_REST_BYTES: usize = 2 * 1024;

impl Daemon {
    /// Takes a request: checks what it says and brings, and has the engine find a worker.
    pub(in crate::daemon) fn execute(
        &mut self,
        asked: Asked,
        request: ExecuteRequest,
        passed: Option<OwnedFd>,
    ) -> Outcome {
        let pool = match self.resolve_pool(&request.pool) {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        if asked.oneway {
            return Error::Refused { reason: "a request is for whoever hears its answer".into() }.into();
        }
        let read = read(&request).and_then(|args| Ok((args, payload(request.payload, passed)?)));
        let (args, payload) = match read {
            Ok(read) => read,
            Err(reason) => return Error::Refused { reason }.into(),
        };
        if let Some(reason) = payload.as_ref().and_then(|payload| self.requests.refusal_of(asked.by.uid, payload.size))
        {
            return Error::Refused { reason }.into();
        }
        let session = request.session.as_deref().map(|name| self.requests.session(&request.pool, name));
        let demand = demand(&request, session, args.as_ref());
        self.requests.last += 1;
        let id = RequestId(self.requests.last);
        let correlation = request.correlation.unwrap_or_else(|| self.requests.name(id));
        let open = Open {
            waits: (asked.place, asked.number),
            uid: asked.by.uid,
            pool,
            command: request.command,
            args,
            session: request.session,
            correlation,
            payload,
            stream: request.stream == Some(true),
            submitted: self.now,
            began: None,
            delivery: None,
            credit: CREDIT,
            inflow: (request.input == Some(true)).then(Inflow::default),
            meter: if request.bill == Some(true) { Metering::Wanted } else { Metering::Unwanted },
            lease: None,
        };
        self.requests.open.insert(id, open);
        self.inputs.push(Input::Request(RequestInput::Submitted(id, pool, demand)));
        Outcome::Wait(Task::Request(id))
    }

    /// Whoever waited for a request is gone.
    pub(in crate::daemon) fn abandon_request(&mut self, id: RequestId) {
        self.inputs.push(Input::Request(RequestInput::Abandoned(id)));
    }

    /// Has a session of requests.
    pub(in crate::daemon) fn open_session(&mut self, asked: Asked, request: &OpenSessionRequest) -> Outcome {
        let pool = match self.resolve_pool(&request.pool) {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        let Some(call) = self.next_call_of_requests(asked) else { return Error::Saturated {}.into() };
        let name = request.session.clone().unwrap_or_else(|| format!("session-{:x}-{}", self.requests.run, call.0));
        let id = self.requests.session(&request.pool, &name);
        self.requests.asked.insert(call, Ordered::Open(id, name));
        let ttl = request.ttl_ms.map(Duration::from_millis);
        self.inputs.push(Input::Request(RequestInput::SessionRequested(call, id, pool, ttl)));
        Outcome::Wait(Task::Order)
    }

    /// Ends a session of requests.
    pub(in crate::daemon) fn close_session(&mut self, asked: Asked, request: &CloseSessionRequest) -> Outcome {
        let key = (request.pool.clone(), request.session.clone());
        let Some(id) = self.requests.sessions.get(&key).copied() else {
            return Error::NotFound { what: format!("session {} of pool {}", request.session, request.pool) }.into();
        };
        let Some(call) = self.next_call_of_requests(asked) else { return Error::Saturated {}.into() };
        self.requests.asked.insert(call, Ordered::Close);
        self.inputs.push(Input::Request(RequestInput::SessionClosed(call, id)));
        Outcome::Wait(Task::Order)
    }

    /// Closes circuit breakers.
    pub(in crate::daemon) fn reset_breakers(&mut self, asked: Asked, request: &ResetBreakersRequest) -> Outcome {
        let target = match self.resolve(&request.target) {
            Ok(target) => target,
            Err(error) => return error.into(),
        };
        let Some(call) = self.next_call_of_requests(asked) else { return Error::Saturated {}.into() };
        self.audit_order(asked, "order_reset_breakers", &request.target.to_string());
        self.requests.asked.insert(call, Ordered::Reset);
        self.inputs.push(Input::Request(RequestInput::BreakersReset(call, target)));
        Outcome::Wait(Task::Order)
    }

    /// What the engine's answer to one of these orders is to its client; `None` if the call was none of them.
    pub(in crate::daemon) fn answer_about_requests(&mut self, call: CallId, answer: &Answer) -> Reply {
        let order = self.requests.asked.remove(&call);
        match (answer, order) {
            (Answer::Done { .. }, Some(Ordered::Open(_, session))) => Reply::last(&OpenSessionReply { session }),
            (Answer::Done { achieved: reset, .. }, Some(Ordered::Reset)) => {
                Reply::last(&ResetBreakersReply { reset: *reset })
            }
            (Answer::Full { max }, Some(Ordered::Open(id, _))) => {
                self.requests.forget_session(id);
                let reason = format!("there are {max} sessions, which is as many as `dispatch.sessions` allows");
                Error::Refused { reason }.to_reply()
            }
            (Answer::ShuttingDown, order) => {
                if let Some(Ordered::Open(id, _)) = order {
                    self.requests.forget_session(id);
                }
                Error::ShuttingDown {}.to_reply()
            }
            (_, Some(Ordered::Open(id, _))) => {
                self.requests.forget_session(id);
                Error::Refused { reason: "the pool does not dispatch: write `dispatch = true` into it".into() }
                    .to_reply()
            }
            (_, Some(Ordered::Close | Ordered::Reset) | None) => Reply::last(&Empty {}),
        }
    }
}

impl Requests {
    /// Why so many more bytes of memory are not held for a user.
    pub(super) fn refusal_of(&self, uid: u32, more: u64) -> Option<String> {
        let held = self.payload_bytes_of(uid);
        (more > 0 && held.saturating_add(more) > PAYLOADS_BYTES_OF_USER_MAX).then(|| {
            format!(
                "{held} bytes of payloads are held for this user already, and with {more} more it would be more than \
                 {PAYLOADS_BYTES_OF_USER_MAX}"
            )
        })
    }
}

/// What the engine has to know of a request.
pub(super) fn demand(request: &ExecuteRequest, session: Option<SessionId>, args: Option<&Verbatim>) -> Demand {
    let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
    Demand {
        timeout: ms(request.timeout_ms),
        queue_timeout: ms(request.queue_timeout_ms),
        // Chunks that were passed on cannot be taken back, whichever way they went: a stream is not begun again.
        idempotent: request.idempotent == Some(true) && request.stream != Some(true) && request.input != Some(true),
        session,
        affinity: request.affinity.map(Into::into),
        fingerprint: fingerprint(&request.command, args),
        ..Demand::default()
    }
}

/// The arguments of a request as text, which has to fit a frame.
pub(super) fn read(request: &ExecuteRequest) -> Result<Option<Verbatim>, String> {
    request.args.as_ref().map(|args| value("args", args)).transpose()
}

/// What a caller says to a worker as text, which has to fit a frame.
pub(super) fn value(what: &str, said: &serde_json::Value) -> Result<Verbatim, String> {
    let text = serde_json::to_vec(said).map_err(|error| format!("write {what}: {error}"))?;
    let most = FRAME_BYTES_MAX - FRAME_REST_BYTES;
    if text.len() > most {
        return Err(format!("{what} of {} bytes, at most {most} may be; pass more as a payload", text.len()));
    }
    Verbatim::parse(&text).map_err(|error| format!("{what}: {error}"))
}

/// The payload of a request, checked.
pub(super) fn payload(said: Option<SentPayload>, passed: Option<OwnedFd>) -> Result<Option<Payload>, String> {
    let Some(said) = said else { return Ok(None) };
    let passed = passed.ok_or("a payload was announced and no descriptor came with the call")?;
    // More cannot be spoken of on a channel: it would be the worker's failure that the request never reaches it.
    if said.bytes > PAYLOAD_BYTES_MAX {
        return Err(format!("the payload is {} bytes long, at most {PAYLOAD_BYTES_MAX} may be", said.bytes));
    }
    let kind = if said.shared == Some(true) { PayloadKind::Lent } else { PayloadKind::Immutable };
    let size = check_payload(&passed, said.bytes, kind).map_err(|error| chain(&error))?;
    Ok(Some(Payload { said, fd: passed, size }))
}

/// The same for requests that say the same, whoever makes them.
fn fingerprint(command: &str, args: Option<&Verbatim>) -> u64 {
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    args.map(Verbatim::text).hash(&mut hasher);
    hasher.finish()
}
