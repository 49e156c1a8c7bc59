//! How a call can fail, as its caller sees it.

use serde::{Deserialize, Serialize};

use super::super::service::{ServiceError, error_of, error_reply};
use super::super::varlink::Reply;
use super::RequestFailure;

/// An error of `io.halsup.Control`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub enum Error {
    /// There is no such pool, worker or file.
    #[error("{what} does not exist")]
    #[serde(rename = "io.halsup.Control.NotFound")]
    NotFound {
        /// With its kind: `worker web.9`, `pool web`.
        what: String,
    },
    /// The daemon does not do that.
    #[error("refused: {reason}")]
    #[serde(rename = "io.halsup.Control.Refused")]
    Refused {
        /// Why, as half a sentence.
        reason: String,
    },
    /// There is one of that name already.
    #[error("{what} exists already")]
    #[serde(rename = "io.halsup.Control.Exists")]
    Exists {
        /// With its kind: `task 7`.
        what: String,
    },
    /// The queue is full or the deadline passed.
    #[error("saturated: the queue is full or the deadline passed")]
    #[serde(rename = "io.halsup.Control.Saturated")]
    Saturated {},
    /// The daemon is ending and takes no more orders.
    #[error("the daemon is shutting down")]
    #[serde(rename = "io.halsup.Control.ShuttingDown")]
    ShuttingDown {},
    /// An operation did not work.
    #[error("{operation} {object}: {cause}")]
    #[serde(rename = "io.halsup.Control.Failed")]
    Failed {
        /// What was done: `start`.
        operation: String,
        /// To what: `web.3`.
        object: String,
        /// The whole chain of causes, down to the kernel's word.
        cause: String,
    },
    /// A request has no result.
    #[error("{}: {}", .0.reason, .0.message)]
    #[serde(rename = "io.halsup.Control.RequestFailed")]
    RequestFailed(Box<RequestFailure>),
}

impl Error {
    /// The reply that says so.
    #[must_use]
    pub fn to_reply(&self) -> Reply {
        error_reply(self)
    }
}

/// Any failure that a reply can carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The daemon's answer to a good call.
    #[error(transparent)]
    Control(Error),
    /// The call itself was not right.
    #[error(transparent)]
    Service(ServiceError),
    /// An error that this version does not know.
    #[error("the daemon answered with the unknown error {name:?}")]
    Unknown {
        /// Its name.
        name: String,
    },
}

impl Failure {
    /// Reads the failure out of a reply; `None` where the reply is no error.
    #[must_use]
    pub fn from_reply(reply: &Reply) -> Option<Self> {
        let name = reply.error.as_ref()?;
        Some(if let Some(error) = error_of(reply) {
            Self::Control(error)
        } else if let Some(error) = ServiceError::from_reply(reply) {
            Self::Service(error)
        } else {
            Self::Unknown { name: name.clone() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_survives_the_way_there_and_back() {
        for error in [
            Error::NotFound { what: "worker web.9".into() },
            Error::Refused { reason: "no".into() },
            Error::Exists { what: "task 7".into() },
            Error::Saturated {},
            Error::ShuttingDown {},
            Error::Failed { operation: "start".into(), object: "web.3".into(), cause: "exec: ENOENT".into() },
        ] {
            assert_eq!(Failure::from_reply(&error.to_reply()), Some(Failure::Control(error)));
        }
        let denied = ServiceError::PermissionDenied {};
        assert_eq!(Failure::from_reply(&denied.to_reply()), Some(Failure::Service(denied)));
        let strange = Reply { error: Some("a.B".into()), ..Reply::default() };
        assert_eq!(Failure::from_reply(&strange), Some(Failure::Unknown { name: "a.B".into() }));
        assert_eq!(Failure::from_reply(&Reply::default()), None);
    }
}
