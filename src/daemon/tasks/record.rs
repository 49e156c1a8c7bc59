//! What of tasks outlives the daemon, and what has become of those of an earlier one.

use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::clock;
use super::super::log::best_effort;
use super::super::state::Daemon;
use super::estimate::Learned;
use super::story::{Happened, Mark, Story};
use super::{Task, session_name};
use crate::engine::{Input, TaskDemand, TaskEnd, TaskFate, TaskId, TaskInput, TaskRecord, TaskStage, TaskTotals};
use crate::host::output_file::OutputFile;
use crate::protocol::control::{Cause, TaskState};
use crate::spec::{Generation, TaskExecutor, WorkerId};

/// How much of a prompt a task of the stub executor says back, in characters.
const STUB_PROMPT_CHARS: usize = 50;

/// A task as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct KeptTask {
    /// By which tasks are in order.
    pub(super) number: u64,
    pub(super) prompt: String,
    pub(super) owner: u32,
    /// The token with which it was asked for, by its name, if that was by HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) worker_id: Option<String>,
    pub(super) priority: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Map<String, Value>>,
    pub(super) timeout_ms: u64,
    pub(super) estimate_ms: u64,
    /// Wall clock, in milliseconds since 1970.
    pub(super) submitted_msec: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) began_msec: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended_msec: Option<u64>,
    /// What runs it, or ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) executor: Option<String>,
    /// The worker that was bound to it, and its generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) worker: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<u64>,
    /// Whether its prompt was typed, or is about to be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) typed: bool,
    /// How its program ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) exit: Option<Cause>,
    /// Why it is not completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(default)]
    marks: Vec<Mark>,
    pub(super) record: TaskRecord,
}

impl KeptTask {
    /// One that somebody has just asked for.
    pub(super) fn new(number: u64, owner: u32, prompt: String, timeout: Duration, estimate: Duration) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            number,
            prompt,
            owner,
            token: None,
            worker_id: None,
            priority: crate::protocol::control::TASK_PRIORITY_DEFAULT,
            metadata: None,
            timeout_ms: ms(timeout),
            estimate_ms: ms(estimate),
            submitted_msec: clock::msec(clock::wall()),
            began_msec: None,
            ended_msec: None,
            executor: None,
            worker: None,
            generation: None,
            typed: false,
            exit: None,
            error: None,
            marks: Vec::new(),
            record: TaskRecord { stage: TaskStage::Pending },
        }
    }

    fn demand(&self) -> TaskDemand {
        let (timeout, estimate) = (Duration::from_millis(self.timeout_ms), Duration::from_millis(self.estimate_ms));
        TaskDemand { timeout, estimate }
    }

    /// How long its program ran, if that has ended by itself: what somebody has ended, and what runs nowhere, says nothing
    /// of others. A wall clock that was set meanwhile is no reason to think that it took longer than it may.
    fn took_ms(&self) -> Option<u64> {
        let TaskStage::Over { end: TaskEnd::Completed | TaskEnd::Failed } = self.record.stage else { return None };
        let is_program = self.executor.as_deref() == Some(TaskExecutor::Pty.name()) && self.exit.is_some();
        let (began, ended) = self.began_msec.zip(self.ended_msec).filter(|_| is_program)?;
        Some(ended.checked_sub(began)?.min(self.timeout_ms))
    }

    /// How far it is, in a word.
    pub(super) const fn state(&self) -> TaskState {
        state_of(self.record.stage)
    }
}

/// All tasks, as that is written down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct TasksRecord {
    #[serde(default)]
    totals: TaskTotals,
    /// To what executor somebody has switched from what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    switched: Option<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_ended_msec: Option<u64>,
    #[serde(default)]
    learned: Learned,
}

/// What an earlier daemon has left of tasks.
#[derive(Debug, Default)]
pub(in crate::daemon) struct PastTasks {
    /// By name.
    pub(in crate::daemon) tasks: Vec<(String, KeptTask)>,
    pub(in crate::daemon) all: TasksRecord,
    /// Whether the machine has not booted since.
    pub(in crate::daemon) same_boot: bool,
    /// Everything was being ended by order.
    pub(in crate::daemon) ending: bool,
}

/// The key of a task's record.
pub(in crate::daemon) fn task_key(name: &str) -> String {
    format!("task/{name}")
}

const fn state_of(stage: TaskStage) -> TaskState {
    match stage {
        TaskStage::Pending => TaskState::Pending,
        TaskStage::Begun { .. } => TaskState::Running,
        TaskStage::Over { end: TaskEnd::Completed } => TaskState::Completed,
        TaskStage::Over { end: TaskEnd::Cancelled } => TaskState::Cancelled,
        TaskStage::Over { end: TaskEnd::Failed | TaskEnd::TimedOut | TaskEnd::NotStarted | TaskEnd::Lost } => {
            TaskState::Failed
        }
    }
}

fn executor_of(name: &str) -> TaskExecutor {
    if name == TaskExecutor::Stub.name() { TaskExecutor::Stub } else { TaskExecutor::Pty }
}

/// Why a task is not completed that came to this end; `None` where it is.
fn reason(end: TaskEnd, kept: &KeptTask) -> Option<String> {
    let known = kept.error.clone();
    match end {
        TaskEnd::Completed => None,
        TaskEnd::TimedOut => Some(format!("Process timed out after {}ms", kept.timeout_ms)),
        TaskEnd::Failed => known.or_else(|| Some("its worker has ended".to_owned())),
        TaskEnd::NotStarted => known.or_else(|| Some("it could not be started".to_owned())),
        TaskEnd::Lost => {
            Some("it ran when the daemon or the machine was killed, and nobody knows what became of it".to_owned())
        }
        TaskEnd::Cancelled => known.or_else(|| Some("cancelled".to_owned())),
    }
}

impl Task {
    /// What happens to it is told as it is written down; whether it was.
    fn take_record(&mut self, record: TaskRecord, dir: std::os::fd::BorrowedFd<'_>) {
        let (before, now) = (self.kept.state(), clock::msec(clock::wall()));
        if self.story.marks.is_empty() {
            self.story.add(Happened::State(TaskState::Pending), now);
        }
        self.kept.record = record;
        let state = self.kept.state();
        if state == before {
            return;
        }
        match record.stage {
            TaskStage::Pending => {}
            TaskStage::Begun { executor, .. } => {
                self.kept.began_msec = Some(now);
                self.kept.executor = Some(executor.name().to_owned());
            }
            TaskStage::Over { end } => {
                self.kept.ended_msec = Some(now);
                if end == TaskEnd::Completed && self.kept.executor.as_deref() == Some(TaskExecutor::Stub.name()) {
                    self.keep_output(dir, self.stub_result().as_bytes());
                }
                if end == TaskEnd::Completed {
                    self.story.add(Happened::Progress(100), now);
                }
                self.kept.error = reason(end, &self.kept);
            }
        }
        self.story.add(Happened::State(state), now);
        if state.is_over() {
            let (exit, error) = (self.kept.exit, self.kept.error.clone());
            self.story.add(Happened::Over { exit, error }, now);
            self.output.close();
        }
    }

    /// What the stub executor makes of a prompt.
    fn stub_result(&self) -> String {
        let shown: String = self.kept.prompt.chars().take(STUB_PROMPT_CHARS).collect();
        format!("Stub execution completed for prompt: \"{shown}...\"\n")
    }

    /// Keeps what was written.
    pub(super) fn keep_output(&mut self, dir: std::os::fd::BorrowedFd<'_>, written: &[u8]) -> Option<u8> {
        let kept = self.output.append(dir, written);
        if let Err(errno) = kept
            && !std::mem::replace(&mut self.torn, true)
        {
            tracing::error!(target: "task", task = %self.name, %errno, "keep the output of task {}: some of it is missing", self.name);
        }
        self.story.wrote(written)
    }

    fn to_be_written(&self) -> KeptTask {
        KeptTask { marks: self.story.marks.clone(), ..self.kept.clone() }
    }
}

impl Daemon {
    /// The engine has changed a task: that is told, and written down.
    pub(in crate::daemon) fn write_task(&mut self, id: TaskId, record: Option<TaskRecord>) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        match record {
            Some(record) => {
                let was_over = task.kept.state().is_over();
                task.take_record(record, self.shared.task_dir.as_fd());
                if task.kept.state().is_over() {
                    self.tasks.last_ended_msec = task.kept.ended_msec.max(self.tasks.last_ended_msec);
                    if let Some(took_ms) = task.kept.took_ms().filter(|_| !was_over) {
                        self.tasks.learned.add(took_ms);
                    }
                }
                self.put_task(id);
            }
            None => self.persist.keep_task(&task_key(&task.name), None),
        }
    }

    /// Writes a task down as it is, with the next that is written.
    pub(super) fn put_task(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.known.get(&id) {
            self.persist.keep_task(&task_key(&task.name), Some(&task.to_be_written()));
        }
    }

    /// Writes down what is known of all tasks together.
    pub(in crate::daemon) fn write_tasks(
        &mut self,
        totals: TaskTotals,
        switched: Option<(TaskExecutor, TaskExecutor)>,
    ) {
        let named = |(to, from): (TaskExecutor, TaskExecutor)| (to.name().to_owned(), from.name().to_owned());
        let last_ended_msec = self.tasks.last_ended_msec;
        let learned = self.tasks.learned;
        let record = TasksRecord { totals, switched: switched.map(named), last_ended_msec, learned };
        if record != TasksRecord::default() {
            self.persist.keep_tasks(&record);
        }
    }

    /// Tells the engine of the tasks that an earlier daemon had, and of those that are configured. To be called when it has
    /// heard what became of all workers.
    pub(in crate::daemon) fn restore_tasks(&mut self) {
        let Some(past) = self.tasks.past.take() else { return };
        self.tasks.last_ended_msec = past.all.last_ended_msec;
        self.tasks.learned = past.all.learned;
        let switched = past.all.switched.map(|(to, from)| (executor_of(&to), executor_of(&from)));
        self.inputs.push(Input::Task(TaskInput::TotalsRestored(past.all.totals, switched)));
        let bytes_max = self.tasks.spec.as_ref().map_or(0, |spec| spec.output_bytes_max);
        let found = OutputFile::find_all(self.shared.task_dir.as_fd(), bytes_max);
        let mut outputs = found.unwrap_or_else(|errno| {
            tracing::error!(target: "task", %errno, "list the output of tasks: what there is of it is not told");
            Vec::new()
        });
        let mut tasks = past.tasks;
        tasks.sort_by_key(|(_, kept)| kept.number);
        for (name, kept) in tasks {
            let output = match outputs.iter().position(|output| output.name() == name) {
                Some(at) => outputs.swap_remove(at),
                None => OutputFile::new(name.clone(), bytes_max),
            };
            self.restore_task(name, kept, output, (past.same_boot, past.ending));
        }
        for mut output in outputs {
            best_effort(output.forget(self.shared.task_dir.as_fd()), "the next start tries again");
        }
        let policy = self.tasks.spec.as_ref().map(|spec| spec.policy);
        self.inputs.push(Input::Task(TaskInput::PolicySet(policy)));
    }

    fn restore_task(&mut self, name: String, mut kept: KeptTask, output: OutputFile, how: (bool, bool)) {
        let id = TaskId(kept.number);
        self.tasks.last = self.tasks.last.max(id.0);
        let story = Story::restored(std::mem::take(&mut kept.marks), output.end());
        let mut task = Task {
            name: name.clone(),
            story,
            output,
            waits: None,
            cancellers: Vec::new(),
            call: None,
            worker: None,
            wrote: None,
            prompt_due: None,
            torn: false,
            kept,
        };
        let (fate, lives) = self.fate_of(&task, how);
        task.worker = lives;
        if fate == TaskFate::NeverBegun {
            task.kept.generation = None;
        }
        let (demand, record) = (task.kept.demand(), task.kept.record);
        let certificate = if lives.is_none() { self.certificate_of_task(&task) } else { None };
        let waits_for_prompt = lives.is_some() && !task.kept.typed;
        if let Some((worker, _)) = lives {
            self.tasks.by_worker.insert(worker, id);
        }
        if !task.kept.state().is_over() && lives.is_none() {
            self.sessions.reserve(&session_name(&name));
        }
        self.tasks.names.insert(name, id);
        self.tasks.known.insert(id, task);
        self.inputs.push(Input::Task(TaskInput::Restored(id, demand, record, fate)));
        if let Some(certificate) = certificate.filter(|_| fate == TaskFate::AsWritten) {
            self.hear_end_of_task(id, &certificate);
        }
        if waits_for_prompt {
            self.await_prompt(id);
        }
    }

    /// What has become of a task since an earlier daemon has written it down, and its worker, if that lives.
    fn fate_of(&self, task: &Task, (same_boot, ending): (bool, bool)) -> (TaskFate, Option<(WorkerId, Generation)>) {
        let TaskStage::Begun { executor, .. } = task.kept.record.stage else {
            return (if ending { TaskFate::Ending } else { TaskFate::AsWritten }, None);
        };
        if ending {
            return (TaskFate::Ending, None);
        }
        if executor == TaskExecutor::Stub {
            return (if same_boot { TaskFate::AsWritten } else { TaskFate::Unknown }, None);
        }
        let Some(generation) = task.kept.generation.map(Generation) else { return (TaskFate::NeverBegun, None) };
        let is_its = |(_, live): &(&WorkerId, &super::super::live::Live)| live.generation == generation;
        if let Some((worker, _)) = self.live.iter().find(is_its) {
            let session = self.sessions.of(*worker);
            // One whose program nobody has heard of was given back: it may have begun.
            let runs = session.is_some_and(|session| session.answered && session.name == task.session());
            return if runs { (TaskFate::AsWritten, Some((*worker, generation))) } else { (TaskFate::Unknown, None) };
        }
        let is_known = self.certificate_of_task(task).is_some();
        (if is_known { TaskFate::AsWritten } else { TaskFate::Unknown }, None)
    }

    fn certificate_of_task(&self, task: &Task) -> Option<crate::protocol::control::DeathCertificate> {
        let generation = task.kept.generation?;
        let session = task.session();
        let is_its = |one: &&crate::protocol::control::DeathCertificate| {
            one.generation == generation && one.session.as_ref() == Some(&session)
        };
        self.certificates.iter().rev().find(is_its).cloned()
    }

    /// Takes other tasks as configured.
    pub(in crate::daemon) fn redefine_tasks(&mut self, spec: Option<crate::spec::TasksSpec>) {
        let policy = spec.as_ref().map(|spec| spec.policy);
        self.tasks.spec = spec;
        self.inputs.push(Input::Task(TaskInput::PolicySet(policy)));
    }
}
