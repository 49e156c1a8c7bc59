//! Tasks against a world of their own: callers who ask and cancel, programs that end when they like or hardly at all, a daemon
//! that is killed in the middle, and this world's own copy of each promise.
//!
//! Never more run than may; first come is first served; a full queue refuses and one with room does not; whoever takes too
//! long is asked to end, then and not before; each that was accepted is concluded exactly once, by whatever daemon, and then
//! forgotten in time; none begins twice unless it never ran.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use halsup::engine::{
    Change, Effect, Ended, Engine, Input, TaskDemand, TaskEffect, TaskEnd, TaskExit, TaskFate, TaskId, TaskInput,
    TaskRecord, TaskRefusal, TaskStage, Time,
};
use halsup::spec::{TaskExecutor, TaskPolicy};

use crate::dice::Dice;

const STEPS: u32 = 200;

/// What the world knows of a task that was accepted.
#[derive(Debug, Clone)]
struct Known {
    demand: TaskDemand,
    /// In which executor it began, and when.
    begun: Option<(TaskExecutor, Time)>,
    /// When it was asked to end.
    stopped: Option<Time>,
    cancelled: bool,
    /// Its program was heard of: it may not run a second time.
    ran: bool,
    concluded: Option<(Time, TaskEnd)>,
    forgotten: bool,
}

struct World {
    engine: Engine,
    now: Time,
    dice: Dice,
    policy: TaskPolicy,
    executor: TaskExecutor,
    tasks: BTreeMap<TaskId, Known>,
    /// Who waits, in the order in which they came.
    waiting: VecDeque<TaskId>,
    /// Records, as the disk has them.
    disk: BTreeMap<TaskId, TaskRecord>,
    switched: Option<(TaskExecutor, TaskExecutor)>,
    last: u64,
    news: VecDeque<(Time, TaskInput)>,
    /// Everything is to end in this turn, and everything ends.
    shuts: bool,
    shut: bool,
    trace: Vec<String>,
}

type Verdict = Result<(), String>;

fn after(time: Time, delay: Duration) -> Time {
    Time(time.0 + u64::try_from(delay.as_nanos()).expect("short"))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let executor = dice.pick(&[TaskExecutor::Pty, TaskExecutor::Pty, TaskExecutor::Stub]);
        let policy = TaskPolicy {
            max_concurrent: dice.small(1, 4),
            queue_max: dice.small(0, 6),
            executor,
            retention: dice.millis(1, 3_000),
            retained_max: dice.small(1, 8),
        };
        Self {
            engine: Engine::new(seed),
            now: Time(1),
            dice,
            policy,
            executor,
            tasks: BTreeMap::new(),
            waiting: VecDeque::new(),
            disk: BTreeMap::new(),
            switched: None,
            last: 0,
            news: VecDeque::new(),
            shuts: false,
            shut: false,
            trace: Vec::new(),
        }
    }

    fn running(&self) -> Vec<TaskId> {
        let runs = |known: &&Known| known.begun.is_some() && known.concluded.is_none();
        self.tasks.iter().filter(|(_, known)| runs(known)).map(|(id, _)| *id).collect()
    }

    fn run(&mut self) -> Verdict {
        self.turn(vec![TaskInput::PolicySet(Some(self.policy))])?;
        for step in 0..STEPS {
            let inputs = self.inputs(step);
            self.turn(inputs)?;
            if self.dice.chance(2) && !self.shut {
                self.die()?;
            }
        }
        self.settle()
    }

    /// Time passes, up to the next thing that is due at the latest.
    fn pass(&mut self) {
        let news = self.news.iter().map(|(time, _)| *time).min();
        let due = [self.engine.next_deadline(), news].into_iter().flatten().min();
        let some = after(self.now, self.dice.within(Duration::from_millis(400)));
        self.now = due.map_or(some, |due| due.min(some)).max(Time(self.now.0 + 1));
    }

    fn inputs(&mut self, step: u32) -> Vec<TaskInput> {
        self.pass();
        let mut inputs = Vec::new();
        let due: Vec<TaskInput> = {
            let (due, later) = self.news.drain(..).partition(|(time, _)| *time <= self.now);
            self.news = later;
            let due: VecDeque<(Time, TaskInput)> = due;
            due.into_iter().map(|(_, input)| input).collect()
        };
        inputs.extend(due);
        if self.dice.chance(40) {
            self.last += 1;
            let demand = TaskDemand { timeout: self.dice.millis(1, 2_000), estimate: self.dice.millis(1, 1_500) };
            inputs.push(TaskInput::Submitted(TaskId(self.last), demand));
        }
        if self.dice.chance(8) && self.last > 0 {
            inputs.push(TaskInput::CancelRequested(TaskId(1 + self.dice.below(self.last))));
        }
        if self.dice.chance(3) {
            inputs.push(TaskInput::ExecutorSwitched(self.dice.pick(&[TaskExecutor::Pty, TaskExecutor::Stub])));
        }
        if self.dice.chance(2) {
            let (max_concurrent, queue_max) = (self.dice.small(1, 4), self.dice.small(0, 6));
            inputs.push(TaskInput::PolicySet(Some(TaskPolicy { max_concurrent, queue_max, ..self.policy })));
        }
        if step == STEPS - 20 && self.dice.chance(30) {
            self.shuts = true;
        }
        inputs
    }

    fn turn(&mut self, inputs: Vec<TaskInput>) -> Verdict {
        let mut room = Vec::new();
        for input in inputs {
            self.trace.push(format!("{:?} {input:?}", self.now));
            if let TaskInput::Submitted(id, demand) = input {
                let known = Known {
                    demand,
                    begun: None,
                    stopped: None,
                    cancelled: false,
                    ran: false,
                    concluded: None,
                    forgotten: false,
                };
                room.push((id, known));
            }
            if let TaskInput::CancelRequested(id) = input
                && let Some(known) = self.tasks.get_mut(&id)
            {
                known.cancelled |= known.concluded.is_none() && known.stopped.is_none();
            }
            if let TaskInput::ExecutorSwitched(executor) = input {
                self.executor = executor;
            }
            if let TaskInput::PolicySet(Some(policy)) = input {
                self.policy = policy;
            }
            self.engine.handle(Input::Task(input), self.now);
            self.effects(&mut room)?;
        }
        if std::mem::take(&mut self.shuts) {
            self.shut = true;
            self.engine.handle(Input::ShutdownRequested(Duration::from_secs(1)), self.now);
            self.effects(&mut room)?;
            for id in self.running() {
                self.news
                    .push_back((after(self.now, Duration::from_millis(5)), TaskInput::Ended(id, TaskExit::Ordered)));
            }
        }
        self.engine.handle_timeout(self.now);
        self.effects(&mut room)?;
        if let Some((id, _)) = room.first() {
            return Err(format!("{id:?} was neither accepted nor refused"));
        }
        for change in self.engine.take_changes() {
            match change {
                Change::Task(id, Some(record)) => drop(self.disk.insert(id, record)),
                Change::Task(id, None) => drop(self.disk.remove(&id)),
                Change::Tasks(_, switched) => self.switched = switched,
                Change::Worker(..) | Change::Pool(..) => {}
            }
        }
        self.look()
    }

    /// What must be so after every turn.
    fn look(&self) -> Verdict {
        let running = self.running();
        let max = usize::try_from(self.policy.max_concurrent).expect("small");
        // Who began before fewer were allowed goes on.
        let free = running.len() < max && !self.shut;
        if free && let Some(id) = self.waiting.front() {
            return Err(format!("{id:?} waits although only {} of {max} run", running.len()));
        }
        let over = |known: &&Known| known.concluded.is_some() && !known.forgotten;
        let known = self.tasks.values().filter(over).count();
        let fresh =
            self.tasks.values().filter(|known| known.concluded.is_some_and(|(since, _)| since == self.now)).count();
        if known > usize::try_from(self.policy.retained_max).expect("small") + fresh {
            return Err(format!("{known} that are over are known"));
        }
        for id in running {
            let known = &self.tasks[&id];
            let Some((_, at)) = known.begun else { continue };
            if known.stopped.is_none() && after(at, known.demand.timeout) <= self.now {
                return Err(format!("{id:?} goes on beyond its time"));
            }
        }
        match self.engine.next_deadline() {
            Some(due) if due <= self.now => Err(format!("a deadline {due:?} has passed")),
            Some(_) | None => Ok(()),
        }
    }

    fn effects(&mut self, room: &mut Vec<(TaskId, Known)>) -> Verdict {
        while let Some(effect) = self.engine.poll_effect() {
            self.trace.push(format!("{:?} -> {effect:?}", self.now));
            let Effect::Task(effect) = effect else { continue };
            self.effect(effect, room)?;
        }
        Ok(())
    }

    fn effect(&mut self, effect: TaskEffect, room: &mut Vec<(TaskId, Known)>) -> Verdict {
        let holds = |good: bool, what: &str| if good { Ok(()) } else { Err(format!("{effect:?}: {what}")) };
        match effect {
            TaskEffect::Accepted(id) => {
                let (asked, known) = room.pop().ok_or("nobody asked")?;
                holds(asked == id, "somebody else asked")?;
                let waits = self.waiting.len() < usize::try_from(self.policy.queue_max).expect("small");
                let begins = self.running().len() < usize::try_from(self.policy.max_concurrent).expect("small");
                holds(waits || begins, "there is no room")?;
                holds(!self.shut, "everything ends")?;
                self.tasks.insert(id, known);
                self.waiting.push_back(id);
                Ok(())
            }
            TaskEffect::Refused(id, why) => {
                let (asked, _) = room.pop().ok_or("nobody asked")?;
                holds(asked == id, "somebody else asked")?;
                let full = self.waiting.len() >= usize::try_from(self.policy.queue_max).expect("small")
                    && self.running().len() >= usize::try_from(self.policy.max_concurrent).expect("small");
                let expected = if self.shut { TaskRefusal::ShuttingDown } else { TaskRefusal::Full };
                holds(why == expected && (full || self.shut), "there is room")
            }
            TaskEffect::Begin(id, executor) => {
                let max = usize::try_from(self.policy.max_concurrent).expect("small");
                holds(self.running().len() < max, "too many run")?;
                holds(self.waiting.pop_front() == Some(id), "it is not the first that waits")?;
                holds(executor == self.executor, "another executor is to run it")?;
                let known = self.tasks.get_mut(&id).ok_or("nobody knows it")?;
                holds(!known.ran && known.begun.is_none() && known.concluded.is_none(), "it ran already")?;
                known.begun = Some((executor, self.now));
                if executor == TaskExecutor::Pty {
                    self.begin(id);
                }
                Ok(())
            }
            TaskEffect::Stop(id) => {
                let known = self.tasks.get_mut(&id).ok_or("nobody knows it")?;
                let (executor, at) = known.begun.ok_or("it does not run")?;
                holds(executor == TaskExecutor::Pty && known.concluded.is_none(), "there is nothing to stop")?;
                let is_late = after(at, known.demand.timeout) <= self.now;
                holds(is_late || known.cancelled, "it has time left and nobody cancelled it")?;
                known.stopped.get_or_insert(self.now);
                let ended = self.dice.pick(&[
                    TaskInput::Ended(id, TaskExit::Ordered),
                    TaskInput::Ended(id, TaskExit::Itself(Ended::Exited(0))),
                    TaskInput::NotStarted(id),
                ]);
                let pause = self.dice.within(Duration::from_secs(2));
                self.news.push_back((after(self.now, pause), ended));
                Ok(())
            }
            TaskEffect::Progressed(id, percent) => {
                let known = self.tasks.get(&id).ok_or("nobody knows it")?;
                holds(known.concluded.is_none() && percent <= 90, "it is not so far")
            }
            TaskEffect::Concluded(id, end) => self.conclude(id, end),
            TaskEffect::Forget(id) => {
                let known = self.tasks.get_mut(&id).ok_or("nobody knows it")?;
                holds(
                    known.concluded.is_some_and(|(since, _)| since < self.now) && !known.forgotten,
                    "it is not over",
                )?;
                known.forgotten = true;
                Ok(())
            }
        }
    }

    /// Its program ends at some time, or does not start, or goes on until it is stopped.
    fn begin(&mut self, id: TaskId) {
        let input = match self.dice.below(10) {
            0 => TaskInput::NotStarted(id),
            1 => TaskInput::Ended(id, TaskExit::Broken),
            2 => TaskInput::Ended(id, TaskExit::Itself(Ended::Signalled(11))),
            3 => TaskInput::Ended(id, TaskExit::Itself(Ended::Exited(3))),
            4..=7 => TaskInput::Ended(id, TaskExit::Itself(Ended::Exited(0))),
            _ => return,
        };
        let pause = self.dice.within(Duration::from_secs(1));
        self.news.push_back((after(self.now, pause), input));
    }

    fn conclude(&mut self, id: TaskId, end: TaskEnd) -> Verdict {
        let known = self.tasks.get_mut(&id).ok_or("nobody knows it")?;
        let holds = |good: bool, what: &str| if good { Ok(()) } else { Err(format!("{id:?} {end:?}: {what}")) };
        holds(known.concluded.is_none(), "it is over already")?;
        let late = known.begun.is_some_and(|(_, at)| after(at, known.demand.timeout) <= self.now);
        let thought = known.begun.is_some_and(|(_, at)| after(at, known.demand.estimate) <= self.now);
        let is_stub = known.begun.is_some_and(|(executor, _)| executor == TaskExecutor::Stub);
        holds(end != TaskEnd::TimedOut || late, "it had time left")?;
        holds(!is_stub || end != TaskEnd::Completed || thought, "it was thought to take longer")?;
        holds(
            !known.cancelled || end == TaskEnd::Cancelled || end == TaskEnd::Lost || late || self.shut,
            "somebody has cancelled it",
        )?;
        known.concluded = Some((self.now, end));
        self.waiting.retain(|one| *one != id);
        Ok(())
    }

    /// The daemon is killed and the next one begins: with what was written down, and what has become of programs since.
    fn die(&mut self) -> Verdict {
        self.trace.push(format!("{:?} the daemon is killed", self.now));
        self.engine = Engine::new(self.dice.next());
        self.pass();
        // What was to be heard is heard by the next one, or is found by it.
        let mut ended = BTreeSet::new();
        let news = std::mem::take(&mut self.news);
        let mut inputs = vec![TaskInput::TotalsRestored(halsup::engine::TaskTotals::default(), self.switched)];
        for (id, record) in self.disk.clone() {
            let known = self.tasks.get_mut(&id).ok_or("a record of nothing")?;
            let fate = match record.stage {
                TaskStage::Begun { executor: TaskExecutor::Pty, .. } => match self.dice.below(6) {
                    0 if known.stopped.is_none() && !known.ran => TaskFate::NeverBegun,
                    1 => TaskFate::Unknown,
                    _ => TaskFate::AsWritten,
                },
                TaskStage::Begun { .. } | TaskStage::Pending | TaskStage::Over { .. } => TaskFate::AsWritten,
            };
            if fate == TaskFate::NeverBegun {
                known.begun = None;
                self.waiting.push_back(id);
            }
            known.ran |= known.begun.is_some();
            inputs.push(TaskInput::Restored(id, known.demand, record, fate));
            if fate != TaskFate::AsWritten {
                ended.insert(id);
            }
        }
        let mut waiting: Vec<TaskId> = self.waiting.drain(..).collect();
        waiting.sort();
        self.waiting = waiting.into();
        self.news = news.into_iter().filter(|(_, input)| !names(input).is_some_and(|id| ended.contains(&id))).collect();
        self.executor =
            self.switched.filter(|(_, from)| *from == self.policy.executor).map_or(self.policy.executor, |(to, _)| to);
        inputs.push(TaskInput::PolicySet(Some(self.policy)));
        self.turn(inputs)
    }

    /// In the end everything that was accepted is over, and forgotten.
    fn settle(&mut self) -> Verdict {
        for _ in 0..5_000 {
            if self.tasks.values().all(|known| known.forgotten) {
                return Ok(());
            }
            self.pass();
            let (due, later): (Vec<_>, Vec<_>) = self.news.drain(..).partition(|(time, _)| *time <= self.now);
            self.news = later.into();
            self.turn(due.into_iter().map(|(_, input)| input).collect())?;
        }
        let left: Vec<_> = self.tasks.iter().filter(|(_, known)| !known.forgotten).collect();
        Err(format!("these never come to an end: {left:?}"))
    }
}

/// Which task a piece of news is of.
fn names(input: &TaskInput) -> Option<TaskId> {
    match input {
        TaskInput::NotStarted(id) | TaskInput::Ended(id, _) | TaskInput::CancelRequested(id) => Some(*id),
        TaskInput::PolicySet(_)
        | TaskInput::TotalsRestored(..)
        | TaskInput::Submitted(..)
        | TaskInput::Restored(..)
        | TaskInput::ExecutorSwitched(_) => None,
    }
}

#[test]
fn every_promise_about_tasks_holds_under_every_seed() {
    let first = crate::number("HALSUP_SIMULATION_FIRST", 0);
    let (mut completed, mut lost) = (0, 0);
    for seed in first..first + crate::number("HALSUP_SIMULATION_SEEDS", 2000) {
        let mut world = World::new(seed);
        if let Err(broken) = world.run() {
            let tail = world.trace[world.trace.len().saturating_sub(60)..].join("\n");
            panic!("{tail}\nseed {seed}: {broken}");
        }
        let ends = || world.tasks.values().filter_map(|known| known.concluded.map(|(_, end)| end));
        completed += ends().filter(|end| *end == TaskEnd::Completed).count();
        lost += ends().filter(|end| *end == TaskEnd::Lost).count();
    }
    assert!(completed > 1_000 && lost > 10, "the world ran nothing: {completed} completed, {lost} lost");
}
