//! `org.varlink.service`: the interface that every Varlink service has, for a client that asks what is spoken here.
//!
//! Its errors are also those of the protocol itself: unknown method, wrong parameter, no permission.

use serde::{Deserialize, Serialize};

use super::varlink::Reply;

/// The interface's name.
pub const INTERFACE: &str = "org.varlink.service";

/// The interface's description, as `GetInterfaceDescription` gives it.
pub const DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

/// The answer of `GetInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Who made it.
    pub vendor: String,
    /// What it is.
    pub product: String,
    /// Which one.
    pub version: String,
    /// Where more is told; empty until the package has a public home.
    pub url: String,
    /// The interfaces that are spoken.
    pub interfaces: Vec<String>,
}

impl Info {
    /// What this program says of itself.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self {
            vendor: "halsup".into(),
            product: "halsup".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            url: env!("CARGO_PKG_REPOSITORY").into(),
            interfaces: vec![INTERFACE.into(), super::control::INTERFACE.into()],
        }
    }
}

/// The answer of `GetInterfaceDescription`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceDescription {
    /// The text.
    pub description: String,
}

/// The description of `interface`, if it is one of ours.
#[must_use]
pub fn description_of(interface: &str) -> Option<InterfaceDescription> {
    let text = match interface {
        INTERFACE => DESCRIPTION,
        super::control::INTERFACE => super::control::DESCRIPTION,
        _ => return None,
    };
    Some(InterfaceDescription { description: text.into() })
}

/// What is wrong with a call, before any method of ours sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub enum ServiceError {
    /// No such interface here.
    #[error("interface {interface:?} is not known")]
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    InterfaceNotFound {
        /// What was asked for.
        interface: String,
    },
    /// The interface has no such method.
    #[error("method {method:?} is not known")]
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    MethodNotFound {
        /// What was asked for.
        method: String,
    },
    /// The interface has the method, this service does not do it.
    #[error("method {method:?} is not implemented")]
    #[serde(rename = "org.varlink.service.MethodNotImplemented")]
    MethodNotImplemented {
        /// What was asked for.
        method: String,
    },
    /// A parameter is missing, unknown, of the wrong type or out of range.
    #[error("parameter {parameter:?} is not valid")]
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    InvalidParameter {
        /// Its name.
        parameter: String,
    },
    /// The caller may not do this.
    #[error("permission denied")]
    #[serde(rename = "org.varlink.service.PermissionDenied")]
    PermissionDenied {},
    /// The method gives many replies, and the caller did not say `more`.
    #[error("the method has to be called with `more`")]
    #[serde(rename = "org.varlink.service.ExpectedMore")]
    ExpectedMore {},
}

impl ServiceError {
    /// The reply that says so.
    #[must_use]
    pub fn to_reply(&self) -> Reply {
        error_reply(self)
    }

    /// Reads the error out of a reply, if it is one of these.
    #[must_use]
    pub fn from_reply(reply: &Reply) -> Option<Self> {
        error_of(reply)
    }
}

/// A reply of an error type whose serialised form is `{error, parameters}`.
pub(super) fn error_reply<E: Serialize>(error: &E) -> Reply {
    serde_json::to_value(error).ok().and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default()
}

/// The reverse of [`error_reply`].
pub(super) fn error_of<E: for<'de> Deserialize<'de>>(reply: &Reply) -> Option<E> {
    let name = reply.error.as_deref()?;
    serde_json::from_value(serde_json::json!({"error": name, "parameters": reply.parameters})).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_way_there_and_back() {
        for error in [
            ServiceError::InterfaceNotFound { interface: "a.b".into() },
            ServiceError::MethodNotFound { method: "a.b.C".into() },
            ServiceError::MethodNotImplemented { method: "a.b.C".into() },
            ServiceError::InvalidParameter { parameter: "x".into() },
            ServiceError::PermissionDenied {},
            ServiceError::ExpectedMore {},
        ] {
            let reply = error.to_reply();
            let name = reply.error.clone().unwrap();
            let method = name.strip_prefix("org.varlink.service.").unwrap();
            assert!(DESCRIPTION.contains(&format!("error {method} (")), "{name}");
            assert_eq!(ServiceError::from_reply(&reply), Some(error));
        }
        assert_eq!(ServiceError::from_reply(&Reply::default()), None);
    }

    #[test]
    fn both_interfaces_are_described() {
        for interface in Info::of_this_program().interfaces {
            let text = description_of(&interface).unwrap().description;
            assert!(text.lines().any(|line| line == format!("interface {interface}")), "{interface}");
        }
        assert_eq!(description_of("a.b"), None);
    }
}
