//! What a call means: message, request, permission, answer. One at a time for each client, in the order of its calls.
//!
//! The permission is decided on the decoded request, here, by the process that carries it out (HARDENING S5).

use super::super::state::Daemon;
use super::client::{Client, Task};
use super::roles;
use crate::protocol::control::{
    ConfigReply, DoctorReply, Empty, Error, EventKind, EventsRequest, Request, SetLogReply, ShutdownRequest,
    UpgradeRequest,
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
        let mut drained = false;
        for _ in 0..CALLS_MAX {
            if !client.takes_calls() {
                break;
            }
            let Some(frame) = client.next_frame(self.now) else {
                drained = true;
                break;
            };
            client.finish_stream();
            self.take_call(place, client, &frame);
            // Most answers fit the socket, and then the next call need not wait for the next turn.
            client.write();
        }
        client.note_calls(drained);
        if matches!(client.task, Task::Attached(_)) {
            self.hear_viewer(client);
        }
        if matches!(client.task, Task::Piped(_)) {
            self.hear_runner(client);
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
            Ok(request) if !roles::allows(asked.by, self.control.own_uid, &request, &self.spec.roles) => {
                let method = request.method().1;
                self.control.complain(asked.by, &format!("permission denied: {method}"), self.now);
                self.audit_refusal((asked.by.uid, asked.by.pid), method, "role");
                Outcome::Reply(ServiceError::PermissionDenied {}.to_reply())
            }
            Ok(request) if self.is_foreign(asked.by.uid, &request) => {
                let method = request.method().1;
                self.control.complain(asked.by, &format!("somebody else's session: {method}"), self.now);
                self.audit_refusal((asked.by.uid, asked.by.pid), method, "somebody else's session");
                Outcome::Reply(ServiceError::PermissionDenied {}.to_reply())
            }
            Ok(Request::ImageImport(request)) => self.ordered_import(asked, request, client.take_passed()),
            Ok(request) => self.carry_out(asked, request),
            Err(error) => Outcome::Reply(error.to_reply()),
        };
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

    fn carry_out(&mut self, asked: Asked, request: Request) -> Outcome {
        let reply = match request {
            Request::GetInfo(_) => Reply::last(&Info::of_this_program()),
            Request::GetInterfaceDescription(request) => match service::description_of(&request.interface) {
                Some(description) => Reply::last(&description),
                None => ServiceError::InterfaceNotFound { interface: request.interface.chars().take(120).collect() }
                    .to_reply(),
            },
            Request::Ping(_) => Reply::last(&Empty {}),
            Request::Status(_) => Reply::last(&self.status_reply()),
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
            | Request::Scale(_)) => return self.order(asked, &request),
            Request::Claim(request) => return self.claim(asked, &request),
            Request::Pause(request) => return self.ordered_pause(asked, &request),
            Request::Reload(_) => return self.ordered_reload(asked),
            Request::Upgrade(request) => return self.ordered_upgrade(asked, &request),
            Request::Shutdown(request) => return self.ordered_shutdown(asked, &request),
            Request::SetLog(request) => match self.log.set(&request.filter) {
                Ok(previous) => {
                    self.audit_order(asked, "log_filter", &request.filter);
                    self.record_order(asked, EventKind::Daemon, format!("log filter set to {}", request.filter));
                    Reply::last(&SetLogReply { previous })
                }
                Err(reason) => Error::Refused { reason }.to_reply(),
            },
            Request::Doctor(_) => {
                let mut checks = super::super::doctor::checks(&self.spec);
                checks.extend(self.troubles());
                Reply::last(&DoctorReply { checks })
            }
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
            Request::GetConfig(_) => Reply::last(&ConfigReply {
                path: self.config_path.as_ref().map(|path| path.display().to_string()),
                text: self.config_text.clone(),
            }),
        };
        Outcome::Reply(reply)
    }

    fn told_events(&self, request: &EventsRequest) -> Outcome {
        let last = usize::try_from(request.last()).unwrap_or(usize::MAX);
        let mut cursor = self.events.before_last(last);
        let reply = self.events.read(&mut cursor, last);
        if request.follow == Some(true) {
            // Said even if it is empty: from now on nothing is missed.
            return Outcome::Begin(Reply::piece(&reply), Task::Events(cursor));
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
