//! Sessions by name: which worker it is, and the name that a directory's session has.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::error::Error;
use crate::protocol::control::{
    CallFailure, ListReply, ListRequest, Request, SessionInfo, SessionsReply, Target, TargetError, WorkerInfo,
    is_session_name,
};
use crate::protocol::service::ServiceError;
use crate::spec::PoolName;

/// Every claimed worker.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(super) fn all(client: &mut Client) -> Result<Vec<WorkerInfo>, Error> {
    let mut found = workers(client)?;
    found.retain(|worker| worker.session.is_some());
    Ok(found)
}

/// Every worker; none for a caller who may look at one pool alone, who names its workers.
fn workers(client: &mut Client) -> Result<Vec<WorkerInfo>, Error> {
    let mut found = Vec::new();
    let listed = client.call_more(&Request::List(ListRequest::default()), |reply: ListReply| {
        found.extend(reply.workers);
        Ok(())
    });
    match listed {
        Err(Error::Refused(CallFailure::Service(ServiceError::PermissionDenied {}))) => Ok(Vec::new()),
        listed => listed.map(|()| found),
    }
}

/// The session of that name, or of the worker of that name.
///
/// # Errors
/// [`Error::SessionNotFound`].
pub(super) fn find(client: &mut Client, name: &str) -> Result<WorkerInfo, Error> {
    let is_meant = |worker: &WorkerInfo| {
        worker.name == name || worker.session.as_ref().is_some_and(|session| session.name == name)
    };
    all(client)?.into_iter().find(is_meant).ok_or_else(|| Error::SessionNotFound { name: name.to_owned() })
}

/// Those that have ended and are kept. None for a caller who may look at one pool alone.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(super) fn kept(client: &mut Client) -> Result<Vec<SessionInfo>, Error> {
    match client.call::<SessionsReply>(&Request::Sessions(ListRequest { pool: None })) {
        Err(Error::Refused(CallFailure::Service(ServiceError::PermissionDenied {}))) => Ok(Vec::new()),
        listed => listed.map(|reply| reply.sessions.into_iter().filter(|one| one.ended.is_some()).collect()),
    }
}

/// The one of this name that has ended and is kept, and its pool.
///
/// # Errors
/// As [`kept`].
pub(super) fn find_kept(client: &mut Client, name: &str) -> Result<Option<(SessionInfo, Target)>, Error> {
    if !is_session_name(name) {
        return Ok(None);
    }
    let found = kept(client)?.into_iter().find(|one| one.name == name);
    Ok(found.and_then(|one| PoolName::parse(&one.pool).ok().map(|pool| (one, Target::Pool(pool)))))
}

/// A worker as orders name it.
///
/// # Errors
/// For a name that no daemon gives.
pub(super) fn target_of(worker: &WorkerInfo) -> Result<Target, Error> {
    worker
        .name
        .parse()
        .map_err(|error: crate::protocol::control::TargetError| Error::Usage { reason: error.to_string() })
}

/// What an order is about, as it was said: `all`, a pool, a worker, or a session by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named(String);

impl FromStr for Named {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.parse::<Target>() {
            Err(error) if !is_session_name(text) => Err(error),
            Ok(_) | Err(_) => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Named {
    /// What it is about. A session's name goes before a pool's, unless there is such a pool.
    ///
    /// # Errors
    /// No such session (exit 5); both a session and a pool (2).
    pub(super) fn meant(&self, client: &mut Client) -> Result<Target, Error> {
        let target = self.0.parse().ok();
        if matches!(target, Some(Target::All | Target::Worker(..))) {
            return Ok(target.unwrap_or(Target::All));
        }
        let known = workers(client)?;
        let is_pool = known.iter().any(|worker| worker.pool == self.0);
        let named = |worker: &WorkerInfo| worker.session.as_ref().is_some_and(|session| session.name == self.0);
        let claimed = known.into_iter().find(named);
        match (claimed, target) {
            (Some(worker), _) if is_pool => {
                let reason = format!("{} is a pool and a session: the session's worker is {}", self.0, worker.name);
                Err(Error::Usage { reason })
            }
            (Some(worker), _) => target_of(&worker),
            (None, Some(target)) => Ok(target),
            (None, None) => Err(Error::SessionNotFound { name: self.0.clone() }),
        }
    }
}

/// The name of a directory's session, always the same: `hal-9000-<its name>-<beginning of its path's digest>`.
pub(super) fn name_of(path: &Path) -> String {
    const NAME_CHARS_MAX: usize = 40;
    let base = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let base: String = base.chars().map(plain).take(NAME_CHARS_MAX).collect();
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let digest: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("hal-9000-{}-{digest}", base.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_always_has_the_same_name() {
        assert_eq!(name_of(Path::new("/home/x/My Project")), name_of(Path::new("/home/x/My Project")));
        assert!(name_of(Path::new("/home/x/My Project")).starts_with("hal-9000-my-project-"));
        assert_ne!(name_of(Path::new("/home/x/web")), name_of(Path::new("/home/y/web")));
        // The digest is that of `printf /home/x/web | sha256sum`.
        assert_eq!(name_of(Path::new("/home/x/web")), "hal-9000-web-0ca57046");
        assert!(crate::protocol::control::is_session_name(&name_of(Path::new("/"))));
    }
}
