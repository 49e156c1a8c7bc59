//! Tasks: a prompt, typed into a program under a terminal in a worker, and what comes of it.
//!
//! The engine decides who waits and who runs; a worker is claimed for each as for anybody who claims one, and a task is a
//! session while it runs. Here are its words and its output. `accept.rs` takes what clients ask, `estimate.rs` says how
//! long that may take, `run.rs` has it run and hears of its end, `typing.rs` types and listens, `story.rs` is what happened
//! to it, `record.rs` what outlives the daemon, `told.rs` what is told. Bounded by what the engine lets wait, run and be known.

mod accept;
mod estimate;
mod record;
mod run;
mod story;
mod told;
mod typing;

use std::collections::BTreeMap;

use self::estimate::Learned;
pub(in crate::daemon) use self::record::{KeptTask, PastTasks, TasksRecord, task_key};
use self::story::Story;
pub(in crate::daemon) use self::told::Following;
use super::state::Daemon;
use crate::engine::{CallId, TaskId, Time};
use crate::host::output_file::OutputFile;
use crate::spec::{Generation, TasksSpec, WorkerId};

/// What the session of a task is called before the task's name.
const SESSION_PREFIX: &str = "task-";

/// A task.
#[derive(Debug)]
struct Task {
    name: String,
    /// What is written down of it, without its story.
    kept: KeptTask,
    story: Story,
    output: OutputFile,
    /// Who waits to hear whether it was accepted.
    waits: Option<(u32, u64)>,
    /// Who waits for its end.
    cancellers: Vec<(u32, u64)>,
    /// The claim of its worker, until it is bound.
    call: Option<CallId>,
    worker: Option<(WorkerId, Generation)>,
    /// When its program last wrote something.
    wrote: Option<Time>,
    /// When its prompt is typed at the latest, until it is.
    prompt_due: Option<Time>,
    /// Whether something of its output could not be kept.
    torn: bool,
}

impl Task {
    fn session(&self) -> String {
        session_name(&self.name)
    }
}

fn session_name(task: &str) -> String {
    format!("{SESSION_PREFIX}{task}")
}

/// The task whose session is called so, if it is a task's.
pub(in crate::daemon) fn task_of_session(session: &str) -> Option<&str> {
    session.strip_prefix(SESSION_PREFIX)
}

/// All tasks.
#[derive(Debug)]
pub(in crate::daemon) struct Tasks {
    pub(in crate::daemon) spec: Option<TasksSpec>,
    known: BTreeMap<TaskId, Task>,
    names: BTreeMap<String, TaskId>,
    by_worker: BTreeMap<WorkerId, TaskId>,
    last: u64,
    /// What an earlier daemon has left, until the engine is told.
    past: Option<PastTasks>,
    /// When the last one was over.
    last_ended_msec: Option<u64>,
    learned: Learned,
}

impl Tasks {
    /// All that an earlier daemon has left, and the tasks that are configured.
    pub(in crate::daemon) fn new(spec: Option<TasksSpec>, past: PastTasks) -> Self {
        Self {
            spec,
            known: BTreeMap::new(),
            names: BTreeMap::new(),
            by_worker: BTreeMap::new(),
            last: 0,
            past: Some(past),
            last_ended_msec: None,
            learned: Learned::default(),
        }
    }

    fn find(&self, name: &str) -> Option<(TaskId, &Task)> {
        let id = *self.names.get(name)?;
        Some((id, self.known.get(&id)?))
    }

    /// Whose a task is: the user's, and of those who come by HTTP the token's of this name.
    pub(in crate::daemon) fn owner(&self, name: &str) -> Option<(u32, Option<&str>)> {
        self.find(name).map(|(_, task)| (task.kept.owner, task.kept.token.as_deref()))
    }

    fn remove(&mut self, id: TaskId) -> Option<Task> {
        let task = self.known.remove(&id)?;
        self.names.remove(&task.name);
        if let Some((worker, _)) = task.worker
            && self.by_worker.get(&worker) == Some(&id)
        {
            self.by_worker.remove(&worker);
        }
        Some(task)
    }
}

impl Daemon {
    /// Everything has ended: what is still to be heard of that is heard, so that no task is taken for one that runs.
    pub(super) fn conclude_tasks(&mut self) {
        self.decide();
    }
}
