//! What is somebody's alone: what a session's program wrote, and what it is. Its owner, root and the daemon's own user are
//! told it; everybody else that may look at its pool is told the rest.

use super::super::state::Daemon;
use super::super::tasks::task_of_session;
use super::roles::{NOBODY_UID, Principal, WEB_UID, Web};
use crate::protocol::control::{
    DeathCertificate, FollowTaskRequest, InspectTaskRequest, LogsRequest, Object, ReleaseRequest, Request, Target,
    TaskRequest, WorkerInfo,
};
use crate::spec::WorkerId;

impl Daemon {
    /// Whether nothing is hidden from a user.
    pub(in crate::daemon) const fn sees_all(&self, uid: u32) -> bool {
        uid == 0 || uid == self.control.own_uid
    }

    /// Whether a user sees what is `owner`'s alone.
    pub(in crate::daemon) fn sees(&self, uid: u32, owner: Option<u32>) -> bool {
        self.sees_all(uid) || owner.is_none_or(|owner| owner == uid)
    }

    /// Whether a caller may do something with a session: it is its own, or it may do everything.
    pub(in crate::daemon) fn may_touch(&self, worker: WorkerId, by: Principal) -> bool {
        let session = self.sessions.of(worker);
        self.sees_session(by, session.map(|session| session.owner), session.map(|session| session.name.as_str()))
    }

    /// Whether a caller sees what is `owner`'s alone and of this session. All who come by HTTP are one user: what they have
    /// there is a task, and that is the token's that asked for it.
    fn sees_session(&self, by: Principal, owner: Option<u32>, session: Option<&str>) -> bool {
        let of_own_task = || session.and_then(task_of_session).is_some_and(|task| self.sees_task(by, task));
        let is_of_web = by.web.is_some() && owner == Some(WEB_UID);
        self.sees(by.viewer(), owner) && (!is_of_web || self.is_web_admin(by) || of_own_task())
    }

    /// Whether a caller sees what is asked of a task and comes of it: whoever asked for it, by HTTP whoever shows a token of
    /// the same name; and who may do everything. None sees one that is not there.
    pub(in crate::daemon) fn sees_task(&self, by: Principal, task: &str) -> bool {
        let Some((owner, token)) = self.tasks.owner(task) else { return false };
        match by.web {
            None => self.sees(by.uid, Some(owner)),
            Some(Web::Nobody) => false,
            Some(Web::Token(number)) => {
                let is_own = || owner == WEB_UID && token.is_some() && self.token_name(number).as_deref() == token;
                self.is_web_admin(by) || is_own()
            }
        }
    }

    /// Whether a request would look into a session of somebody else's, or do something to it.
    pub(super) fn is_foreign(&self, by: Principal, request: &Request) -> bool {
        let uid = by.viewer();
        if let Request::ReplyTool(reply) = request {
            return self.server_of(&reply.call).is_some_and(|owner| !self.sees(uid, Some(owner)));
        }
        if let Request::Logs(LogsRequest { session: Some(name), .. })
        | Request::Release(ReleaseRequest { session: Some(name), .. }) = request
        {
            let is_foreign = |owner| !self.sees_session(by, Some(owner), Some(name.as_str()));
            return self.kept.get(name).is_some_and(|kept| is_foreign(kept.session.owner));
        }
        if let Request::InspectTask(InspectTaskRequest { task, .. })
        | Request::CancelTask(TaskRequest { task })
        | Request::FollowTask(FollowTaskRequest { task, .. }) = request
        {
            return self.tasks.owner(task).is_some() && !self.sees_task(by, task);
        }
        let Object::Workers(target) = request.object() else { return false };
        // Of several, it reaches those that it may.
        let is_sent_to_many = matches!(request, Request::Send(_)) && !matches!(target, Target::Worker(..));
        // What is somebody's alone is left out of the answer.
        let tells_the_rest = matches!(request, Request::Stats(_) | Request::Certificates(_));
        if is_sent_to_many || tells_the_rest {
            return false;
        }
        // A log goes on from session to session: where nobody has the worker, it is that of those who had it.
        let is_log = matches!(request, Request::Logs(_));
        let is_foreign = |worker: WorkerId| {
            !self.may_touch(worker, by)
                || is_log && self.sessions.of(worker).is_none() && self.keeps_of_others(worker, uid)
        };
        // One that does not exist is nobody's.
        self.resolve(target).is_ok_and(|target| self.views(target).any(|view| is_foreign(view.worker)))
    }

    /// Whether what a worker keeps may be of sessions that were somebody's.
    fn keeps_of_others(&self, worker: WorkerId, uid: u32) -> bool {
        let is_claimed = self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.policy.claims.is_some());
        is_claimed && !self.sees_all(uid)
    }

    /// A certificate as this user is told it.
    pub(super) fn certificate_for(&self, by: Principal, certificate: &DeathCertificate) -> DeathCertificate {
        let mut told = certificate.clone();
        let sees = self.sees_session(by, certificate.owner, certificate.session.as_deref());
        if by.viewer() == NOBODY_UID || !sees {
            told.last_output.clear();
        }
        told
    }

    /// A worker as this user is told it.
    pub(super) fn worker_for(&self, by: Principal, mut told: WorkerInfo) -> WorkerInfo {
        if let Some(session) =
            told.session.as_mut().filter(|one| !self.sees_session(by, Some(one.owner), Some(one.name.as_str())))
        {
            session.command.clear();
            session.labels.clear();
            told.status_text = None;
        }
        told
    }
}
