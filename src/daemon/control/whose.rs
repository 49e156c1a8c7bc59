//! What is somebody's alone: what a session's program wrote, and what it is. Its owner, root and the daemon's own user are
//! told it; everybody else that may look at its pool is told the rest.

use super::super::state::Daemon;
use super::roles::NOBODY_UID;
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
    pub(in crate::daemon) fn may_touch(&self, worker: WorkerId, uid: u32) -> bool {
        self.sees(uid, self.sessions.of(worker).map(|session| session.owner))
    }

    /// Whether a request would look into a session of somebody else's, or do something to it.
    pub(super) fn is_foreign(&self, uid: u32, request: &Request) -> bool {
        if let Request::ReplyTool(reply) = request {
            return self.server_of(&reply.call).is_some_and(|owner| !self.sees(uid, Some(owner)));
        }
        if let Request::Logs(LogsRequest { session: Some(name), .. })
        | Request::Release(ReleaseRequest { session: Some(name), .. }) = request
        {
            return self.kept.get(name).is_some_and(|kept| !self.sees(uid, Some(kept.session.owner)));
        }
        if let Request::InspectTask(InspectTaskRequest { task, .. })
        | Request::CancelTask(TaskRequest { task })
        | Request::FollowTask(FollowTaskRequest { task, .. }) = request
        {
            return self.tasks.owner(task).is_some_and(|owner| !self.sees(uid, Some(owner)));
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
            !self.may_touch(worker, uid)
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
    pub(super) fn certificate_for(&self, uid: u32, certificate: &DeathCertificate) -> DeathCertificate {
        let mut told = certificate.clone();
        if uid == NOBODY_UID || !self.sees(uid, certificate.owner) {
            told.last_output.clear();
        }
        told
    }

    /// A worker as this user is told it.
    pub(super) fn worker_for(&self, uid: u32, mut told: WorkerInfo) -> WorkerInfo {
        if let Some(session) = told.session.as_mut().filter(|session| !self.sees(uid, Some(session.owner))) {
            session.command.clear();
            session.labels.clear();
            told.status_text = None;
        }
        told
    }
}
