//! Whoever comes by HTTP: on whose behalf a connection of the gateway's is, and what such a caller may do.
//!
//! The gateway is not trusted: it can say no more than what it was shown, and the daemon decides by that.

use super::client::Client;
use super::dispatch::Outcome;
use super::roles::{self, Principal, WEB_UID, Web};
use crate::daemon::clock;
use crate::daemon::state::Daemon;
use crate::protocol::control::{DrainRequest, Error, IdentifyReply, IdentifyRequest, Request, role_word};
use crate::protocol::service::ServiceError;
use crate::protocol::varlink::Reply;
use crate::spec::Role;

impl Daemon {
    /// Whether a caller may ask this.
    pub(super) fn allows(&self, by: Principal, request: &Request) -> bool {
        let own_uid = self.control.own_uid;
        match by.web {
            None => roles::allows(by, own_uid, request, &self.spec.roles),
            // Its connection is known by the lease that it holds.
            Some(_) if matches!(request, Request::EndLease(_)) => true,
            // A gateway that was just started asks on nobody's behalf whether it is drained.
            Some(_) if matches!(request, Request::Drain(DrainRequest { draining: None, .. })) => true,
            Some(_) if self.is_open(request) => true,
            Some(web) => {
                let grants: Vec<_> = self.web_grant(web, by.uid).into_iter().collect();
                let is_for = is_for_web(request) && (web != Web::Nobody || is_for_nobody(request));
                is_for && roles::allows(by, own_uid, request, &grants)
            }
        }
    }

    /// Whether this is for everybody who comes by HTTP, with a token or without: work of a pool that is open.
    fn is_open(&self, request: &Request) -> bool {
        let Request::Lease(lease) = request else { return false };
        let pool = self.pools.values().find(|pool| pool.spec.name == lease.pool);
        pool.and_then(|pool| pool.spec.serve).is_some_and(|serve| serve.open)
    }

    /// Whether somebody came by HTTP with a token that reaches everything: what is somebody's alone is not hidden from them.
    pub(super) fn is_web_admin(&self, by: Principal) -> bool {
        let grant = by.web.and_then(|web| self.web_grant(web, by.uid));
        grant.is_some_and(|grant| grant.role == Role::Admin && grant.pool.is_none())
    }

    /// From now on a connection of the gateway's is on somebody's behalf.
    pub(super) fn identify(&self, client: &mut Client, request: &IdentifyRequest) -> Outcome {
        if client.peer.web.is_none() {
            let reason = "only the gateway speaks for others: a caller is known by their user".to_owned();
            return Error::Refused { reason }.into();
        }
        let web = match &request.token {
            None => Web::Nobody,
            Some(token) => match self.find_token(token) {
                Some(number) => Web::Token(number),
                None => return Outcome::Reply(ServiceError::PermissionDenied {}.to_reply()),
            },
        };
        let Some(grant) = self.web_grant(web, WEB_UID) else {
            return Outcome::Reply(ServiceError::PermissionDenied {}.to_reply());
        };
        client.peer = Principal::of_web(web);
        Outcome::Reply(Reply::last(&IdentifyReply {
            name: match web {
                Web::Nobody => None,
                Web::Token(number) => self.token_name(number),
            },
            role: role_word(grant.role).to_owned(),
            pool: grant.pool.as_ref().map(ToString::to_string),
            started: Some(clock::rfc3339(self.started_wall)),
        }))
    }
}

/// Whether this is status, which is told without a token: every worker of this host can ask for it. What workers have
/// written, what they are run with and what was asked of them is not.
fn is_for_nobody(request: &Request) -> bool {
    if let Request::Events(events) = request {
        return events.telemetry != Some(true);
    }
    matches!(
        request,
        Request::GetInfo(_)
            | Request::GetInterfaceDescription(_)
            | Request::Ping(_)
            | Request::Status(_)
            | Request::List(_)
            | Request::WaitPool(_)
            | Request::PoolStats(_)
            | Request::Sessions(_)
            | Request::Stats(_)
            // Without what workers wrote last.
            | Request::Certificates(_)
            // Without prompts.
            | Request::ListTasks(_)
            | Request::TaskStatus(_)
    )
}

/// Whether this can come by HTTP at all, with whatever token: a gateway that was taken over can do no more than this with
/// the tokens that it sees. What reaches into a worker, the host's files or the daemon itself is for its users.
fn is_for_web(request: &Request) -> bool {
    match request {
        Request::GetInfo(_)
        | Request::GetInterfaceDescription(_)
        | Request::Ping(_)
        | Request::Status(_)
        | Request::List(_)
        | Request::WaitPool(_)
        | Request::Inspect(_)
        | Request::Start(_)
        | Request::Stop(_)
        | Request::Restart(_)
        | Request::Kill(_)
        | Request::Reset(_)
        | Request::Scale(_)
        | Request::Warm(_)
        | Request::Pause(_)
        | Request::Release(_)
        | Request::Execute(_)
        | Request::SendChunk(_)
        | Request::Lease(_)
        | Request::EndLease(_)
        | Request::OpenSession(_)
        | Request::CloseSession(_)
        | Request::ListSessions(_)
        | Request::RequestStatus(_)
        | Request::PoolStats(_)
        | Request::ResetBreakers(_)
        | Request::Logs(_)
        | Request::Sessions(_)
        | Request::Events(_)
        | Request::Stats(_)
        | Request::Certificates(_)
        | Request::RunTask(_)
        | Request::ListTasks(_)
        | Request::InspectTask(_)
        | Request::CancelTask(_)
        | Request::Drain(_)
        | Request::FollowTask(_)
        | Request::TaskStatus(_)
        | Request::SwitchExecutor(_)
        | Request::Identify(_) => true,
        Request::Claim(_)
        | Request::Tune(_)
        | Request::ServeTools(_)
        | Request::ReplyTool(_)
        | Request::Attach(_)
        | Request::Watch(_)
        | Request::Send(_)
        | Request::Exec(_)
        | Request::Reload(_)
        | Request::Upgrade(_)
        | Request::Shutdown(_)
        | Request::SetLog(_)
        | Request::Doctor(_)
        | Request::GetConfig(_)
        | Request::ListVolumes(_)
        | Request::CreateVolume(_)
        | Request::RepairVolume(_)
        | Request::HoldVolumes(_)
        | Request::RemoveVolume(_)
        | Request::ImageImport(_)
        | Request::ImageList(_)
        | Request::ImageInspect(_)
        | Request::ImageRemove(_)
        | Request::CreateToken(_)
        | Request::ListTokens(_)
        | Request::RevokeToken(_) => false,
    }
}
