//! What a call means: message, request, permission, answer. One at a time for each client, in the order of its calls.
//!
//! The permission is decided on the decoded request, here, by the process that carries it out (HARDENING S5).

use super::super::state::Daemon;
use super::client::{Client, Task};
use super::roles;
use crate::engine::RequestId;
use crate::protocol::control::{
    ConfigReply, DoctorReply, DrainReply, DrainRequest, Empty, Error, EventKind, EventsReply, EventsRequest, Request,
    SetLogReply, ShutdownRequest, UpgradeRequest,
};
use crate::protocol::service::{self, Info, ServiceError};
use crate::protocol::varlink::{Call, Reply};

/// How many calls of one client are taken in one turn.
const CALLS_MAX: u32 = 16;

/// How many events one reply carries.
pub(super) const PIECE_EVENTS_MAX: usize = 256;

/// What becomes of a call.
#[derive(Debug)]
pub(in crate::daemon) enum Outcome {
    /// It is answered.
    Reply(Reply),
    /// Its client waits.
    Wait(Task),
    /// A first piece; its client waits for more.
    Begin(Reply, Task),
}

fn description_reply(interface: &str) -> Reply {
    match service::description_of(interface) {
        Some(description) => Reply::last(&description),
        None => ServiceError::InterfaceNotFound { interface: interface.chars().take(120).collect() }.to_reply(),
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        Self::Reply(error.to_reply())
    }
}

/// Who asked, and how.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon) struct Asked {
    pub(in crate::daemon) place: u32,
    pub(in crate::daemon) number: u64,
    pub(in crate::daemon) by: roles::Principal,
    /// More than one reply is welcome.
    pub(in crate::daemon) more: bool,
    /// The connection is for another protocol then.
    pub(in crate::daemon) upgrade: bool,
    /// No reply is wanted.
    pub(in crate::daemon) oneway: bool,
}

impl Daemon {
    /// Reads what a client has sent and takes its calls, within the budget.
    pub(super) fn serve(&mut self, place: u32, client: &mut Client) {
        client.read();
        if matches!(client.task, Task::Attached(_)) {
            return self.hear_viewer(client);
        }
        if matches!(client.task, Task::Piped(_)) {
            return self.hear_runner(client);
        }
        if matches!(client.task, Task::Tools) && client.has_ended() && self.retire_tools(client.number) {
            client.finish_stream();
        }
        let mut drained = false;
        for _ in 0..CALLS_MAX {
            let request = client.waits_for().filter(|request| self.takes_chunk(*request));
            if request.is_none() && !client.takes_calls() {
                break;
            }
            let Some(frame) = client.next_frame(self.now) else {
                drained = true;
                break;
            };
            if let Some(request) = request {
                self.hear_chunk(client, request, &frame);
                continue;
            }
            client.finish_stream();
            self.take_call(place, client, &frame);
            // Most answers fit the socket, and then the next call need not wait for the next turn.
            client.write();
        }
        client.note_calls(drained);
        // The kernel will not say again that there is more.
        if client.has_more_to_say() && client.waits_for().is_some_and(|request| self.takes_chunk(request)) {
            self.sources.again(client.token);
        }
        if matches!(client.task, Task::Attached(_)) {
            self.hear_viewer(client);
        }
        if matches!(client.task, Task::Piped(_)) {
            self.hear_runner(client);
        }
    }

    /// Takes what a client says while the input of its request goes on.
    fn hear_chunk(&mut self, client: &mut Client, request: RequestId, frame: &[u8]) {
        let passed = client.take_passed();
        if let Err(reason) = self.take_chunk(request, frame, passed) {
            client.say_last(&Error::Refused { reason }.to_reply(), self.now);
        }
    }

    fn take_call(&mut self, place: u32, client: &mut Client, frame: &[u8]) {
        let call = match Call::decode(frame) {
            Ok(call) => call,
            Err(error) => return client.say_last(&error.reply(), self.now),
        };
        let asked = Asked {
            place,
            number: client.number,
            by: client.peer,
            more: call.more,
            upgrade: call.upgrade,
            oneway: call.oneway,
        };
        let outcome = match Request::decode(call) {
            Ok(Request::Identify(request)) => self.identify(client, &request),
            Ok(request) if !self.allows(asked.by, &request) => {
                let method = request.method().1;
                self.control.complain(asked.by, &format!("permission denied: {method}"), self.now);
                self.audit_refusal((asked.by.uid, asked.by.pid), method, "role");
                Outcome::Reply(ServiceError::PermissionDenied {}.to_reply())
            }
            Ok(request) if !self.is_web_admin(asked.by) && self.is_foreign(asked.by, &request) => {
                let method = request.method().1;
                let whose = match method {
                    "ReplyTool" => "somebody else's call",
                    "InspectTask" | "CancelTask" | "FollowTask" => "somebody else's task",
                    _ => "somebody else's session",
                };
                self.control.complain(asked.by, &format!("{whose}: {method}"), self.now);
                self.audit_refusal((asked.by.uid, asked.by.pid), method, whose);
                Outcome::Reply(ServiceError::PermissionDenied {}.to_reply())
            }
            Ok(Request::Execute(request)) => self.execute(asked, *request, client.take_passed()),
            Ok(Request::Lease(_)) if client.lease.is_some() => {
                Error::Refused { reason: "this connection holds a lease: end it first".into() }.into()
            }
            Ok(Request::EndLease(request)) => self.end_lease(&mut client.lease, &request),
            Ok(Request::ImageImport(request)) => self.ordered_import(asked, request, client.take_passed()),
            Ok(request) => self.carry_out(asked, request),
            Err(error) => Outcome::Reply(error.to_reply()),
        };
        // What was passed with a call that has no use for it is held for nobody.
        drop(client.take_passed());
        if asked.oneway {
            return;
        }
        match outcome {
            Outcome::Reply(reply) => client.say(&reply, self.now),
            Outcome::Wait(task) => client.task = task,
            Outcome::Begin(reply, task) => {
                client.say(&reply, self.now);
                client.task = task;
                client.begin_to_look();
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table: one line for each request")]
    fn carry_out(&mut self, asked: Asked, request: Request) -> Outcome {
        let reply = match request {
            Request::GetInfo(_) => Reply::last(&Info::of_this_program()),
            Request::GetInterfaceDescription(request) => description_reply(&request.interface),
            Request::Ping(_) => Reply::last(&Empty {}),
            Request::Status(_) => Reply::last(&self.status_reply()),
            Request::WaitPool(request) => return self.wait_pool(asked.more, &request),
            Request::List(request) => return self.list(asked, request),
            Request::Inspect(request) => return self.inspect(asked, &request.target),
            Request::Stats(request) => return self.stats(asked, request.target.as_ref()),
            Request::Certificates(request) => return self.told_certificates(asked, request),
            Request::Logs(request) => return self.told_logs(asked, &request),
            Request::Attach(request) => {
                let steal = Some(request.steal == Some(true));
                return self.attach(asked, &request.target, request.replay, steal);
            }
            Request::Watch(request) => return self.attach(asked, &request.target, request.replay, None),
            Request::Exec(request) => return self.exec(asked, &request),
            Request::Send(request) => return self.send(asked, &request),
            Request::Sessions(request) => return self.sessions(request.pool),
            Request::Events(request) => return self.told_events(&request),
            request @ (Request::Start(_)
            | Request::Stop(_)
            | Request::Restart(_)
            | Request::Kill(_)
            | Request::Reset(_)
            | Request::Release(_)
            | Request::Warm(_)
            | Request::Tune(_)
            | Request::Scale(_)) => return self.order(asked, &request),
            Request::Claim(request) => return self.claim(asked, &request),
            Request::Pause(request) => return self.ordered_pause(asked, &request),
            Request::Reload(_) => return self.ordered_reload(asked),
            Request::Upgrade(request) => return self.ordered_upgrade(asked, &request),
            Request::Shutdown(request) => return self.ordered_shutdown(asked, &request),
            Request::SetLog(request) => return self.ordered_log_filter(asked, &request.filter),
            Request::Drain(request) => return self.ordered_drain(asked, request),
            // Taken before, with the connection that it is about.
            Request::Identify(_) => ServiceError::PermissionDenied {}.to_reply(),
            Request::CreateToken(request) => return self.create_token(asked, &request),
            Request::ListTokens(_) => return self.list_tokens(),
            Request::RevokeToken(request) => return self.revoke_token(asked, &request),
            Request::Doctor(_) => Reply::last(&self.doctor_reply()),
            Request::ListVolumes(request) => return self.list_volumes(asked, &request),
            Request::CreateVolume(request) => return self.create_volume(asked, &request),
            Request::RepairVolume(request) => return self.repair_volume(asked, &request),
            Request::HoldVolumes(request) => return self.hold_volumes(asked, &request),
            Request::RemoveVolume(request) => return self.remove_volume(asked, &request),
            // Taken before, with the descriptor that belongs to it.
            Request::ImageImport(request) => return self.ordered_import(asked, request, None),
            Request::ImageList(_) => Reply::last(&self.told_images()),
            Request::ImageInspect(request) => return self.inspected_image(&request),
            Request::ImageRemove(request) => return self.ordered_image_removal(asked, &request),
            Request::Execute(request) => return self.execute(asked, *request, None),
            // Taken before, while its connection waits for a request that takes input.
            Request::SendChunk(_) => {
                let reason = "no request that takes input waits for an answer on this connection".into();
                return Error::Refused { reason }.into();
            }
            Request::Lease(request) => return self.lease(asked, *request),
            // Taken before, with the connection whose lease it is.
            Request::EndLease(request) => return self.end_lease(&mut None, &request),
            Request::OpenSession(request) => return self.open_session(asked, &request),
            Request::CloseSession(request) => return self.close_session(asked, &request),
            Request::ListSessions(request) => return self.list_sessions(asked, &request),
            Request::RequestStatus(request) => return self.request_status(&request),
            Request::PoolStats(request) => return self.pool_stats(&request),
            Request::ResetBreakers(request) => return self.reset_breakers(asked, &request),
            Request::ServeTools(request) => return self.serve_tools(asked, request),
            Request::ReplyTool(request) => return self.reply_tool(request),
            Request::RunTask(request) => return self.run_task(asked, *request),
            Request::ListTasks(_) => return self.list_tasks(asked),
            Request::InspectTask(request) => return self.inspect_task(&request),
            Request::CancelTask(request) => return self.cancel_task(asked, &request),
            Request::FollowTask(request) => return self.follow_task(&request),
            Request::TaskStatus(_) => return self.task_status(),
            Request::SwitchExecutor(request) => return self.switch_executor(asked, &request),
            Request::GetConfig(_) => Reply::last(&self.config_reply()),
        };
        Outcome::Reply(reply)
    }

    fn config_reply(&self) -> ConfigReply {
        let path = self.config_path.as_ref().map(|path| path.display().to_string());
        ConfigReply { path, text: self.config_text.clone() }
    }

    fn doctor_reply(&self) -> DoctorReply {
        let mut checks = super::super::doctor::checks(&self.spec);
        checks.extend(self.troubles());
        DoctorReply { checks }
    }

    fn ordered_log_filter(&mut self, asked: Asked, filter: &str) -> Outcome {
        match self.log.set(filter) {
            Ok(previous) => {
                self.audit_order(asked, "log_filter", filter);
                self.record_order(asked, EventKind::Daemon, format!("log filter set to {filter}"));
                Outcome::Reply(Reply::last(&SetLogReply { previous }))
            }
            Err(reason) => Error::Refused { reason }.into(),
        }
    }

    /// The gateway cannot keep it itself: it is started anew with nothing.
    fn ordered_drain(&mut self, asked: Asked, request: DrainRequest) -> Outcome {
        if let Some(draining) = request.draining {
            if self.drained.is_some() != draining {
                let word = if draining { "on" } else { "off" };
                self.audit_order(asked, "drain", word);
                self.record_order(asked, EventKind::Daemon, format!("gateway drain {word}"));
            }
            self.drained = draining.then(|| request.pools.unwrap_or_default());
        }
        Outcome::Reply(Reply::last(&DrainReply { drained: self.drained.clone() }))
    }

    fn told_events(&self, request: &EventsRequest) -> Outcome {
        if request.telemetry == Some(true) {
            let (cursor, ticket) = self.telemetry.follow();
            return Outcome::Begin(Reply::piece(&EventsReply::default()), Task::Telemetry(cursor, ticket));
        }
        let last = usize::try_from(request.last()).unwrap_or(usize::MAX);
        let (reply, reader) = self.events.last(last, request.pool.clone());
        if request.follow == Some(true) {
            // Said even if it is empty: from now on nothing is missed.
            return Outcome::Begin(Reply::piece(&reply), Task::Events(reader));
        }
        Outcome::Reply(Reply::last(&reply))
    }

    fn ordered_reload(&mut self, asked: Asked) -> Outcome {
        if self.state == crate::protocol::control::DaemonState::Stopping {
            return Error::ShuttingDown {}.into();
        }
        self.audit_order(asked, "order_reload", "daemon");
        self.record_order(asked, EventKind::Order, "reload".into());
        Outcome::Reply(match self.reload() {
            Ok(reply) => Reply::last(&reply),
            Err(cause) => {
                let object = self.config_path.as_ref().map_or_else(String::new, |path| path.display().to_string());
                Error::Failed { operation: "reload".into(), object, cause }.to_reply()
            }
        })
    }

    fn ordered_upgrade(&mut self, asked: Asked, request: &UpgradeRequest) -> Outcome {
        self.audit_order(asked, "order_upgrade", "daemon");
        self.record_order(asked, EventKind::Order, "upgrade the daemon".into());
        match self.begin_upgrade((asked.place, asked.number), request.binary.as_deref()) {
            Ok(()) => Outcome::Wait(Task::Order),
            Err(cause) => {
                let object = request.binary.clone().unwrap_or_else(|| "the installed program".into());
                Error::Failed { operation: "upgrade to".into(), object, cause }.into()
            }
        }
    }

    fn ordered_shutdown(&mut self, asked: Asked, request: &ShutdownRequest) -> Outcome {
        if request.keep_workers == Some(true) {
            self.audit_order(asked, "order_leave", "daemon");
            self.record_order(asked, EventKind::Order, "leave the workers".into());
            self.leave();
            return Outcome::Wait(Task::Shutdown(None));
        }
        let patience = request.timeout_ms.map_or(self.spec.shutdown_timeout, std::time::Duration::from_millis);
        self.audit_order(asked, "order_shutdown", "daemon");
        self.record_order(asked, EventKind::Order, "shut down".into());
        self.begin_shutdown(patience);
        Outcome::Wait(Task::Shutdown(asked.more.then_some(u32::MAX)))
    }
}
