//! Carries out what the engine decides about tasks, and hears how they end.

use std::os::fd::AsFd as _;

use super::super::bind::Wanted;
use super::super::control::OWN_CALLS;
use super::super::log::best_effort;
use super::super::session::abandon_call;
use super::super::state::Daemon;
use super::{KeptTask, Task};
use crate::engine::{CallId, Ended, Input, Return, Supply, TaskEffect, TaskEnd, TaskExit, TaskId, TaskInput};
use crate::host::init_image::Window;
use crate::protocol::control::{CancelTaskReply, Cause, DeathCertificate};
use crate::protocol::varlink::Reply;
use crate::spec::{Generation, TaskExecutor, TasksSpec, WorkerId};

/// The claim of a task's worker; the daemon's own.
const fn claim_call(id: TaskId) -> CallId {
    CallId(OWN_CALLS | 1 << 61 | id.0)
}

/// What runs.
fn command(spec: &TasksSpec, kept: &KeptTask) -> Vec<String> {
    let mut command = spec.command.clone();
    if spec.takes_arguments {
        if let Some(worker_id) = &kept.worker_id {
            command.extend(["--worker-id".to_owned(), worker_id.clone()]);
        }
        command.extend(["--priority".to_owned(), kept.priority.to_string()]);
    }
    command
}

/// What it is told beside its pool's environment.
fn environment(name: &str, kept: &KeptTask) -> Vec<String> {
    let metadata = serde_json::Value::Object(kept.metadata.clone().unwrap_or_default());
    vec![
        format!("CLAUDE_TASK_ID={name}"),
        format!("CLAUDE_PRIORITY={}", kept.priority),
        format!("CLAUDE_METADATA={metadata}"),
    ]
}

fn wanted(spec: &TasksSpec, task: &Task) -> Wanted {
    Wanted {
        name: task.session(),
        owner: task.kept.owner,
        task: Some(task.name.clone()),
        project: None,
        mounts: Vec::new(),
        command: Some(command(spec, &task.kept)),
        env: environment(&task.name, &task.kept),
        secrets: Vec::new(),
        memory_bytes: None,
        cpu_millis: None,
        pids: None,
        detached: true,
        keeps: false,
        window: Some(Window { rows: spec.rows, columns: spec.columns }),
        labels: Vec::new(),
    }
}

/// How a program ended that did not end well, in the words of the system that tasks come from.
fn said(certificate: &DeathCertificate) -> String {
    if let Some(failure) = &certificate.start_failure {
        return failure.text.clone();
    }
    match certificate.status.unwrap_or(certificate.cause) {
        Cause::Exited(code) => format!("Process exited with code {code}"),
        Cause::Signal(signal) => {
            format!("Process was killed by signal {signal} ({})", crate::spec::format_signal(signal))
        }
        Cause::Oom => "Process was killed: it used more memory than its limit".to_owned(),
        cause @ (Cause::Heartbeat
        | Cause::Deadline
        | Cause::Recycled
        | Cause::Released
        | Cause::Requested
        | Cause::Shutdown
        | Cause::StartFailed
        | Cause::Unknown) => format!("its worker was ended: {cause}"),
    }
}

impl Daemon {
    /// Carries out one effect.
    pub(in crate::daemon) fn perform_task(&mut self, effect: TaskEffect) {
        match effect {
            TaskEffect::Accepted(id) => self.task_is_accepted(id),
            TaskEffect::Refused(id, refusal) => self.task_is_refused(id, refusal),
            TaskEffect::Begin(id, TaskExecutor::Pty) => self.begin_task(id),
            // It runs nowhere.
            TaskEffect::Begin(_, TaskExecutor::Stub) => {}
            TaskEffect::Stop(id) => self.stop_task(id),
            TaskEffect::Progressed(id, percent) => self.task_progressed(id, percent),
            TaskEffect::Concluded(id, end) => self.task_is_concluded(id, end),
            TaskEffect::Forget(id) => {
                if let Some(mut task) = self.tasks.remove(id) {
                    let forgotten = task.output.forget(self.shared.task_dir.as_fd());
                    best_effort(forgotten, "the next start of the daemon removes it");
                }
            }
        }
    }

    /// Has a worker claimed for it.
    fn begin_task(&mut self, id: TaskId) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        let spec = self.tasks.spec.as_ref();
        let Some((spec, pool)) = spec.and_then(|spec| Some((spec, *self.names.get(&spec.pool)?))) else {
            task.kept.error = Some("the pool of tasks is gone".to_owned());
            return self.inputs.push(Input::Task(TaskInput::NotStarted(id)));
        };
        let call = claim_call(id);
        task.call = Some(call);
        let wanted = wanted(spec, task);
        self.expect_claim_of_task(call, id, wanted);
        self.inputs.push(Input::ClaimRequested(call, pool, Supply::WarmOrCold));
    }

    /// Its worker is bound to it, and nothing of it runs yet: that is written down with its session.
    pub(in crate::daemon) fn task_is_bound(&mut self, name: &str, worker: WorkerId, generation: Generation) {
        let worker_name = self.worker_name(worker);
        let Some((id, _)) = self.tasks.find(name) else { return };
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        task.call = None;
        task.worker = Some((worker, generation));
        (task.kept.worker, task.kept.generation) = (Some(worker_name), Some(generation.0));
        self.tasks.by_worker.insert(worker, id);
        self.put_task(id);
    }

    /// It could not be started, and nothing of it runs.
    pub(in crate::daemon) fn task_is_not_started(&mut self, id: TaskId, cause: &str) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        task.call = None;
        task.kept.error.get_or_insert_with(|| cause.to_owned());
        self.inputs.push(Input::Task(TaskInput::NotStarted(id)));
    }

    /// Ends what runs of it, or what is to.
    fn stop_task(&mut self, id: TaskId) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        if let Some((worker, generation)) = task.worker {
            return self.inputs.push(Input::ReleaseRequested(abandon_call(generation), worker, Return::Destroyed));
        }
        // Whoever gets a worker for it finds that nobody waits, and gives it back.
        if let Some(call) = task.call.take() {
            self.give_up_claim(call);
        }
        self.inputs.push(Input::Task(TaskInput::NotStarted(id)));
    }

    /// The end of a worker is written down; if it was a task's, that is over.
    pub(in crate::daemon) fn end_task_of(&mut self, worker: WorkerId, certificate: &DeathCertificate) {
        let Some(id) = self.tasks.by_worker.get(&worker).copied() else { return };
        let bound = self.tasks.known.get(&id).and_then(|task| task.worker);
        if bound == Some((worker, Generation(certificate.generation))) {
            self.hear_end_of_task(id, certificate);
        }
    }

    pub(super) fn hear_end_of_task(&mut self, id: TaskId, certificate: &DeathCertificate) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        task.kept.exit = certificate.status;
        let exit = match certificate.cause {
            Cause::Exited(code) => TaskExit::Itself(Ended::Exited(code)),
            Cause::Signal(signal) => TaskExit::Itself(Ended::Signalled(signal)),
            Cause::Oom => TaskExit::Itself(Ended::OutOfMemory),
            Cause::Requested | Cause::Shutdown | Cause::Released => TaskExit::Ordered,
            Cause::Heartbeat | Cause::StartFailed | Cause::Deadline | Cause::Recycled | Cause::Unknown => {
                TaskExit::Broken
            }
        };
        if exit == TaskExit::Ordered {
            task.kept.error.get_or_insert_with(|| match &certificate.asked_by {
                Some(who) => format!("its worker was ended by {who}"),
                None => format!("its worker was ended: {}", certificate.cause),
            });
        } else if exit != TaskExit::Itself(Ended::Exited(0)) {
            task.kept.error.get_or_insert_with(|| said(certificate));
        }
        self.inputs.push(Input::Task(TaskInput::Ended(id, exit)));
    }

    /// It is over: tells who waited for that.
    fn task_is_concluded(&mut self, id: TaskId, end: TaskEnd) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        let (state, cancellers) = (task.kept.state(), std::mem::take(&mut task.cancellers));
        (task.prompt_due, task.call) = (None, None);
        let (session, worker) = (task.session(), task.worker.take());
        let why = task.kept.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        tracing::info!(target: "task", task = %task.name, state = %state, ?end, "task {} is {state}{why}", task.name);
        if let Some((worker, _)) = worker
            && self.tasks.by_worker.get(&worker) == Some(&id)
        {
            self.tasks.by_worker.remove(&worker);
        }
        // That of one that had a worker ends with it.
        self.sessions.give_back(&session);
        for waits in cancellers {
            self.control.answer_waiting(waits, &Reply::last(&CancelTaskReply { state, was_over: false }), self.now);
        }
    }
}
