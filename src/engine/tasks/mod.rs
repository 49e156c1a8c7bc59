//! Tasks: who waits, who runs, for how long, and what becomes of each.
//!
//! First come is first served, never more than `max_concurrent` run, and what waits is bounded. A task that is to end is
//! asked to ([`TaskEffect::Stop`]) and goes on counting as one that runs until nothing of it does. Each that was accepted is
//! concluded once, and then known for a while. Those of the stub executor run nowhere: their time is all there is of them.
//! Numbers are the caller's and count up; nothing here knows a worker.

mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use record::{TaskFate, TaskRecord, TaskStage, TaskTotals};

use super::machine::Engine;
use super::{Effect, Ended, Time};
use crate::spec::{TaskExecutor, TaskPolicy};

/// How often a task of the stub executor is further than before.
const STUB_TICK: Duration = Duration::from_millis(100);
/// How far it is before it is over, in percent.
const STUB_PROGRESS_MAX: u64 = 90;

/// Which task; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// What a task says that the engine decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskDemand {
    /// How long it may run.
    pub timeout: Duration,
    /// How long it is thought to take.
    pub estimate: Duration,
}

/// A fact or an order about tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskInput {
    /// Tasks are run like this from now on; with `None` there are none, and those that there are go on as they began.
    PolicySet(Option<TaskPolicy>),
    /// What an earlier daemon counted, and to what somebody switched it from what. Before the first `PolicySet`.
    TotalsRestored(TaskTotals, Option<(TaskExecutor, TaskExecutor)>),
    /// Somebody wants one. Answered by `Accepted` or `Refused`.
    Submitted(TaskId, TaskDemand),
    /// An earlier daemon had it, and this has become of it. Before the first `PolicySet`, before which nothing begins.
    Restored(TaskId, TaskDemand, TaskRecord, TaskFate),
    /// It could not be started, and nothing of it runs.
    NotStarted(TaskId),
    /// Its program has ended, and nothing of it runs.
    Ended(TaskId, TaskExit),
    /// Somebody wants it no more.
    CancelRequested(TaskId),
    /// Those that begin from now on are run by this.
    ExecutorSwitched(TaskExecutor),
}

/// How the program of a task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskExit {
    /// By itself.
    Itself(Ended),
    /// Somebody has ended its worker.
    Ordered,
    /// Its worker was ended for a reason of its own.
    Broken,
}

/// Why a task is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskRefusal {
    /// There are none here.
    NoTasks,
    /// Too many wait.
    Full,
    /// The daemon is shutting down.
    ShuttingDown,
}

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskEnd {
    /// All was well.
    Completed,
    /// Its program ended otherwise, or its worker did.
    Failed,
    /// It took too long.
    TimedOut,
    /// It could not be started.
    NotStarted,
    /// Nobody knows: it ran when the daemon or the machine was killed.
    Lost,
    /// Somebody has ended it.
    Cancelled,
}

/// Something to be done about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEffect {
    /// It waits; it is to be written down already.
    Accepted(TaskId),
    /// It is not taken.
    Refused(TaskId, TaskRefusal),
    /// Have this run it; answered, unless by the stub, by `NotStarted` or `Ended`.
    Begin(TaskId, TaskExecutor),
    /// End it: `Ended` or `NotStarted` follows. Never of the stub.
    Stop(TaskId),
    /// It is so far, in percent.
    Progressed(TaskId, u8),
    /// It is over. Exactly one for each that was accepted.
    Concluded(TaskId, TaskEnd),
    /// It is to be known no more.
    Forget(TaskId),
}

/// What is known of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    demand: TaskDemand,
    stage: TaskStage,
    /// The next tick of the stub executor.
    tick: u32,
    armed: Option<Time>,
}

/// All tasks, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TasksView {
    /// What runs those that begin.
    pub executor: TaskExecutor,
    /// How many run.
    pub running: u32,
    /// Of them, how many something else runs.
    pub draining: u32,
    /// How many wait.
    pub queued: u32,
    /// How many that are over are known.
    pub retained: u32,
    /// How many there were.
    pub totals: TaskTotals,
}

/// All tasks.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    policy: Option<TaskPolicy>,
    /// Whether it was set, if only to none.
    said: bool,
    /// What somebody has switched to, and what the policy said then.
    switched: Option<(TaskExecutor, TaskExecutor)>,
    known: BTreeMap<TaskId, Task>,
    queue: BTreeSet<TaskId>,
    running: BTreeSet<TaskId>,
    /// Those that are over, in the order in which they were, and since when.
    over: VecDeque<(Time, TaskId)>,
    due: BTreeSet<(Time, TaskId)>,
    totals: TaskTotals,
    /// Of whom something has changed that outlives the daemon.
    pub(super) changed: BTreeSet<TaskId>,
    pub(super) totals_changed: bool,
}

impl Tasks {
    /// The earliest deadline.
    pub(super) fn first_due(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    fn arm(&mut self, id: TaskId, due: Option<Time>) {
        let Some(task) = self.known.get_mut(&id) else { return };
        if let Some(old) = task.armed {
            self.due.remove(&(old, id));
        }
        task.armed = due;
        self.due.extend(due.map(|due| (due, id)));
    }

    /// Lets one that is over be known for as long as the policy has it, once that is known.
    fn retain(&mut self, id: TaskId, now: Time) {
        let retention = self.policy.map_or(Duration::ZERO, |policy| policy.retention);
        let due = self.said.then(|| now.after(retention));
        self.arm(id, due);
    }

    /// What runs those that begin now.
    fn executor(&self) -> Option<TaskExecutor> {
        let policy = self.policy?;
        Some(self.switched.map_or(policy.executor, |(switched, _)| switched))
    }

    /// When a task that has begun is to be looked at.
    fn wanted(task: &Task) -> Option<Time> {
        let TaskStage::Begun { executor, at, ending } = task.stage else { return None };
        let timeout = ending.is_none().then(|| at.after(task.demand.timeout));
        match executor {
            TaskExecutor::Pty => timeout,
            TaskExecutor::Stub => {
                let (tick, end) = (at.after(STUB_TICK * task.tick), at.after(task.demand.estimate));
                timeout.map(|timeout| timeout.min(end).min(tick))
            }
        }
    }

    fn arm_begun(&mut self, id: TaskId) {
        let due = self.known.get(&id).and_then(Self::wanted);
        self.arm(id, due);
    }

    /// What is written down of a task; `None` if it is known no more.
    pub(super) fn record(&self, id: TaskId) -> Option<TaskRecord> {
        self.known.get(&id).map(|task| TaskRecord { stage: task.stage })
    }

    /// What is written down of all of them.
    pub(super) const fn totals(&self) -> (TaskTotals, Option<(TaskExecutor, TaskExecutor)>) {
        (self.totals, self.switched)
    }
}

impl Engine {
    /// Takes one fact or order about tasks.
    pub(super) fn handle_task(&mut self, input: TaskInput, now: Time) {
        match input {
            TaskInput::PolicySet(policy) => {
                // What an operator has switched to holds as long as the configuration says what it said then.
                let said = policy.map(|policy| policy.executor);
                self.tasks.switched = self.tasks.switched.filter(|(_, then)| said == Some(*then));
                (self.tasks.policy, self.tasks.said, self.tasks.totals_changed) = (policy, true, true);
                let tasks = &mut self.tasks;
                let is_new = |id: &&TaskId| tasks.known.get(id).is_some_and(|task| task.armed.is_none());
                let unarmed: Vec<TaskId> = tasks.over.iter().map(|(_, id)| id).filter(is_new).copied().collect();
                unarmed.into_iter().for_each(|id| tasks.retain(id, now));
            }
            TaskInput::TotalsRestored(totals, switched) => {
                (self.tasks.totals, self.tasks.switched) = (totals, switched);
            }
            TaskInput::Submitted(id, demand) => self.submit_task(id, demand),
            TaskInput::Restored(id, demand, record, fate) => self.restore_task(id, demand, record, fate, now),
            TaskInput::NotStarted(id) => self.end_task(id, TaskEnd::NotStarted, now),
            TaskInput::Ended(id, exit) => {
                let end = match exit {
                    TaskExit::Itself(Ended::Exited(0)) => TaskEnd::Completed,
                    TaskExit::Itself(_) | TaskExit::Broken => TaskEnd::Failed,
                    TaskExit::Ordered => TaskEnd::Cancelled,
                };
                self.end_task(id, end, now);
            }
            TaskInput::CancelRequested(id) => self.stop_task(id, TaskEnd::Cancelled, now),
            TaskInput::ExecutorSwitched(executor) => {
                if let Some(policy) = self.tasks.policy {
                    self.tasks.switched = (executor != policy.executor).then_some((executor, policy.executor));
                    self.tasks.totals_changed = true;
                }
            }
        }
        self.begin_tasks(now);
        self.forget_surplus_tasks(now);
    }

    fn submit_task(&mut self, id: TaskId, demand: TaskDemand) {
        let tasks = &mut self.tasks;
        let refusal = match tasks.policy {
            None => Some(TaskRefusal::NoTasks),
            Some(_) if self.shutdown.is_some() => Some(TaskRefusal::ShuttingDown),
            // One that can begin at once does not wait.
            Some(policy) => {
                let free = usize::try_from(policy.max_concurrent).unwrap_or(usize::MAX);
                let waits = usize::try_from(policy.queue_max).unwrap_or(usize::MAX);
                let room = free.saturating_sub(tasks.running.len()).saturating_add(waits);
                (tasks.queue.len() >= room).then_some(TaskRefusal::Full)
            }
        };
        if let Some(refusal) = refusal {
            if refusal == TaskRefusal::Full {
                tasks.totals.refused += 1;
                tasks.totals_changed = true;
            }
            return self.say(TaskEffect::Refused(id, refusal));
        }
        tasks.known.insert(id, Task { demand, stage: TaskStage::Pending, tick: 1, armed: None });
        tasks.queue.insert(id);
        tasks.changed.insert(id);
        self.say(TaskEffect::Accepted(id));
    }

    fn say(&mut self, effect: TaskEffect) {
        self.effects.push_back(Effect::Task(effect));
    }

    /// Has those begin that may.
    fn begin_tasks(&mut self, now: Time) {
        let Some(policy) = self.tasks.policy.filter(|_| self.shutdown.is_none()) else { return };
        let Some(executor) = self.tasks.executor() else { return };
        let max = usize::try_from(policy.max_concurrent).unwrap_or(usize::MAX);
        while self.tasks.running.len() < max
            && let Some(id) = self.tasks.queue.pop_first()
        {
            self.tasks.running.insert(id);
            self.tasks.changed.insert(id);
            if let Some(task) = self.tasks.known.get_mut(&id) {
                task.stage = TaskStage::Begun { executor, at: now, ending: None };
            }
            self.tasks.arm_begun(id);
            self.say(TaskEffect::Begin(id, executor));
        }
    }

    /// A task is to end, and this is what will have become of it.
    fn stop_task(&mut self, id: TaskId, end: TaskEnd, now: Time) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        match task.stage {
            TaskStage::Pending | TaskStage::Begun { executor: TaskExecutor::Stub, .. } => {
                self.conclude_task(id, end, now);
            }
            TaskStage::Begun { executor: TaskExecutor::Pty, at, ending: None } => {
                task.stage = TaskStage::Begun { executor: TaskExecutor::Pty, at, ending: Some(end) };
                self.tasks.changed.insert(id);
                self.tasks.arm_begun(id);
                self.say(TaskEffect::Stop(id));
            }
            // It is on its way, or over.
            TaskStage::Begun { .. } | TaskStage::Over { .. } => {}
        }
    }

    /// Nothing of a task runs any more.
    fn end_task(&mut self, id: TaskId, end: TaskEnd, now: Time) {
        let Some(task) = self.tasks.known.get(&id) else { return };
        if let TaskStage::Begun { executor: TaskExecutor::Pty, ending, .. } = task.stage {
            // What could not be started any more because everything ends has been ended by that.
            let is_ending = end == TaskEnd::NotStarted && self.shutdown.is_some();
            let end = if is_ending { TaskEnd::Cancelled } else { end };
            self.conclude_task(id, ending.unwrap_or(end), now);
        }
    }

    fn conclude_task(&mut self, id: TaskId, end: TaskEnd, now: Time) {
        let tasks = &mut self.tasks;
        let Some(task) = tasks.known.get_mut(&id) else { return };
        task.stage = TaskStage::Over { end };
        tasks.queue.remove(&id);
        tasks.running.remove(&id);
        tasks.over.push_back((now, id));
        tasks.totals.count(end);
        tasks.totals_changed = true;
        tasks.changed.insert(id);
        tasks.retain(id, now);
        self.say(TaskEffect::Concluded(id, end));
    }

    /// The oldest that are over give way, but for those of this turn: what became of them is still to be told.
    fn forget_surplus_tasks(&mut self, now: Time) {
        let Some(max) = self.tasks.policy.map(|policy| policy.retained_max) else { return };
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        while self.tasks.over.len() > max
            && let Some((since, id)) = self.tasks.over.front().copied()
            && since < now
        {
            self.forget_task(id);
        }
    }

    fn forget_task(&mut self, id: TaskId) {
        self.tasks.arm(id, None);
        self.tasks.known.remove(&id);
        self.tasks.over.retain(|(_, one)| *one != id);
        self.tasks.changed.insert(id);
        self.say(TaskEffect::Forget(id));
    }

    /// Acts on the deadlines of tasks that have come.
    pub(super) fn tasks_are_due(&mut self, now: Time) {
        while let Some((due, id)) = self.tasks.due.first().copied().filter(|(due, _)| *due <= now) {
            self.tasks.arm(id, None);
            let Some(task) = self.tasks.known.get_mut(&id) else { continue };
            match task.stage {
                TaskStage::Pending => {}
                TaskStage::Over { .. } => self.forget_task(id),
                TaskStage::Begun { executor: TaskExecutor::Pty, .. } => self.stop_task(id, TaskEnd::TimedOut, now),
                TaskStage::Begun { executor: TaskExecutor::Stub, at, .. } => {
                    if due >= at.after(task.demand.timeout) {
                        self.conclude_task(id, TaskEnd::TimedOut, now);
                    } else if due >= at.after(task.demand.estimate) {
                        self.conclude_task(id, TaskEnd::Completed, now);
                    } else {
                        let percent = stub_progress(task);
                        task.tick += 1;
                        self.tasks.arm_begun(id);
                        self.say(TaskEffect::Progressed(id, percent));
                    }
                }
            }
        }
        self.begin_tasks(now);
        self.forget_surplus_tasks(now);
    }

    /// Everything ends: what waits is not begun any more, and what runs nowhere is over. The rest ends with its workers.
    pub(super) fn end_tasks(&mut self, now: Time) {
        let tasks = &self.tasks;
        let nowhere: Vec<TaskId> = tasks.queue.iter().chain(&tasks.running).copied().collect();
        for id in nowhere {
            let is_pty = |task: &Task| matches!(task.stage, TaskStage::Begun { executor: TaskExecutor::Pty, .. });
            if !self.tasks.known.get(&id).is_some_and(is_pty) {
                self.conclude_task(id, TaskEnd::Cancelled, now);
            }
        }
    }

    /// All tasks, in numbers; `None` where there are none.
    #[must_use]
    pub fn tasks(&self) -> Option<TasksView> {
        let tasks = &self.tasks;
        let executor = tasks.executor()?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let other = |id: &&TaskId| {
            let stage = tasks.known.get(id).map(|task| task.stage);
            matches!(stage, Some(TaskStage::Begun { executor: theirs, .. }) if theirs != executor)
        };
        Some(TasksView {
            executor,
            running: count(tasks.running.len()),
            draining: count(tasks.running.iter().filter(other).count()),
            queued: count(tasks.queue.len()),
            retained: count(tasks.over.len()),
            totals: tasks.totals,
        })
    }

    /// How far a task is.
    #[must_use]
    pub fn task_stage(&self, id: TaskId) -> Option<TaskStage> {
        self.tasks.known.get(&id).map(|task| task.stage)
    }
}

/// How far a task of the stub executor is at its next tick, in percent.
fn stub_progress(task: &Task) -> u8 {
    let estimate = u64::try_from(task.demand.estimate.as_millis()).unwrap_or(u64::MAX).max(1);
    let elapsed = u64::try_from((STUB_TICK * task.tick).as_millis()).unwrap_or(u64::MAX);
    let percent = elapsed.saturating_mul(100) / estimate;
    u8::try_from(percent.min(STUB_PROGRESS_MAX)).unwrap_or(u8::MAX)
}
