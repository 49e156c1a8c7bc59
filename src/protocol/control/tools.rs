//! Tools of a caller's that the workers of a pool may call back for: `ServeTools` and `ReplyTool`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::execute::is_request_name;
use super::request::pool_name;
use crate::protocol::channel::{MESSAGE_BYTES_MAX, REASON_BYTES_MAX};
use crate::spec::PoolName;

/// The most tools that one connection serves.
pub const TOOLS_MAX: usize = 256;

/// The digits of a call's number.
const CALL_DIGITS: usize = 32;

/// Parameters of `ServeTools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeToolsRequest {
    /// Whose workers may call them.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// Their names, 1 to [`TOOLS_MAX`], each once, each of 1 to [`super::REQUEST_NAME_BYTES_MAX`] bytes.
    pub tools: Vec<String>,
}

impl ServeToolsRequest {
    /// Whether the names can be served.
    pub(super) fn is_sound(&self) -> bool {
        let different: BTreeSet<&str> = self.tools.iter().map(String::as_str).collect();
        (1..=TOOLS_MAX).contains(&self.tools.len())
            && different.len() == self.tools.len()
            && self.tools.iter().all(|name| is_request_name(name))
    }
}

/// An answer of `ServeTools`: first that they are served, then each call of a worker's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeToolsReply {
    /// The call's number, 32 hexadecimal digits, which `ReplyTool` says again; without it no tool is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// Which tool is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// With what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Value>,
    /// The number of the request that it is called for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The session that the request belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What ties the request to its caller's own records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// For how long a reply is waited for, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Parameters of `ReplyTool`: a result or an error, not both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyToolRequest {
    /// Whose worker has called.
    #[serde(with = "pool_name")]
    pub pool: PoolName,
    /// The call's number.
    pub call: String,
    /// What came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ToolRefusal>,
}

/// Why a call of a worker's has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolRefusal {
    /// In one word, for programs; up to [`REASON_BYTES_MAX`] bytes.
    pub reason: String,
    /// In a sentence, for people; up to [`MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
}

impl ReplyToolRequest {
    /// The first parameter that is out of its range, by name.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if self.call.len() != CALL_DIGITS || !self.call.bytes().all(is_digit) {
            return Some("call");
        }
        let fits =
            |error: &ToolRefusal| error.reason.len() <= REASON_BYTES_MAX && error.message.len() <= MESSAGE_BYTES_MAX;
        (!self.error.as_ref().is_none_or(fits)).then_some("error")
    }
}
