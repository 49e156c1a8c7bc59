//! Tools that workers call back for: which connections serve them, and the calls that wait for a reply.
//!
//! A call belongs to an attempt of its worker's and to the connection that it was given to, and is over with whichever ends
//! first, or with its reply; the worker is told which. Nothing here waits for time: an attempt has its deadline. Nobody can make
//! this grow: there are so many connections, and each worker and each connection has so many calls. What a call says is passed
//! on and not kept.

use std::collections::{BTreeMap, BTreeSet};

use super::super::clock;
use super::super::control::{Asked, Outcome, Task};
use super::super::state::Daemon;
use super::Open;
use crate::engine::{AttemptId, RequestId};
use crate::protocol::channel::{self, Call, Refusal, ToWorker, Verbatim};
use crate::protocol::control::{
    DaemonState, Empty, Error, ReplyToolRequest, ServeToolsReply, ServeToolsRequest, ToolRefusal,
};
use crate::protocol::service::ServiceError;
use crate::protocol::varlink::{self, Reply};
use crate::spec::{Generation, PoolId, WorkerId};

/// How many calls one worker may have that wait for a reply.
const CALLS_OF_WORKER_MAX: usize = 32;

/// How many calls one connection is given before it has replied to any.
const CALLS_OF_SERVER_MAX: usize = 512;

/// A connection that serves tools.
#[derive(Debug)]
struct Server {
    place: u32,
    uid: u32,
    pool: PoolId,
    tools: BTreeSet<String>,
    calls: BTreeSet<u64>,
    /// It takes no further calls.
    retiring: bool,
}

/// A call that waits for its reply.
#[derive(Debug)]
struct OpenCall {
    server: u64,
    attempt: AttemptId,
    worker: WorkerId,
    generation: Generation,
    /// The worker's own number for it.
    number: u64,
    tool: String,
}

/// Why a call has no result, as its worker is told.
struct Why {
    reason: &'static str,
    message: String,
}

/// All of both.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// By the number of the connection.
    servers: BTreeMap<u64, Server>,
    calls: BTreeMap<u64, OpenCall>,
    of_attempts: BTreeMap<AttemptId, BTreeSet<u64>>,
    /// Each worker's, by its own numbers.
    of_workers: BTreeMap<WorkerId, BTreeMap<u64, u64>>,
    last: u64,
}

impl Tools {
    /// Connections that serve this tool, in the order in which they are asked.
    ///
    /// # Errors
    /// Nobody serves it.
    fn candidates(&self, pool: PoolId, tool: &str, uid: u32) -> Result<Vec<u64>, Why> {
        let serves = |server: &Server| server.pool == pool && !server.retiring && server.tools.contains(tool);
        let mut serving: Vec<_> = self.servers.iter().filter(|(_, server)| serves(server)).collect();
        if serving.is_empty() {
            let message = format!("nobody serves a tool {:?}", shown(tool));
            return Err(Why { reason: "tool_not_found", message });
        }
        serving.retain(|(_, server)| server.calls.len() < CALLS_OF_SERVER_MAX);
        serving.sort_by_key(|(number, server)| (server.uid != uid, server.calls.len(), **number));
        Ok(serving.into_iter().map(|(number, _)| *number).collect())
    }

    fn insert(&mut self, id: u64, call: OpenCall) {
        self.of_attempts.entry(call.attempt).or_default().insert(id);
        self.of_workers.entry(call.worker).or_default().insert(call.number, id);
        if let Some(server) = self.servers.get_mut(&call.server) {
            server.calls.insert(id);
        }
        self.calls.insert(id, call);
    }

    fn take(&mut self, id: u64) -> Option<OpenCall> {
        let call = self.calls.remove(&id)?;
        if let Some(ids) = self.of_attempts.get_mut(&call.attempt) {
            ids.remove(&id);
            if ids.is_empty() {
                self.of_attempts.remove(&call.attempt);
            }
        }
        if let Some(numbers) = self.of_workers.get_mut(&call.worker) {
            numbers.remove(&call.number);
            if numbers.is_empty() {
                self.of_workers.remove(&call.worker);
            }
        }
        if let Some(server) = self.servers.get_mut(&call.server) {
            server.calls.remove(&id);
        }
        Some(call)
    }

    fn calls_of(&self, worker: WorkerId) -> usize {
        self.of_workers.get(&worker).map_or(0, BTreeMap::len)
    }

    fn has_number(&self, worker: WorkerId, number: u64) -> bool {
        self.of_workers.get(&worker).is_some_and(|numbers| numbers.contains_key(&number))
    }
}

impl Daemon {
    /// A client serves tools from now on.
    pub(in crate::daemon) fn serve_tools(&mut self, asked: Asked, request: ServeToolsRequest) -> Outcome {
        if self.state == DaemonState::Stopping {
            return Error::ShuttingDown {}.into();
        }
        let pool = match self.resolve_pool(&request.pool) {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        if self.engine.dispatch(pool).is_none() {
            let reason = "the pool does not dispatch: write `dispatch = true` into it".into();
            return Error::Refused { reason }.into();
        }
        if asked.oneway {
            return Error::Refused { reason: "tools are served by whoever hears the calls".into() }.into();
        }
        self.audit_order(asked, "order_serve_tools", request.pool.as_str());
        let server = Server {
            place: asked.place,
            uid: asked.by.uid,
            pool,
            tools: request.tools.into_iter().collect(),
            calls: BTreeSet::new(),
            retiring: false,
        };
        self.requests.tools.servers.insert(asked.number, server);
        // Said at once: from now on no call is missed.
        Outcome::Begin(Reply::piece(&ServeToolsReply::default()), Task::Tools)
    }

    /// A worker wants a tool used.
    pub(in crate::daemon) fn on_call(&mut self, worker: WorkerId, generation: Generation, call: &Call) {
        // The reply to the first of this number is its reply.
        if self.requests.tools.has_number(worker, call.call) {
            return self.count_junk(worker);
        }
        if let Err(why) = self.pass_call(worker, generation, call) {
            self.refuse_call(worker, generation, call.call, why);
        }
    }

    /// Gives a call to whoever serves its tool.
    ///
    /// # Errors
    /// What its worker is told.
    fn pass_call(&mut self, worker: WorkerId, generation: Generation, call: &Call) -> Result<(), Why> {
        let attempt = AttemptId(call.id.number());
        let request = self.requests.of_attempt(attempt, worker, generation);
        let Some((id, open)) = request.and_then(|id| self.requests.open.get(&id).map(|open| (id, open))) else {
            let message = "the request that it is called for is over, or was never this worker's".into();
            return Err(Why { reason: "request_over", message });
        };
        if self.requests.tools.calls_of(worker) >= CALLS_OF_WORKER_MAX {
            let message =
                format!("{CALLS_OF_WORKER_MAX} calls of this worker wait for replies, which is as many as may");
            return Err(Why { reason: "too_many_calls", message });
        }
        let candidates = self.requests.tools.candidates(worker.pool, &call.tool, open.uid)?;
        self.requests.tools.last += 1;
        let number = self.requests.tools.last;
        let frame = self.call_frame(worker, id, open, number, call);
        let taken = candidates.into_iter().find(|server| {
            let place = self.requests.tools.servers.get(server).map(|known| known.place);
            place.is_some_and(|place| self.control.offer((place, *server), frame.clone()))
        });
        let Some(server) = taken else {
            let message = format!("whoever serves {:?} has as many calls as may be", shown(&call.tool));
            return Err(Why { reason: "tool_busy", message });
        };
        let tool = shown(&call.tool);
        self.requests.tools.insert(number, OpenCall { server, attempt, worker, generation, number: call.call, tool });
        Ok(())
    }

    fn call_frame(&self, worker: WorkerId, id: RequestId, open: &Open, number: u64, call: &Call) -> Vec<u8> {
        let left = open.delivery.map(|delivery| clock::since(self.now, delivery.deadline));
        let said = ServeToolsReply {
            call: Some(self.requests.name(RequestId(number))),
            tool: Some(call.tool.clone()),
            args: None,
            request: Some(self.requests.name(id)),
            worker: Some(self.worker_name(worker)),
            session: open.session.clone(),
            correlation: Some(open.correlation.clone()),
            deadline_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        };
        varlink::encode_with(&said, "args", call.args.as_ref(), true)
    }

    fn refuse_call(&mut self, worker: WorkerId, generation: Generation, call: u64, why: Why) {
        let error = Some(Refusal { reason: why.reason.into(), message: why.message });
        self.say_to(worker, generation, &ToWorker::Reply(channel::Reply { call, result: None, error }));
    }

    /// A client replies to a call.
    pub(in crate::daemon) fn reply_tool(&mut self, request: ReplyToolRequest) -> Outcome {
        if request.result.is_some() && request.error.is_some() {
            return Outcome::Reply(ServiceError::InvalidParameter { parameter: "error".into() }.to_reply());
        }
        let id = self.requests.number(&request.call);
        let of_pool = |call: &OpenCall| self.pools.get(&call.worker.pool).is_some_and(|p| p.spec.name == request.pool);
        let known = id.filter(|id| self.requests.tools.calls.get(id).is_some_and(of_pool));
        let Some((id, call)) = known.and_then(|id| self.requests.tools.take(id).map(|call| (id, call))) else {
            let what = format!("call {} of pool {}, or a wish for its reply,", request.call, request.pool);
            return Error::NotFound { what }.into();
        };
        tracing::debug!(target: "dispatch", call = id, tool = %call.tool, worker = %self.worker_name(call.worker), "a call of {} has its reply", call.tool);
        let outcome = match reply_frame(call.number, request.result, request.error) {
            Ok(frame) => {
                self.say_to(call.worker, call.generation, &frame);
                Outcome::Reply(Reply::last(&Empty {}))
            }
            Err(reason) => {
                let message = format!("the reply of {:?} cannot be passed on: {reason}", call.tool);
                self.refuse_call(call.worker, call.generation, call.number, Why { reason: "reply_refused", message });
                Error::Refused { reason: format!("the reply cannot be passed on: {reason}") }.into()
            }
        };
        self.let_retire(call.server);
        outcome
    }

    /// The user whose call it is to reply to; `None` where there is no such call.
    pub(in crate::daemon) fn server_of(&self, call: &str) -> Option<u32> {
        let call = self.requests.tools.calls.get(&self.requests.number(call)?)?;
        self.requests.tools.servers.get(&call.server).map(|server| server.uid)
    }

    /// An attempt is over, and with it its calls.
    pub(super) fn end_calls_of(&mut self, attempt: AttemptId) {
        for id in self.requests.tools.of_attempts.remove(&attempt).unwrap_or_default() {
            let Some(call) = self.requests.tools.take(id) else { continue };
            let message = format!("the request that {:?} was called for is over", call.tool);
            self.refuse_call(call.worker, call.generation, call.number, Why { reason: "request_over", message });
            self.let_retire(call.server);
        }
    }

    /// A connection is gone, and with it the tools that it served.
    pub(in crate::daemon) fn end_tools(&mut self, number: u64) {
        let Some(server) = self.requests.tools.servers.remove(&number) else { return };
        for id in server.calls {
            let Some(call) = self.requests.tools.take(id) else { continue };
            let message = format!("whoever served {:?} is gone", call.tool);
            self.refuse_call(call.worker, call.generation, call.number, Why { reason: "tool_gone", message });
        }
    }

    /// A connection that serves says nothing any more: it gets no further calls. Whether it is done.
    pub(in crate::daemon) fn retire_tools(&mut self, number: u64) -> bool {
        let Some(server) = self.requests.tools.servers.get_mut(&number) else { return true };
        server.retiring = true;
        let done = server.calls.is_empty();
        if done {
            self.requests.tools.servers.remove(&number);
        }
        done
    }

    /// A server that takes no further calls is told when those that it had are over.
    fn let_retire(&mut self, number: u64) {
        let servers = &mut self.requests.tools.servers;
        let done = servers.get(&number).is_some_and(|server| server.retiring && server.calls.is_empty());
        if done && let Some(server) = servers.remove(&number) {
            let last = Reply::last(&ServeToolsReply::default());
            self.control.answer_waiting((server.place, number), &last, self.now);
        }
    }

    /// A pool is gone: nobody calls the tools that are served for it.
    pub(in crate::daemon) fn end_tools_for(&mut self, pool: PoolId, name: &str) {
        let of_pool = self.requests.tools.servers.iter().filter(|(_, server)| server.pool == pool);
        let waits: Vec<(u32, u64)> = of_pool.map(|(number, server)| (server.place, *number)).collect();
        for (place, number) in waits {
            self.end_tools(number);
            let gone = Error::NotFound { what: format!("pool {name}") }.to_reply();
            self.control.answer_waiting((place, number), &gone, self.now);
        }
    }

    /// Another program becomes the daemon, which knows of no tools.
    pub(super) fn leave_tools(&mut self) {
        for number in self.requests.tools.servers.keys().copied().collect::<Vec<_>>() {
            self.end_tools(number);
        }
    }
}

/// The frame of a reply.
///
/// # Errors
/// Why it cannot be said on a channel.
fn reply_frame(call: u64, result: Option<serde_json::Value>, error: Option<ToolRefusal>) -> Result<ToWorker, String> {
    let text = result.map(|result| serde_json::to_vec(&result).map_err(|error| error.to_string())).transpose()?;
    let result = text.map(|text| Verbatim::parse(&text).map_err(|error| error.to_string())).transpose()?;
    let error = error.map(|error| Refusal { reason: error.reason, message: error.message });
    let frame = ToWorker::Reply(channel::Reply { call, result, error });
    frame.encode().map(|_| frame).map_err(|error| error.to_string())
}

/// A worker's own text inside a message to it, cut.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: PoolId = PoolId(1);

    fn server(uid: u32, tools: &[&str]) -> Server {
        let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
        Server { place: 0, uid, pool: POOL, tools, calls: BTreeSet::new(), retiring: false }
    }

    fn call(server: u64, number: u64) -> OpenCall {
        // As many as a worker may have, and then another worker's.
        let slot = u32::try_from(number / CALLS_OF_WORKER_MAX as u64).expect("few workers");
        let worker = WorkerId { pool: POOL, slot };
        OpenCall { server, attempt: AttemptId(1), worker, generation: Generation(1), number, tool: "add".to_owned() }
    }

    #[test]
    fn a_server_is_given_as_many_calls_as_it_may_have_and_then_others_are() {
        let mut tools = Tools::default();
        tools.servers.insert(7, server(1, &["add"]));
        let asked = |tools: &Tools| tools.candidates(POOL, "add", 0).map_err(|why| why.reason);
        for number in 0..CALLS_OF_SERVER_MAX as u64 {
            assert_eq!(asked(&tools), Ok(vec![7]), "{number}");
            tools.insert(number, call(7, number));
        }
        assert_eq!(asked(&tools), Ok(Vec::new()), "it is there, and is given no more");
        tools.servers.insert(8, server(1, &["add"]));
        assert_eq!(asked(&tools), Ok(vec![8]));
        tools.take(3);
        assert_eq!(asked(&tools), Ok(vec![8, 7]), "whoever has fewer is first");
        assert_eq!((tools.calls_of(call(7, 3).worker), tools.calls_of(call(7, 40).worker)), (31, 32));
    }

    #[test]
    fn who_is_of_the_same_user_is_asked_first_and_only_who_serves_the_tool_for_the_pool() {
        let mut tools = Tools::default();
        tools.servers.insert(1, server(1, &["add"]));
        tools.servers.insert(2, server(2, &["add"]));
        tools.servers.insert(3, server(2, &["other"]));
        tools.servers.insert(4, Server { pool: PoolId(2), ..server(2, &["add"]) });
        tools.servers.insert(5, Server { retiring: true, ..server(2, &["add"]) });
        let asked = |uid| tools.candidates(POOL, "add", uid).map_err(|why| why.reason);
        assert_eq!((asked(1), asked(2), asked(3)), (Ok(vec![1, 2]), Ok(vec![2, 1]), Ok(vec![1, 2])));
        assert_eq!(tools.candidates(PoolId(3), "add", 1).map_err(|why| why.reason), Err("tool_not_found"));
    }
}
