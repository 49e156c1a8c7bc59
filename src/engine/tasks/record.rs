//! What of a task outlives the daemon, and what becomes of one that an earlier daemon had.

use serde::{Deserialize, Serialize};

use super::{Task, TaskDemand, TaskEffect, TaskEnd, TaskId};
use crate::engine::Time;
use crate::engine::machine::Engine;
use crate::spec::TaskExecutor;

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskStage {
    /// It waits.
    Pending,
    /// It runs, or is being started or ended.
    Begun {
        /// What runs it.
        #[serde(with = "executor_name")]
        executor: TaskExecutor,
        /// Since when.
        at: Time,
        /// What will have become of it, if it was asked to end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ending: Option<TaskEnd>,
    },
    /// It is over.
    Over {
        /// What became of it.
        end: TaskEnd,
    },
}

mod executor_name {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::TaskExecutor;

    pub(super) fn serialize<S: Serializer>(executor: &TaskExecutor, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(executor.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TaskExecutor, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "pty" => Ok(TaskExecutor::Pty),
            "stub" => Ok(TaskExecutor::Stub),
            _ => Err(serde::de::Error::custom("no executor")),
        }
    }
}

/// What is written down of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// How far it was.
    pub stage: TaskStage,
}

/// How many tasks there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTotals {
    /// Completed.
    #[serde(default)]
    pub completed: u64,
    /// Failed, for whatever reason.
    #[serde(default)]
    pub failed: u64,
    /// Cancelled.
    #[serde(default)]
    pub cancelled: u64,
    /// Refused because too many waited.
    #[serde(default)]
    pub refused: u64,
}

impl TaskTotals {
    /// Counts one that is over.
    pub(super) const fn count(&mut self, end: TaskEnd) {
        let counted = match end {
            TaskEnd::Completed => &mut self.completed,
            TaskEnd::Failed | TaskEnd::TimedOut | TaskEnd::NotStarted | TaskEnd::Lost => &mut self.failed,
            TaskEnd::Cancelled => &mut self.cancelled,
        };
        *counted += 1;
    }
}

/// What has become of a task while no daemon ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskFate {
    /// It is as it was written down; what has happened to its program since will be said.
    AsWritten,
    /// Its program was never asked for.
    NeverBegun,
    /// Nobody can know.
    Unknown,
    /// All tasks were being ended.
    Ending,
}

impl Engine {
    /// Goes on with a task that an earlier daemon had.
    pub(super) fn restore_task(
        &mut self,
        id: TaskId,
        demand: TaskDemand,
        record: TaskRecord,
        fate: TaskFate,
        now: Time,
    ) {
        let stage = match (record.stage, fate) {
            (TaskStage::Begun { executor: TaskExecutor::Pty, ending: None, .. }, TaskFate::NeverBegun) => {
                TaskStage::Pending
            }
            (stage, _) => stage,
        };
        // Of one of the stub's, all ticks that it missed are told at once.
        self.tasks.known.insert(id, Task { demand, stage, tick: 1, armed: None });
        self.tasks.changed.insert(id);
        match stage {
            TaskStage::Pending if fate == TaskFate::Ending => self.conclude_task(id, TaskEnd::Cancelled, now),
            TaskStage::Pending => {
                self.tasks.queue.insert(id);
            }
            TaskStage::Over { .. } => {
                self.tasks.over.push_back((Time(0), id));
                self.tasks.retain(id, now);
            }
            TaskStage::Begun { executor, ending, .. } => {
                self.tasks.running.insert(id);
                let end = match (fate, ending) {
                    (TaskFate::AsWritten, _) => None,
                    (TaskFate::Ending, None) => Some(TaskEnd::Cancelled),
                    (TaskFate::NeverBegun | TaskFate::Unknown, None) => Some(TaskEnd::Lost),
                    (TaskFate::Ending | TaskFate::NeverBegun | TaskFate::Unknown, Some(end)) => Some(end),
                };
                match end {
                    Some(end) => self.conclude_task(id, end, now),
                    // Whoever asked it to end may have been killed before it was.
                    None if executor == TaskExecutor::Pty && ending.is_some() => self.say(TaskEffect::Stop(id)),
                    None => self.tasks.arm_begun(id),
                }
            }
        }
    }
}
