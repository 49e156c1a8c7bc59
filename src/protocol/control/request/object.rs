//! What each request is about: a pool, workers, all of them, the daemon, or the protocol alone. Roles and owners go by it.

use super::Request;
use crate::protocol::control::Target;
use crate::spec::PoolName;

/// What a request is about: who may ask it, and whose session it would touch, is decided by this alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object<'a> {
    /// The protocol, and nothing behind it.
    Protocol,
    /// The daemon itself, or what belongs to no pool.
    Daemon,
    /// Every pool.
    EveryPool,
    /// One pool as a whole.
    Pool(&'a PoolName),
    /// What a target names: one worker, those of a pool, all.
    Workers(&'a Target),
}

impl<'a> Object<'a> {
    /// The one pool that nothing of it is outside of.
    #[must_use]
    pub const fn pool(&self) -> Option<&'a PoolName> {
        match self {
            Self::Pool(pool) => Some(pool),
            Self::Workers(target) => target.pool(),
            Self::Protocol | Self::Daemon | Self::EveryPool => None,
        }
    }
}

impl Request {
    /// What it is about.
    #[must_use]
    pub fn object(&self) -> Object<'_> {
        match self {
            Self::Inspect(request)
            | Self::Start(request)
            | Self::Stop(request)
            | Self::Restart(request)
            | Self::Reset(request) => Object::Workers(&request.target),
            Self::Release(request) => Object::Workers(&request.target),
            Self::Execute(request) => Object::Pool(&request.pool),
            Self::Lease(request) => Object::Pool(&request.pool),
            Self::OpenSession(request) => Object::Pool(&request.pool),
            Self::CloseSession(request) => Object::Pool(&request.pool),
            Self::PoolStats(request) => request.pool.as_ref().map_or(Object::EveryPool, Object::Pool),
            Self::ServeTools(request) => Object::Pool(&request.pool),
            Self::ReplyTool(request) => Object::Pool(&request.pool),
            Self::ResetBreakers(request) => Object::Workers(&request.target),
            Self::Kill(request) => Object::Workers(&request.target),
            Self::Attach(request) => Object::Workers(&request.target),
            Self::Watch(request) => Object::Workers(&request.target),
            Self::Exec(request) => Object::Workers(&request.target),
            Self::Send(request) => Object::Workers(&request.target),
            Self::Logs(request) => Object::Workers(&request.worker),
            Self::Stats(request) => request.target.as_ref().map_or(Object::EveryPool, Object::Workers),
            Self::Certificates(request) => request.target.as_ref().map_or(Object::EveryPool, Object::Workers),
            Self::Scale(request) => Object::Pool(&request.pool),
            Self::Claim(request) => Object::Pool(&request.pool),
            Self::Warm(request) => Object::Pool(&request.pool),
            Self::Tune(request) => Object::Pool(&request.pool),
            Self::Pause(request) => Object::Pool(&request.pool),
            Self::WaitPool(request) => request.pool.as_ref().map_or(Object::EveryPool, Object::Pool),
            Self::RequestStatus(request) => request.pool.as_ref().map_or(Object::EveryPool, Object::Pool),
            Self::List(request) | Self::Sessions(request) | Self::ListSessions(request) => {
                request.pool.as_ref().map_or(Object::EveryPool, Object::Pool)
            }
            Self::Events(request) => request.pool.as_ref().map_or(Object::EveryPool, Object::Pool),
            // It can be about nothing but the request that its connection was allowed to make.
            Self::GetInfo(_)
            | Self::GetInterfaceDescription(_)
            | Self::Ping(_)
            | Self::Identify(_)
            | Self::SendChunk(_)
            | Self::EndLease(_) => Object::Protocol,
            Self::Status(_)
            | Self::Reload(_)
            | Self::Upgrade(_)
            | Self::Shutdown(_)
            | Self::SetLog(_)
            | Self::Drain(_)
            | Self::CreateToken(_)
            | Self::ListTokens(_)
            | Self::RevokeToken(_)
            | Self::Doctor(_)
            | Self::GetConfig(_)
            | Self::ListVolumes(_)
            | Self::CreateVolume(_)
            | Self::RepairVolume(_)
            | Self::HoldVolumes(_)
            | Self::RemoveVolume(_)
            | Self::ImageImport(_)
            | Self::ImageList(_)
            | Self::ImageInspect(_)
            | Self::ImageRemove(_)
            | Self::RunTask(_)
            | Self::ListTasks(_)
            | Self::InspectTask(_)
            | Self::CancelTask(_)
            | Self::FollowTask(_)
            | Self::TaskStatus(_)
            | Self::SwitchExecutor(_) => Object::Daemon,
        }
    }

    /// The workers that it is about, if it is about those of one target.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        match self.object() {
            Object::Workers(target) => Some(target.clone()),
            Object::Pool(pool) => Some(Target::Pool(pool.clone())),
            Object::Protocol | Object::Daemon | Object::EveryPool => None,
        }
    }
}
