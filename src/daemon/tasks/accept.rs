//! Takes what clients ask about tasks: to run one, to end one, to have others run otherwise.

use std::time::Duration;

use super::super::birth::chain;
use super::super::control::{Asked, Outcome, Task as Waiting, Web};
use super::super::state::Daemon;
use super::story::Story;
use super::{KeptTask, Task, session_name};
use crate::engine::{Input, TaskDemand, TaskId, TaskInput, TaskRefusal, TaskStage};
use crate::host::output_file::OutputFile;
use crate::protocol::control::{
    CancelTaskReply, Error, EventKind, RunTaskReply, RunTaskRequest, SwitchExecutorReply, SwitchExecutorRequest,
    TaskRequest, TaskState,
};
use crate::protocol::varlink::Reply;
use crate::spec::{TaskExecutor, estimated_duration};

/// How much of a name that nobody has is said back, in characters.
const SHOWN_CHARS: usize = 64;

/// A name that no other task has, whatever daemon gives it.
fn made_up_name() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// There is no such task.
pub(super) fn missing(name: &str) -> Error {
    let shown: String = name.chars().take(SHOWN_CHARS).collect();
    Error::NotFound { what: format!("task {shown}") }
}

/// There are no tasks here.
pub(super) fn none_here() -> Error {
    Error::Refused { reason: "this daemon runs no tasks: its configuration has no [tasks]".into() }
}

impl Daemon {
    /// Takes a task, if there is room for it.
    pub(in crate::daemon) fn run_task(&mut self, asked: Asked, request: RunTaskRequest) -> Outcome {
        let Some(spec) = &self.tasks.spec else { return none_here().into() };
        if asked.oneway {
            return Error::Refused { reason: "a task is for whoever hears that it was accepted".into() }.into();
        }
        if let Some(trouble) = self.persist.trouble() {
            let reason = format!("a task that cannot be written down is not accepted: {trouble}");
            return Error::Refused { reason }.into();
        }
        let timeout = request.timeout_ms.map_or(spec.timeout, Duration::from_millis);
        let bytes_max = spec.output_bytes_max;
        let name = match request.task.map_or_else(made_up_name, Ok) {
            Ok(name) => name,
            Err(error) => {
                let (operation, object, cause) = ("make up".into(), "a name".into(), chain(&error));
                return Error::Failed { operation, object, cause }.into();
            }
        };
        if self.tasks.names.contains_key(&name) {
            return Error::Exists { what: format!("task {name}") }.into();
        }
        let session = session_name(&name);
        if self.kept.contains_key(&session) || !self.sessions.reserve(&session) {
            return Error::Exists { what: format!("session {session}") }.into();
        }
        self.audit_order(asked, "task_run", &name);
        self.record_order(asked, EventKind::Order, format!("run task {name}"));
        self.tasks.last += 1;
        let id = TaskId(self.tasks.last);
        // A task of the stub takes as long as it is thought to, and nothing can be learned from that.
        let plain = estimated_duration(&request.prompt);
        let is_stub = self.engine.tasks().is_some_and(|view| view.executor == TaskExecutor::Stub);
        let estimate = if is_stub { plain } else { self.tasks.learned.estimate(&request.prompt) };
        let mut kept = KeptTask::new(id.0, asked.by.uid, request.prompt, timeout, estimate);
        kept.token = match asked.by.web {
            Some(Web::Token(number)) => self.token_name(number),
            Some(Web::Nobody) | None => None,
        };
        (kept.worker_id, kept.metadata) = (request.worker_id, request.metadata);
        kept.priority = request.priority.unwrap_or(kept.priority);
        let task = Task {
            name: name.clone(),
            kept,
            story: Story::default(),
            output: OutputFile::new(name.clone(), bytes_max),
            waits: Some((asked.place, asked.number)),
            cancellers: Vec::new(),
            call: None,
            worker: None,
            wrote: None,
            prompt_due: None,
            torn: false,
        };
        self.tasks.names.insert(name, id);
        self.tasks.known.insert(id, task);
        self.inputs.push(Input::Task(TaskInput::Submitted(id, TaskDemand { timeout, estimate })));
        Outcome::Wait(Waiting::Order)
    }

    /// It was accepted and is written down: tells who asked.
    pub(super) fn task_is_accepted(&mut self, id: TaskId) {
        let waits_now = self.engine.task_stage(id) == Some(TaskStage::Pending);
        let queued = self.engine.tasks().map_or(0, |view| view.queued);
        let trouble = self.persist.trouble().map(str::to_owned);
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        let Some(waits) = task.waits.take() else { return };
        let reply = match trouble {
            None => Reply::last(&RunTaskReply {
                task: task.name.clone(),
                state: TaskState::Pending,
                estimated_duration_ms: task.kept.estimate_ms,
                queued: if waits_now { queued.saturating_sub(1) } else { 0 },
            }),
            // Nobody is told that it runs, and nothing of it is to.
            Some(cause) => {
                self.inputs.push(Input::Task(TaskInput::CancelRequested(id)));
                let (operation, object) = ("write down".into(), format!("task {}", task.name));
                Error::Failed { operation, object, cause }.to_reply()
            }
        };
        self.control.answer_waiting(waits, &reply, self.now);
    }

    /// It was not: tells who asked, and forgets it.
    pub(super) fn task_is_refused(&mut self, id: TaskId, refusal: TaskRefusal) {
        let Some(task) = self.tasks.remove(id) else { return };
        self.sessions.give_back(&task.session());
        let error = match refusal {
            TaskRefusal::NoTasks => none_here(),
            TaskRefusal::Full => Error::Saturated {},
            TaskRefusal::ShuttingDown => Error::ShuttingDown {},
        };
        if let Some(waits) = task.waits {
            self.control.answer_waiting(waits, &error.to_reply(), self.now);
        }
    }

    /// Ends a task.
    pub(in crate::daemon) fn cancel_task(&mut self, asked: Asked, request: &TaskRequest) -> Outcome {
        let Some((id, _)) = self.tasks.find(&request.task) else { return missing(&request.task).into() };
        let Some(task) = self.tasks.known.get_mut(&id) else { return missing(&request.task).into() };
        let state = task.kept.state();
        if state.is_over() {
            return Outcome::Reply(Reply::last(&CancelTaskReply { state, was_over: true }));
        }
        task.kept.error.get_or_insert_with(|| format!("cancelled by {}", asked.by));
        if !asked.oneway {
            task.cancellers.push((asked.place, asked.number));
        }
        self.audit_order(asked, "task_cancel", &request.task);
        self.record_order(asked, EventKind::Order, format!("cancel task {}", request.task));
        self.inputs.push(Input::Task(TaskInput::CancelRequested(id)));
        Outcome::Wait(Waiting::Order)
    }

    /// Has tasks that begin from now on run by another executor.
    pub(in crate::daemon) fn switch_executor(&mut self, asked: Asked, request: &SwitchExecutorRequest) -> Outcome {
        let Some(before) = self.engine.tasks() else { return none_here().into() };
        let wanted = if request.executor == "stub" { TaskExecutor::Stub } else { TaskExecutor::Pty };
        self.audit_order(asked, "task_switch", wanted.name());
        self.record_order(asked, EventKind::Order, format!("switch tasks to {}", wanted.name()));
        // Those that run in the one that is left go on there; all others are of the one that is wanted.
        let draining = if wanted == before.executor { before.draining } else { before.running - before.draining };
        self.inputs.push(Input::Task(TaskInput::ExecutorSwitched(wanted)));
        Outcome::Reply(Reply::last(&SwitchExecutorReply {
            executor: wanted.name().to_owned(),
            previous: before.executor.name().to_owned(),
            draining,
        }))
    }
}
