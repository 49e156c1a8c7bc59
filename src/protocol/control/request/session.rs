//! What is asked of the terminals of workers.

use serde::{Deserialize, Serialize};

use super::super::Target;

/// Parameters of `Attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// One worker.
    pub target: Target,
    /// Whether to type even if somebody else does, who then only sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steal: Option<bool>,
    /// Whether what was written before is told first; `None` is yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<bool>,
}

/// Parameters of `Watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// One worker.
    pub target: Target,
    /// Whether what was written before is told first; `None` is yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<bool>,
}

/// The longest `Send.text`, in bytes: what a terminal's input holds.
pub const SEND_BYTES_MAX: usize = 64 * 1024;

/// Parameters of `Send`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendRequest {
    /// Whose terminals.
    pub target: Target,
    /// What is typed, control characters included; 1..=[`SEND_BYTES_MAX`] bytes.
    pub text: String,
}
