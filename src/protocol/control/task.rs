//! What is asked and told about tasks: a prompt, typed into a program under a terminal, and what comes of it.
//!
//! A task's story is one stream that any number of callers may follow, from any place in it: every event but output counts
//! one, and every byte of output counts one. [`TaskEvent::sequence`] is the place behind an event, and whoever says it again
//! as [`FollowTaskRequest::after`] is told what came behind it, by whatever daemon.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::certificate::Cause;

/// The longest prompt, in bytes: less than waits for a terminal that nobody reads.
pub const TASK_PROMPT_BYTES_MAX: usize = 32 * 1024;
/// The longest metadata, written as JSON, in bytes.
pub const TASK_METADATA_BYTES_MAX: usize = 16 * 1024;
/// The longest name of a task: its session, whose name is longer by `task-`, is a name of a session.
pub const TASK_NAME_BYTES_MAX: usize = 59;
/// The longest `worker_id`, in bytes.
pub const TASK_WORKER_ID_BYTES_MAX: usize = 256;
/// The longest `timeout_ms`: a day.
pub const TASK_TIMEOUT_MS_MAX: u64 = 86_400_000;
/// `InspectTask.output_bytes` where the caller does not say.
pub const TASK_OUTPUT_BYTES_DEFAULT: u64 = 64 * 1024;
/// The most that `InspectTask.output_bytes` may ask for.
pub const TASK_OUTPUT_BYTES_MAX: u64 = 1024 * 1024;
/// With `more`, one reply of `ListTasks` carries at most this many tasks.
pub const PIECE_TASKS_MAX: usize = 256;
/// How much of a prompt a list has, in characters.
pub const TASK_PROMPT_CHARS_LISTED: usize = 80;
/// `priority` where the caller does not say.
pub const TASK_PRIORITY_DEFAULT: u8 = 5;

/// Whether a task can be called so: 1 to [`TASK_NAME_BYTES_MAX`] of `a-z`, `A-Z`, `0-9`, `_` and `-`, not `-` first.
#[must_use]
pub fn is_task_name(name: &str) -> bool {
    name.len() <= TASK_NAME_BYTES_MAX && super::is_session_name(name)
}

/// Parameters of `RunTask`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTaskRequest {
    /// What is typed, control characters included; 1..=[`TASK_PROMPT_BYTES_MAX`] bytes.
    pub prompt: String,
    /// What it is to be called: see [`is_task_name`]; `None` has a name made up that no other has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Passed on to the program; up to [`TASK_WORKER_ID_BYTES_MAX`] bytes, without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Passed on to the program, 1..=10; it changes nothing about who comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Passed on to the program; up to [`TASK_METADATA_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// How long it may run, 1..=[`TASK_TIMEOUT_MS_MAX`]; `None` is as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl RunTaskRequest {
    /// The first parameter that is out of its range, by name.
    pub(super) fn out_of_range(&self) -> Option<&'static str> {
        let is_text = |text: &String| text.len() <= TASK_WORKER_ID_BYTES_MAX && !text.chars().any(char::is_control);
        let is_short = |metadata: &Map<String, Value>| json_bytes(metadata) <= TASK_METADATA_BYTES_MAX;
        if !(1..=TASK_PROMPT_BYTES_MAX).contains(&self.prompt.len()) {
            Some("prompt")
        } else if !self.task.as_deref().is_none_or(is_task_name) {
            Some("task")
        } else if !self.worker_id.as_ref().is_none_or(is_text) {
            Some("worker_id")
        } else if !self.priority.is_none_or(|priority| (1..=10).contains(&priority)) {
            Some("priority")
        } else if !self.metadata.as_ref().is_none_or(is_short) {
            Some("metadata")
        } else if !self.timeout_ms.is_none_or(|timeout| (1..=TASK_TIMEOUT_MS_MAX).contains(&timeout)) {
            Some("timeout_ms")
        } else {
            None
        }
    }
}

fn json_bytes(metadata: &Map<String, Value>) -> usize {
    serde_json::to_string(metadata).map_or(usize::MAX, |text| text.len())
}

/// The answer of `RunTask`: it was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTaskReply {
    /// What it is called.
    pub task: String,
    /// That it waits, if only for a moment.
    pub state: TaskState,
    /// How long it is thought to take.
    pub estimated_duration_ms: u64,
    /// How many wait before it.
    pub queued: u32,
}

/// How far a task is, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It waits.
    Pending,
    /// It runs, or is being started or ended.
    Running,
    /// Its program has ended, and all was well.
    Completed,
    /// Its program has not, or has taken too long, or could not be started.
    Failed,
    /// Somebody has ended it.
    Cancelled,
}

impl TaskState {
    /// Whether nothing more will come of it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// What it is called.
    pub task: String,
    /// How far it is, or what became of it.
    pub state: TaskState,
    /// Whose it is.
    pub owner: u32,
    /// What runs it, or ran it: `pty` or `stub`; `None` while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// As it was said.
    pub priority: u8,
    /// As it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Its prompt: in a list the beginning of it; empty for whoever may not see it. Not escaped for a terminal.
    pub prompt: String,
    /// When it was accepted; RFC 3339.
    pub submitted: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<String>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Its session, which has its terminal while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The worker that has it, or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How its program ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Cause>,
    /// Why it is not completed, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How far it is thought to be, in percent.
    pub progress: u8,
    /// How long it may run.
    pub timeout_ms: u64,
    /// How long it was thought to take.
    pub estimated_duration_ms: u64,
    /// How much it has written, in bytes.
    pub output_bytes: u64,
    /// The place behind its last event.
    pub sequence: u64,
}

/// The answer of `ListTasks`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTasksReply {
    /// In the order in which they were accepted.
    pub tasks: Vec<TaskInfo>,
}

/// Parameters of `CancelTask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// Which.
    pub task: String,
}

/// Parameters of `InspectTask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectTaskRequest {
    /// Which.
    pub task: String,
    /// How much of its output is told, 0..=[`TASK_OUTPUT_BYTES_MAX`]: the last of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

impl InspectTaskRequest {
    /// `output_bytes`, or what it is where the caller does not say.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes.unwrap_or(TASK_OUTPUT_BYTES_DEFAULT)
    }
}

/// The answer of `InspectTask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectTaskReply {
    /// The task, with its whole prompt.
    pub task: TaskInfo,
    /// As it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// The last of its output, as it was written, but for what is no UTF-8; not escaped for a terminal.
    pub output: String,
    /// How many bytes of output come before that.
    pub skipped_bytes: u64,
}

/// The answer of `CancelTask`: nothing of it runs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelTaskReply {
    /// What became of it.
    pub state: TaskState,
    /// Whether it was over before somebody asked.
    pub was_over: bool,
}

/// Parameters of `FollowTask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowTaskRequest {
    /// Which.
    pub task: String,
    /// Behind which place: the `sequence` of the last event that is known; `None` is from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// What an event of a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskEventKind {
    /// It is in this state from now on.
    Status,
    /// It is thought to be so far.
    Progress,
    /// It has written this.
    Output,
    /// It is completed: the last event.
    Complete,
    /// It is failed or cancelled, and why: the last event.
    Error,
}

impl fmt::Display for TaskEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Status => "status",
            Self::Progress => "progress",
            Self::Output => "output",
            Self::Complete => "complete",
            Self::Error => "error",
        })
    }
}

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEvent {
    /// The place behind it.
    pub sequence: u64,
    /// What it is.
    pub kind: TaskEventKind,
    /// When; RFC 3339. `None` of output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The state from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// How far it is thought to be, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
    /// What was written, but for what is no UTF-8; or why it is not completed. Not escaped for a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// How its program ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Cause>,
}

/// One answer of `FollowTask`; the last one has the last event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowTaskReply {
    /// Oldest first.
    pub events: Vec<TaskEvent>,
    /// How many places before them are told to nobody any more: output that is not kept, mostly.
    pub missed: u64,
}

/// The answer of `TaskStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatusReply {
    /// The pool whose workers run tasks.
    pub pool: String,
    /// What runs those that begin: `pty` or `stub`.
    pub executor: String,
    /// Tasks that another executor still runs, from before a switch.
    pub draining: u32,
    /// The program.
    pub command: Vec<String>,
    /// Width of the terminal.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
    /// How long a task may run that does not say so itself.
    pub timeout_ms: u64,
    /// So many run at once at the most.
    pub max_concurrent: u32,
    /// So many wait at the most.
    pub queue_max: u32,
    /// How many run.
    pub running: u32,
    /// How many wait.
    pub queued: u32,
    /// How many that are over are still known.
    pub retained: u32,
    /// How many were completed, of all daemons of this instance since its state began.
    pub completed: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were cancelled.
    pub cancelled: u64,
    /// How many were refused because too many waited.
    pub refused: u64,
    /// When the last one was over; RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ended: Option<String>,
}

/// Parameters of `SwitchExecutor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchExecutorRequest {
    /// `pty`, `stub`, or `auto`, which is `pty`.
    pub executor: String,
}

impl SwitchExecutorRequest {
    /// Whether it is one.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self.executor.as_str(), "pty" | "stub" | "auto")
    }
}

/// The answer of `SwitchExecutor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchExecutorReply {
    /// What runs those that begin from now on.
    pub executor: String,
    /// What did before.
    pub previous: String,
    /// Tasks that another executor still runs, to their end.
    pub draining: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_task_is_named() {
        let good = RunTaskRequest { prompt: "x".into(), ..RunTaskRequest::default() };
        assert_eq!(good.out_of_range(), None);
        let evil = ["", "../x", "a/b", "a.b", "-x", "a\u{1b}[2J", "é", &"x".repeat(60)];
        for name in evil {
            let request = RunTaskRequest { task: Some(name.into()), ..good.clone() };
            assert_eq!(request.out_of_range(), Some("task"), "{name:?}");
        }
        let uuid = "01234567-89ab-4def-8123-456789abcdef";
        assert_eq!(RunTaskRequest { task: Some(uuid.into()), ..good.clone() }.out_of_range(), None);
        let metadata = |length: usize| {
            let value = Value::String("\u{1b}".repeat(length));
            Some([("k".to_owned(), value)].into_iter().collect())
        };
        for (request, expected) in [
            (RunTaskRequest { prompt: String::new(), ..good.clone() }, Some("prompt")),
            (RunTaskRequest { prompt: "x".repeat(TASK_PROMPT_BYTES_MAX + 1), ..good.clone() }, Some("prompt")),
            (RunTaskRequest { prompt: "\u{1b}[2J\0\r\n".into(), ..good.clone() }, None),
            (RunTaskRequest { worker_id: Some("a\n".into()), ..good.clone() }, Some("worker_id")),
            (RunTaskRequest { worker_id: Some("x".repeat(257)), ..good.clone() }, Some("worker_id")),
            (RunTaskRequest { priority: Some(0), ..good.clone() }, Some("priority")),
            (RunTaskRequest { priority: Some(11), ..good.clone() }, Some("priority")),
            (RunTaskRequest { metadata: metadata(2_000), ..good.clone() }, None),
            (RunTaskRequest { metadata: metadata(3_000), ..good.clone() }, Some("metadata")),
            (RunTaskRequest { timeout_ms: Some(0), ..good.clone() }, Some("timeout_ms")),
            (RunTaskRequest { timeout_ms: Some(TASK_TIMEOUT_MS_MAX + 1), ..good }, Some("timeout_ms")),
        ] {
            assert_eq!(request.out_of_range(), expected);
        }
    }
}
