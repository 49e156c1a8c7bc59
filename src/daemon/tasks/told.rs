//! What is told of tasks: lists, one of them whole, numbers, and their stories as they go on.

use std::os::fd::AsFd as _;

use super::super::clock;
use super::super::control::{Asked, Outcome, Pieces, Principal, Task as Waiting};
use super::super::state::Daemon;
use super::Task;
use super::accept::{missing, none_here};
use super::story::{Next, Spot, cut_at_character};
use crate::engine::TaskId;
use crate::protocol::control::{
    FollowTaskReply, FollowTaskRequest, InspectTaskReply, InspectTaskRequest, ListTasksReply, PIECE_TASKS_MAX,
    TASK_PROMPT_CHARS_LISTED, TaskEvent, TaskEventKind, TaskInfo, TaskStatusReply,
};
use crate::protocol::varlink::Reply;

/// How much output one event has, in bytes, and how many events, and how much output, one reply.
const EVENT_BYTES: usize = 16 * 1024;
const EVENTS_MAX: usize = 256;
const REPLY_BYTES: usize = 64 * 1024;

/// Somebody who follows a task.
#[derive(Debug)]
pub(in crate::daemon) struct Following {
    task: TaskId,
    name: String,
    spot: Spot,
}

impl Daemon {
    /// The tasks, as this user is told them.
    pub(in crate::daemon) fn list_tasks(&self, asked: Asked) -> Outcome {
        if asked.more {
            return Outcome::Wait(Waiting::Pieces(Pieces::Tasks { after: None, by: asked.by }));
        }
        let tasks = self.tasks.known.values().map(|task| self.told_task(task, asked.by)).collect();
        Outcome::Reply(Reply::last(&ListTasksReply { tasks }))
    }

    /// The next of them, and behind which the rest comes if there is any.
    pub(in crate::daemon) fn tasks_piece(
        &self,
        after: Option<TaskId>,
        by: Principal,
    ) -> (ListTasksReply, Option<TaskId>) {
        let first = after.map_or(TaskId(0), |after| TaskId(after.0 + 1));
        let mut rest = self.tasks.known.range(first..);
        let piece: Vec<(&TaskId, &Task)> = rest.by_ref().take(PIECE_TASKS_MAX).collect();
        let after = piece.last().map(|(id, _)| **id).filter(|_| rest.next().is_some());
        (ListTasksReply { tasks: piece.iter().map(|(_, task)| self.told_task(task, by)).collect() }, after)
    }

    /// A line of a list.
    fn told_task(&self, task: &Task, by: Principal) -> TaskInfo {
        let mut told = info(task);
        if self.sees_task(by, &task.name) {
            told.prompt = told.prompt.chars().take(TASK_PROMPT_CHARS_LISTED).collect();
        } else {
            told.prompt.clear();
            (told.worker_id, told.error) = (None, None);
        }
        told
    }

    /// All about a task.
    pub(in crate::daemon) fn inspect_task(&self, request: &InspectTaskRequest) -> Outcome {
        let Some((_, task)) = self.tasks.find(&request.task) else { return missing(&request.task).into() };
        let end = task.output.end();
        let mut at = task.output.next_kept(end.saturating_sub(request.output_bytes()));
        let skipped_bytes = at;
        let mut output = Vec::new();
        while at < end {
            let piece = self.output_of(task, at, EVENT_BYTES);
            if piece.is_empty() {
                break;
            }
            output.extend_from_slice(&piece);
            at = task.output.next_kept(at + u64::try_from(piece.len()).unwrap_or(u64::MAX));
        }
        Outcome::Reply(Reply::last(&InspectTaskReply {
            task: info(task),
            metadata: task.kept.metadata.clone(),
            output: String::from_utf8_lossy(&output).into_owned(),
            skipped_bytes,
        }))
    }

    /// What is there of a task's output from a place on; nothing where the disk does not give it.
    fn output_of(&self, task: &Task, from: u64, max: usize) -> Vec<u8> {
        task.output.read(self.shared.task_dir.as_fd(), from, max).unwrap_or_else(|errno| {
            tracing::warn!(target: "task", task = %task.name, %errno, "read the output of task {}", task.name);
            Vec::new()
        })
    }

    /// The tasks, in numbers.
    pub(in crate::daemon) fn task_status(&self) -> Outcome {
        let (Some(spec), Some(view)) = (&self.tasks.spec, self.engine.tasks()) else { return none_here().into() };
        Outcome::Reply(Reply::last(&TaskStatusReply {
            pool: spec.pool.to_string(),
            executor: view.executor.name().to_owned(),
            draining: view.draining,
            command: spec.command.clone(),
            columns: spec.columns,
            rows: spec.rows,
            timeout_ms: u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX),
            max_concurrent: spec.policy.max_concurrent,
            queue_max: spec.policy.queue_max,
            running: view.running,
            queued: view.queued,
            retained: view.retained,
            completed: view.totals.completed,
            failed: view.totals.failed,
            cancelled: view.totals.cancelled,
            refused: view.totals.refused,
            last_ended: self.tasks.last_ended_msec.map(time),
        }))
    }

    /// Begins to tell somebody what happens to a task.
    pub(in crate::daemon) fn follow_task(&self, request: &FollowTaskRequest) -> Outcome {
        let Some((id, task)) = self.tasks.find(&request.task) else { return missing(&request.task).into() };
        let spot = task.story.spot(request.after.unwrap_or(0));
        Outcome::Wait(Waiting::Story(Box::new(Following { task: id, name: task.name.clone(), spot })))
    }

    /// Whether there is something to tell who follows a task.
    pub(in crate::daemon) fn has_news_of_task(&self, following: &Following) -> bool {
        let task = self.tasks.known.get(&following.task);
        task.is_none_or(|task| task.story.next(following.spot) != Next::Nothing)
    }

    /// The next that happened to a task, and who still follows it.
    pub(in crate::daemon) fn next_of_task(&self, mut following: Box<Following>) -> (Reply, Waiting) {
        let Some(task) = self.tasks.known.get(&following.task) else {
            // It is known no longer, and whoever read so slowly has missed its end.
            return (missing(&following.name).to_reply(), Waiting::Idle);
        };
        let mut reply = FollowTaskReply::default();
        let mut bytes = 0;
        while reply.events.len() < EVENTS_MAX && bytes < REPLY_BYTES {
            match task.story.next(following.spot) {
                Next::Nothing => break,
                Next::End => return (Reply::last(&reply), Waiting::Idle),
                Next::Mark(mark) => {
                    following.spot = following.spot.behind_mark();
                    reply.events.push(mark.told(following.spot.number()));
                }
                Next::Output(from, until) => {
                    let kept = task.output.next_kept(from).min(until);
                    // Only what is missing before the first event of a reply can be said of it.
                    if kept > from && !reply.events.is_empty() {
                        break;
                    }
                    reply.missed += kept - from;
                    let piece = if kept < until { self.piece(task, kept, until) } else { Vec::new() };
                    if piece.is_empty() && !reply.events.is_empty() {
                        break;
                    }
                    if piece.is_empty() {
                        // What the disk does not give back is missing, too.
                        reply.missed += until - kept;
                        following.spot = following.spot.at_byte(until);
                        continue;
                    }
                    bytes += piece.len();
                    let behind = kept + u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    following.spot = following.spot.at_byte(behind);
                    reply.events.push(output_event(following.spot.number(), &piece));
                }
            }
        }
        (Reply::piece(&reply), Waiting::Story(following))
    }

    /// A piece of output that ends with a whole character, if it ends before `until`.
    fn piece(&self, task: &Task, from: u64, until: u64) -> Vec<u8> {
        let left = usize::try_from(until - from).unwrap_or(usize::MAX);
        let mut piece = self.output_of(task, from, left.min(EVENT_BYTES));
        if piece.len() < left {
            cut_at_character(&mut piece);
        }
        piece
    }
}

fn output_event(sequence: u64, piece: &[u8]) -> TaskEvent {
    TaskEvent {
        sequence,
        kind: TaskEventKind::Output,
        time: None,
        state: None,
        progress: None,
        text: Some(String::from_utf8_lossy(piece).into_owned()),
        exit: None,
    }
}

fn time(msec: u64) -> String {
    clock::rfc3339(clock::from_msec(msec))
}

fn info(task: &Task) -> TaskInfo {
    let kept = &task.kept;
    TaskInfo {
        task: task.name.clone(),
        state: kept.state(),
        owner: kept.owner,
        executor: kept.executor.clone(),
        priority: kept.priority,
        worker_id: kept.worker_id.clone(),
        prompt: kept.prompt.clone(),
        submitted: time(kept.submitted_msec),
        began: kept.began_msec.map(time),
        ended: kept.ended_msec.map(time),
        session: task.worker.is_some().then(|| task.session()),
        worker: kept.worker.clone(),
        exit: kept.exit,
        error: kept.error.clone().filter(|_| kept.state().is_over()),
        progress: task.story.progress(),
        timeout_ms: kept.timeout_ms,
        estimated_duration_ms: kept.estimate_ms,
        output_bytes: task.story.bytes(),
        sequence: task.story.end(),
    }
}
