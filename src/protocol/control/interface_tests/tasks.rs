//! What is told of tasks, as described.

use super::*;

fn info() -> TaskInfo {
    let text = || Some("x".to_string());
    TaskInfo {
        task: "x".into(),
        state: TaskState::Failed,
        owner: 1000,
        executor: text(),
        priority: 5,
        worker_id: text(),
        prompt: "x".into(),
        submitted: "2026-01-01T00:00:00Z".into(),
        began: text(),
        ended: text(),
        session: text(),
        worker: text(),
        exit: Some(Cause::Exited(1)),
        error: text(),
        progress: 90,
        timeout_ms: 1,
        estimated_duration_ms: 2,
        output_bytes: 3,
        sequence: 4,
    }
}

pub(super) fn hold_tasks(replies: &mut Replies<'_>) {
    let accepted =
        RunTaskReply { task: "x".into(), state: TaskState::Pending, estimated_duration_ms: 2_050, queued: 1 };
    replies.hold("RunTask", &accepted);
    replies.hold("ListTasks", &ListTasksReply { tasks: vec![info()] });
    let metadata = Some(serde_json::Map::new());
    replies.hold("InspectTask", &InspectTaskReply { task: info(), metadata, output: "x".into(), skipped_bytes: 1 });
    replies.hold("CancelTask", &CancelTaskReply { state: TaskState::Cancelled, was_over: true });
    let event = TaskEvent {
        sequence: 1,
        kind: TaskEventKind::Complete,
        time: Some("2026-01-01T00:00:00Z".into()),
        state: Some(TaskState::Completed),
        progress: Some(100),
        text: Some("x".into()),
        exit: Some(Cause::Exited(0)),
    };
    replies.hold("FollowTask", &FollowTaskReply { events: vec![event], missed: 1 });
    let status = TaskStatusReply { command: vec!["x".into()], last_ended: Some("x".into()), ..Default::default() };
    replies.hold("TaskStatus", &status);
    replies.hold("SwitchExecutor", &SwitchExecutorReply::default());
}

#[test]
fn every_word_of_tasks_is_described() {
    fn words<T: Serialize + std::fmt::Display>(all: &[T]) -> Type {
        assert!(all.iter().all(|word| json!(word) == json!(word.to_string())));
        Type::Enum(all.iter().map(ToString::to_string).collect())
    }
    let types = Reader::new(DESCRIPTION).interface().types;
    let states =
        [TaskState::Pending, TaskState::Running, TaskState::Completed, TaskState::Failed, TaskState::Cancelled];
    assert_eq!(types["TaskState"], words(&states));
    let kinds = [
        TaskEventKind::Status,
        TaskEventKind::Progress,
        TaskEventKind::Output,
        TaskEventKind::Complete,
        TaskEventKind::Error,
    ];
    assert_eq!(types["TaskEventKind"], words(&kinds));
}
