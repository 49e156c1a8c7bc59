//! What is asked of the terminals of workers.

use serde::{Deserialize, Serialize};

use super::super::super::attach::CELLS_MAX;
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

/// How many arguments, and variables, `Exec` takes.
const WORDS_MAX: usize = 1024;

/// Parameters of `Exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// One worker.
    pub target: Target,
    /// Program and arguments, 1 to 1,024.
    pub command: Vec<String>,
    /// Variables as `NAME=value`, beside those that the worker has or instead of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Whether it gets a terminal of its own, instead of three pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<bool>,
    /// Width of that, in cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// Height of that, in cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
}

impl ExecRequest {
    /// The parameter that is out of range, if one is.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let is_text = |word: &String| !word.contains('\0');
        let is_program = self.command.first().is_some_and(|program| !program.is_empty());
        if !is_program || self.command.len() > WORDS_MAX || !self.command.iter().all(is_text) {
            return Some("command");
        }
        let is_variable =
            |variable: &String| is_text(variable) && variable.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        if self.env.as_ref().is_some_and(|env| env.len() > WORDS_MAX || !env.iter().all(is_variable)) {
            return Some("env");
        }
        let fits = |count: Option<u16>| count.is_none_or(|count| (1..=CELLS_MAX).contains(&count));
        match (fits(self.columns), fits(self.rows)) {
            (true, true) => None,
            (false, _) => Some("columns"),
            (true, false) => Some("rows"),
        }
    }
}
