//! Tests of tasks: order, bounds, ends, and what a later daemon makes of records.

use std::time::Duration;

use super::*;
use crate::engine::Input;

const MS: u64 = 1_000_000;

fn policy(max_concurrent: u32, queue_max: u32) -> TaskPolicy {
    let retention = Duration::from_secs(30);
    TaskPolicy { max_concurrent, queue_max, executor: TaskExecutor::Pty, retention, retained_max: 3 }
}

fn demand(timeout_ms: u64) -> TaskDemand {
    TaskDemand { timeout: Duration::from_millis(timeout_ms), estimate: Duration::from_millis(2_050) }
}

struct Turn(Engine);

impl Turn {
    fn new(policy: TaskPolicy) -> Self {
        let mut turn = Self(Engine::new(1));
        assert_eq!(turn.at(0, TaskInput::PolicySet(Some(policy))), []);
        turn
    }

    fn at(&mut self, ms: u64, input: TaskInput) -> Vec<TaskEffect> {
        self.0.handle(Input::Task(input), Time(ms * MS));
        self.effects()
    }

    fn time(&mut self, ms: u64) -> Vec<TaskEffect> {
        self.0.handle_timeout(Time(ms * MS));
        self.effects()
    }

    fn effects(&mut self) -> Vec<TaskEffect> {
        let all = std::iter::from_fn(|| self.0.poll_effect());
        all.filter_map(|effect| if let Effect::Task(effect) = effect { Some(effect) } else { None }).collect()
    }

    fn submit(&mut self, ms: u64, id: u64) -> Vec<TaskEffect> {
        self.at(ms, TaskInput::Submitted(TaskId(id), demand(1_000)))
    }

    fn numbers(&self) -> (u32, u32, u32) {
        let view = self.0.tasks().unwrap();
        (view.running, view.queued, view.retained)
    }
}

fn accepted(id: u64) -> TaskEffect {
    TaskEffect::Accepted(TaskId(id))
}

fn begin(id: u64) -> TaskEffect {
    TaskEffect::Begin(TaskId(id), TaskExecutor::Pty)
}

fn concluded(id: u64, end: TaskEnd) -> TaskEffect {
    TaskEffect::Concluded(TaskId(id), end)
}

fn exited(id: u64, code: i32) -> TaskInput {
    TaskInput::Ended(TaskId(id), TaskExit::Itself(Ended::Exited(code)))
}

#[test]
fn first_come_is_first_served_and_too_many_are_refused() {
    let mut turn = Turn::new(policy(2, 2));
    assert_eq!(turn.submit(1, 1), [accepted(1), begin(1)]);
    assert_eq!(turn.submit(1, 2), [accepted(2), begin(2)]);
    assert_eq!(turn.submit(1, 3), [accepted(3)]);
    assert_eq!(turn.submit(1, 4), [accepted(4)]);
    assert_eq!(turn.submit(1, 5), [TaskEffect::Refused(TaskId(5), TaskRefusal::Full)]);
    assert_eq!(turn.numbers(), (2, 2, 0));
    assert_eq!(turn.at(2, exited(2, 0)), [concluded(2, TaskEnd::Completed), begin(3)]);
    assert_eq!(turn.at(2, exited(2, 1)), [], "it is over");
    assert_eq!(turn.at(3, exited(1, 3)), [concluded(1, TaskEnd::Failed), begin(4)]);
    assert_eq!(turn.numbers(), (2, 0, 2));
    let totals = turn.0.tasks().unwrap().totals;
    assert_eq!((totals.completed, totals.failed, totals.refused), (1, 1, 1));
}

#[test]
fn without_a_policy_there_are_none() {
    let mut turn = Turn(Engine::new(1));
    let refused = |why| [TaskEffect::Refused(TaskId(1), why)];
    assert_eq!(turn.submit(0, 1), refused(TaskRefusal::NoTasks));
    assert_eq!(turn.0.tasks(), None);
    turn.at(0, TaskInput::PolicySet(Some(policy(1, 0))));
    turn.0.handle(Input::ShutdownRequested(Duration::from_secs(1)), Time(1));
    assert_eq!(turn.submit(0, 1), refused(TaskRefusal::ShuttingDown));
}

#[test]
fn a_task_that_takes_too_long_is_stopped_once_and_counts_until_nothing_of_it_runs() {
    let mut turn = Turn::new(policy(1, 9));
    turn.submit(0, 1);
    turn.submit(0, 2);
    assert_eq!(turn.time(999), []);
    assert_eq!(turn.0.next_deadline(), Some(Time(1_000 * MS)));
    assert_eq!(turn.time(1_000), [TaskEffect::Stop(TaskId(1))]);
    assert_eq!(turn.at(1_001, TaskInput::CancelRequested(TaskId(1))), []);
    assert_eq!(turn.time(5_000), [], "it is not given up");
    assert_eq!(turn.numbers(), (1, 1, 0));
    let end = TaskInput::Ended(TaskId(1), TaskExit::Ordered);
    assert_eq!(turn.at(6_000, end), [concluded(1, TaskEnd::TimedOut), begin(2)]);
}

#[test]
fn a_cancelled_task_ends_where_it_is() {
    let mut turn = Turn::new(policy(1, 9));
    turn.submit(0, 1);
    turn.submit(0, 2);
    assert_eq!(turn.at(1, TaskInput::CancelRequested(TaskId(2))), [concluded(2, TaskEnd::Cancelled)]);
    assert_eq!(turn.at(1, TaskInput::CancelRequested(TaskId(1))), [TaskEffect::Stop(TaskId(1))]);
    assert_eq!(turn.at(2, exited(1, 0)), [concluded(1, TaskEnd::Cancelled)]);
    assert_eq!(turn.at(2, TaskInput::CancelRequested(TaskId(1))), []);
    turn.submit(3, 3);
    assert_eq!(turn.at(4, TaskInput::NotStarted(TaskId(3))), [concluded(3, TaskEnd::NotStarted)]);
    turn.submit(5, 4);
    let ordered = TaskInput::Ended(TaskId(4), TaskExit::Ordered);
    assert!(turn.at(6, ordered).contains(&concluded(4, TaskEnd::Cancelled)), "somebody has released its worker");
}

#[test]
fn what_is_over_is_known_for_a_while_and_not_too_much_of_it() {
    let mut turn = Turn::new(policy(9, 9));
    for id in 1..=4 {
        turn.submit(id, id);
    }
    for id in 1..=3 {
        turn.at(10 + id, exited(id, 0));
    }
    assert_eq!(turn.at(13, exited(4, 0)), [concluded(4, TaskEnd::Completed), TaskEffect::Forget(TaskId(1))]);
    assert_eq!(turn.time(30_012), [TaskEffect::Forget(TaskId(2))]);
    assert_eq!(turn.time(30_013), [TaskEffect::Forget(TaskId(3)), TaskEffect::Forget(TaskId(4))]);
    for id in 5..=9 {
        turn.submit(40_000, id);
        turn.at(40_001, exited(id, 0));
    }
    assert_eq!(turn.numbers(), (0, 0, 5), "what became of each is told first");
    assert_eq!(turn.time(40_002).len(), 2);
    assert_eq!(turn.time(90_000).len(), 3);
    assert_eq!((turn.numbers(), turn.0.next_deadline()), ((0, 0, 0), None));
}

#[test]
fn the_stub_takes_its_time_and_says_how_far_it_is() {
    let mut turn = Turn::new(TaskPolicy { executor: TaskExecutor::Stub, ..policy(1, 9) });
    let demand = TaskDemand { timeout: Duration::from_secs(60), ..demand(0) };
    turn.at(0, TaskInput::Submitted(TaskId(1), demand));
    let mut told = Vec::new();
    let mut ends = Vec::new();
    while let Some(due) = turn.0.next_deadline().filter(|due| *due <= Time(2_050 * MS)) {
        for effect in turn.time(due.0 / MS) {
            if let TaskEffect::Progressed(_, percent) = effect { told.push(percent) } else { ends.push(effect) }
        }
    }
    assert_eq!((told.len(), told.first(), told.last()), (20, Some(&4), Some(&90)));
    assert!(told.is_sorted());
    assert_eq!(ends, [concluded(1, TaskEnd::Completed)]);
    let short = TaskDemand { timeout: Duration::from_millis(150), ..demand };
    turn.at(3_000, TaskInput::Submitted(TaskId(2), short));
    let effects = turn.time(3_150);
    assert_eq!(effects, [TaskEffect::Progressed(TaskId(2), 4), concluded(2, TaskEnd::TimedOut)]);
    turn.at(4_000, TaskInput::Submitted(TaskId(3), demand));
    assert_eq!(turn.at(4_001, TaskInput::CancelRequested(TaskId(3))), [concluded(3, TaskEnd::Cancelled)]);
}

#[test]
fn a_switch_is_for_those_that_begin_and_holds_until_the_configuration_says_otherwise() {
    let mut turn = Turn::new(policy(1, 9));
    turn.submit(0, 1);
    turn.submit(0, 2);
    turn.at(1, TaskInput::ExecutorSwitched(TaskExecutor::Stub));
    let view = turn.0.tasks().unwrap();
    assert_eq!((view.executor, view.running, view.draining), (TaskExecutor::Stub, 1, 1));
    let effects = turn.at(2, exited(1, 0));
    assert!(effects.contains(&TaskEffect::Begin(TaskId(2), TaskExecutor::Stub)), "{effects:?}");
    turn.at(3, TaskInput::PolicySet(Some(policy(1, 9))));
    assert_eq!(turn.0.tasks().unwrap().executor, TaskExecutor::Stub, "a reload that says what it said changes nothing");
    let stub = TaskPolicy { executor: TaskExecutor::Stub, ..policy(1, 9) };
    turn.at(4, TaskInput::PolicySet(Some(stub)));
    turn.at(5, TaskInput::PolicySet(Some(policy(1, 9))));
    assert_eq!(turn.0.tasks().unwrap().executor, TaskExecutor::Pty);
}

#[test]
fn when_everything_ends_nothing_begins_and_each_is_concluded() {
    let mut turn = Turn::new(policy(1, 9));
    turn.submit(0, 1);
    turn.submit(0, 2);
    turn.0.handle(Input::ShutdownRequested(Duration::from_secs(1)), Time(MS));
    assert_eq!(turn.effects(), [concluded(2, TaskEnd::Cancelled)]);
    assert_eq!(turn.at(2, TaskInput::NotStarted(TaskId(1))), [concluded(1, TaskEnd::Cancelled)]);
}

#[test]
fn a_later_daemon_goes_on_where_the_one_before_was() {
    let begun = |at: u64, ending| TaskStage::Begun { executor: TaskExecutor::Pty, at: Time(at * MS), ending };
    let restore = |stage, fate| {
        let mut turn = Turn(Engine::new(1));
        let mut effects = turn.at(5_000, TaskInput::Restored(TaskId(7), demand(1_000), TaskRecord { stage }, fate));
        effects.extend(turn.at(5_000, TaskInput::PolicySet(Some(policy(1, 9)))));
        effects.extend(turn.time(5_000));
        (effects, turn.numbers())
    };
    let cases = [
        (TaskStage::Pending, TaskFate::AsWritten, vec![begin(7)], (1, 0, 0)),
        (TaskStage::Pending, TaskFate::Ending, vec![concluded(7, TaskEnd::Cancelled)], (0, 0, 1)),
        (begun(4_500, None), TaskFate::AsWritten, vec![], (1, 0, 0)),
        (begun(3_000, None), TaskFate::AsWritten, vec![TaskEffect::Stop(TaskId(7))], (1, 0, 0)),
        (begun(4_500, None), TaskFate::NeverBegun, vec![begin(7)], (1, 0, 0)),
        (begun(4_500, None), TaskFate::Unknown, vec![concluded(7, TaskEnd::Lost)], (0, 0, 1)),
        (begun(4_500, None), TaskFate::Ending, vec![concluded(7, TaskEnd::Cancelled)], (0, 0, 1)),
        (begun(4_500, Some(TaskEnd::TimedOut)), TaskFate::AsWritten, vec![TaskEffect::Stop(TaskId(7))], (1, 0, 0)),
        (
            begun(4_500, Some(TaskEnd::Cancelled)),
            TaskFate::NeverBegun,
            vec![concluded(7, TaskEnd::Cancelled)],
            (0, 0, 1),
        ),
        (TaskStage::Over { end: TaskEnd::Failed }, TaskFate::AsWritten, vec![], (0, 0, 1)),
    ];
    for (stage, fate, expected, numbers) in cases {
        assert_eq!(restore(stage, fate), (expected, numbers), "{stage:?} {fate:?}");
    }
}

#[test]
fn what_was_begun_comes_before_what_waits_after_a_restart() {
    let mut turn = Turn(Engine::new(1));
    let begun = TaskStage::Begun { executor: TaskExecutor::Pty, at: Time(0), ending: None };
    for (id, stage, fate) in [
        (1, begun, TaskFate::NeverBegun),
        (2, begun, TaskFate::AsWritten),
        (3, TaskStage::Pending, TaskFate::AsWritten),
    ] {
        let input = TaskInput::Restored(TaskId(id), demand(60_000), TaskRecord { stage }, fate);
        assert_eq!(turn.at(1, input), []);
    }
    assert_eq!(turn.at(1, TaskInput::PolicySet(Some(policy(2, 9)))), [begin(1)]);
    assert_eq!(turn.numbers(), (2, 1, 0));
}

#[test]
fn a_record_survives_the_way_there_and_back() {
    for stage in [
        TaskStage::Pending,
        TaskStage::Begun { executor: TaskExecutor::Stub, at: Time(7), ending: Some(TaskEnd::TimedOut) },
        TaskStage::Over { end: TaskEnd::Lost },
    ] {
        let record = TaskRecord { stage };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<TaskRecord>(&text).unwrap(), record, "{text}");
    }
}
