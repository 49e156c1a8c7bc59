//! Sessions by name: which worker it is, and the name that a directory's session has.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::error::Error;
use crate::protocol::control::{ListReply, ListRequest, Request, Target, WorkerInfo};

/// Every claimed worker.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(super) fn all(client: &mut Client) -> Result<Vec<WorkerInfo>, Error> {
    let mut found = Vec::new();
    client.call_more(&Request::List(ListRequest::default()), |reply: ListReply| {
        found.extend(reply.workers.into_iter().filter(|worker| worker.session.is_some()));
        Ok(())
    })?;
    Ok(found)
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
