//! `halsup task`: prompts that are typed into a program under a terminal, and what comes of them.
//!
//! What a program writes is escaped line by line, so that it cannot drive the terminal it is shown on; `--raw` passes it
//! on as it is.

use std::io::Read as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::context::Context;
use super::error::Error;
use super::human;
use super::output;
use super::table::{pairs, table};
use crate::exit_code::ExitCode;
use crate::protocol::control::{
    CancelTaskReply, Cause, FollowTaskReply, FollowTaskRequest, InspectTaskReply, InspectTaskRequest, ListTasksReply,
    NoParameters, Request, RunTaskReply, RunTaskRequest, SwitchExecutorReply, SwitchExecutorRequest,
    TASK_OUTPUT_BYTES_MAX, TASK_PROMPT_BYTES_MAX, TaskEvent, TaskEventKind, TaskInfo, TaskRequest, TaskState,
    TaskStatusReply, is_task_name,
};
use crate::protocol::escape;
use crate::spec::parse_duration;

/// Why a task failed that took too long begins so.
const TIMED_OUT: &str = "Process timed out after";

/// Run prompts in a program under a terminal, as `[tasks]` in the configuration says, and look after them.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Run(Box<Run>),
    /// List the tasks that wait, run, or are still known.
    #[command(alias = "list")]
    Ls,
    Show(Show),
    Cancel(Cancel),
    Follow(Follow),
    /// Show what runs tasks, and how many there are.
    Status,
    Switch(Switch),
}

/// Have a prompt typed into a program, and print the task's name; with --follow all that it writes, and return its status.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// What is typed; `-` reads it from standard input.
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    prompt: String,
    /// End it after this long, as in `30s` [default: as configured].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Passed on to the program, 1 to 10 [default: 5].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=10))]
    priority: Option<u8>,
    /// What the task is called [default: a name that no other has].
    #[arg(long, value_name = "NAME", value_parser = task_name)]
    id: Option<String>,
    /// Passed on to the program.
    #[arg(long, value_name = "ID")]
    worker_id: Option<String>,
    /// Passed on to the program: a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    metadata: Option<Map<String, Value>>,
    /// Print what it writes until it is over.
    #[arg(short, long)]
    follow: bool,
    /// With --follow: as it is, whatever that does to the terminal.
    #[arg(long, requires = "follow")]
    raw: bool,
}

/// Show a task, and the last of its output.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Which.
    #[arg(value_name = "NAME")]
    task: String,
    /// Show at most so many bytes of its output.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(..=TASK_OUTPUT_BYTES_MAX))]
    bytes: Option<u64>,
}

/// End tasks, with all that they started.
#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// Which.
    #[arg(value_name = "NAME", required = true)]
    tasks: Vec<String>,
}

/// Print what a task has written and writes, until it is over, and return its status.
#[derive(Debug, Args)]
pub(super) struct Follow {
    /// Which.
    #[arg(value_name = "NAME")]
    task: String,
    /// Begin behind this place, the `sequence` of an event that is known.
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// As it is, whatever that does to the terminal.
    #[arg(long)]
    raw: bool,
}

/// Have tasks that begin from now on run by another executor; those that run go on.
#[derive(Debug, Args)]
pub(super) struct Switch {
    /// pty runs the program, stub nothing.
    #[arg(value_name = "EXECUTOR", value_parser = ["pty", "stub", "auto"])]
    executor: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| format!("expected {}", error.expected))
}

fn task_name(text: &str) -> Result<String, String> {
    let expected = "expected 1 to 59 of a-z, A-Z, 0-9, '_' and '-', not '-' first";
    if is_task_name(text) { Ok(text.to_owned()) } else { Err(expected.to_owned()) }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Run(verb) => verb.run(context),
            Self::Ls => list(context),
            Self::Show(verb) => verb.run(context),
            Self::Cancel(verb) => verb.run(context),
            Self::Follow(Follow { task, after, raw }) => follow(context, FollowTaskRequest { task, after }, raw),
            Self::Status => {
                let reply: TaskStatusReply = context.client()?.call(&Request::TaskStatus(NoParameters {}))?;
                context.output.answer(&reply, status)
            }
            Self::Switch(Switch { executor }) => {
                let request = Request::SwitchExecutor(SwitchExecutorRequest { executor });
                let reply: SwitchExecutorReply = context.client()?.call(&request)?;
                context.output.answer(&reply, switched)
            }
        }
    }
}

impl Run {
    fn run(self, context: &Context) -> Result<(), Error> {
        let prompt = if self.prompt == "-" { read_prompt()? } else { self.prompt };
        let timeout_ms = self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let request = RunTaskRequest {
            prompt,
            task: self.id,
            worker_id: self.worker_id,
            priority: self.priority,
            metadata: self.metadata,
            timeout_ms,
        };
        let reply: RunTaskReply = context.client()?.call(&Request::RunTask(Box::new(request)))?;
        if !self.follow {
            return context.output.answer(&reply, |reply| reply.task.clone());
        }
        follow(context, FollowTaskRequest { task: reply.task, after: None }, self.raw)
    }
}

/// What stands on standard input, without its last line end: the prompt is sent with one of its own.
fn read_prompt() -> Result<String, Error> {
    let limit = u64::try_from(TASK_PROMPT_BYTES_MAX + 2).unwrap_or(u64::MAX);
    let mut read = Vec::new();
    std::io::stdin().lock().take(limit).read_to_end(&mut read).map_err(|source| Error::Input { source })?;
    let mut text = String::from_utf8(read)
        .map_err(|error| Error::Usage { reason: format!("the prompt is not UTF-8: {}", error.utf8_error()) })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn list(context: &Context) -> Result<(), Error> {
    let mut tasks = Vec::new();
    context.client()?.call_more(&Request::ListTasks(NoParameters {}), |reply: ListTasksReply| {
        tasks.extend(reply.tasks);
        Ok(())
    })?;
    if context.output.is_json() {
        return tasks.iter().try_for_each(|task| context.output.json_line(task));
    }
    context.output.text(&rows(&tasks))
}

fn rows(tasks: &[TaskInfo]) -> String {
    let rows = tasks.iter().map(|task| {
        [
            task.task.clone(),
            task.state.to_string(),
            task.executor.clone().unwrap_or_else(|| "-".into()),
            format!("{}%", task.progress),
            task.priority.to_string(),
            human::bytes(task.output_bytes),
            task.submitted.clone(),
            task.prompt.clone(),
        ]
    });
    table(["TASK", "STATE", "EXECUTOR", "PROGRESS", "PRIORITY", "OUTPUT", "SUBMITTED", "PROMPT"], rows)
}

impl Show {
    fn run(self, context: &Context) -> Result<(), Error> {
        let request = InspectTaskRequest { task: self.task, output_bytes: self.bytes };
        let reply: InspectTaskReply = context.client()?.call(&Request::InspectTask(request))?;
        context.output.answer(&reply, shown)
    }
}

fn shown(reply: &InspectTaskReply) -> String {
    let task = &reply.task;
    let metadata = reply.metadata.as_ref().and_then(|metadata| serde_json::to_string(metadata).ok());
    let told = pairs([
        ("task", Some(task.task.clone())),
        ("state", Some(task.state.to_string())),
        ("error", task.error.clone()),
        ("exit", task.exit.map(|exit| exit.to_string())),
        ("progress", Some(format!("{}%", task.progress))),
        ("executor", task.executor.clone()),
        ("worker", task.worker.clone()),
        ("session", task.session.clone()),
        ("owner", Some(format!("uid {}", task.owner))),
        ("priority", Some(task.priority.to_string())),
        ("worker id", task.worker_id.clone()),
        ("metadata", metadata),
        ("submitted", Some(task.submitted.clone())),
        ("began", task.began.clone()),
        ("ended", task.ended.clone()),
        ("timeout", Some(format!("{}ms", task.timeout_ms))),
        ("estimate", Some(format!("{}ms", task.estimated_duration_ms))),
        ("output", Some(format!("{} bytes", task.output_bytes))),
        ("prompt", Some(task.prompt.clone())),
    ]);
    let before = match reply.skipped_bytes {
        0 => String::new(),
        skipped => format!("({skipped} bytes before)\n"),
    };
    format!("{told}\n{before}{}", safe(&reply.output))
}

impl Cancel {
    fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        for task in self.tasks {
            let shown = escape::text(&task).into_owned();
            let reply: CancelTaskReply = client.call(&Request::CancelTask(TaskRequest { task }))?;
            context.output.answer(&reply, |reply| {
                let before = if reply.was_over { " already" } else { "" };
                format!("{shown} is {}{before}", reply.state)
            })?;
        }
        Ok(())
    }
}

fn status(reply: &TaskStatusReply) -> String {
    let others = if reply.draining > 0 { format!(", {} by another executor", reply.draining) } else { String::new() };
    pairs([
        ("executor", Some(reply.executor.clone())),
        ("pool", Some(reply.pool.clone())),
        ("command", Some(reply.command.join(" "))),
        ("terminal", Some(format!("{}x{}", reply.columns, reply.rows))),
        ("timeout", Some(format!("{}ms", reply.timeout_ms))),
        ("running", Some(format!("{} of {}{others}", reply.running, reply.max_concurrent))),
        ("queued", Some(format!("{} of {}", reply.queued, reply.queue_max))),
        ("known", Some(reply.retained.to_string())),
        ("completed", Some(reply.completed.to_string())),
        ("failed", Some(reply.failed.to_string())),
        ("cancelled", Some(reply.cancelled.to_string())),
        ("refused", Some(reply.refused.to_string())),
        ("last ended", reply.last_ended.clone()),
    ])
}

fn switched(reply: &SwitchExecutorReply) -> String {
    let draining = match reply.draining {
        0 => String::new(),
        count => format!("; {count} still run in {}", if reply.executor == "pty" { "stub" } else { "pty" }),
    };
    format!("tasks that begin from now on run in {} (before: {}){draining}", reply.executor, reply.previous)
}

/// Output of a program as lines that are safe to look at.
fn safe(text: &str) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let line = line.strip_suffix('\r').unwrap_or(line);
        format!("{}{end}", escape::line(line))
    });
    lines.collect()
}

/// Prints a task's story, and ends as its program did.
fn follow(context: &Context, request: FollowTaskRequest, raw: bool) -> Result<(), Error> {
    let mut printer = Printer { context, raw, rest: String::new(), last: None };
    let knows_some = request.after.is_some();
    context.client()?.call_more(&Request::FollowTask(request), |reply: FollowTaskReply| printer.take(reply))?;
    printer.finish_line()?;
    match printer.last {
        // Whoever knew its last event already is told nothing.
        None if knows_some => Ok(()),
        None => Err(Error::Lost { method: "FollowTask" }),
        Some(last) => end_like(&last),
    }
}

/// Ends with the status that a program left which was run in the foreground.
fn end_like(last: &TaskEvent) -> Result<(), Error> {
    let Some(error) = &last.text else { return Ok(()) };
    output::complain_text(error);
    let code = match last.exit {
        Some(_) if error.starts_with(TIMED_OUT) => ExitCode::Saturated as u8,
        Some(Cause::Exited(code)) if code != 0 => u8::try_from(code & 0xff).unwrap_or(ExitCode::Failed as u8),
        Some(Cause::Signal(signal)) => u8::try_from(128 + signal).unwrap_or(ExitCode::Failed as u8),
        Some(Cause::Oom) => 137,
        Some(_) | None => ExitCode::Failed as u8,
    };
    Err(Error::Ended { code })
}

struct Printer<'a> {
    context: &'a Context,
    raw: bool,
    /// What has no line end yet.
    rest: String,
    last: Option<TaskEvent>,
}

impl Printer<'_> {
    fn take(&mut self, reply: FollowTaskReply) -> Result<(), Error> {
        if reply.missed > 0 {
            output::complain_text(&format!("{} bytes of output are missing here", reply.missed));
        }
        for event in reply.events {
            if self.context.output.is_json() {
                self.context.output.json_line(&event)?;
            } else {
                self.print(&event)?;
            }
            if matches!(event.kind, TaskEventKind::Complete | TaskEventKind::Error) {
                self.last = Some(event);
            }
        }
        Ok(())
    }

    fn print(&mut self, event: &TaskEvent) -> Result<(), Error> {
        match (event.kind, &event.text, event.state) {
            (TaskEventKind::Output, Some(text), _) if self.raw => self.context.output.bytes(text.as_bytes()),
            (TaskEventKind::Output, Some(text), _) => {
                self.rest.push_str(text);
                let whole = self.rest.rfind('\n').map_or(0, |at| at + 1);
                let lines: String = self.rest.drain(..whole).collect();
                self.context.output.text(&safe(&lines))
            }
            (TaskEventKind::Status, _, Some(state)) if state != TaskState::Pending => {
                self.finish_line()?;
                output::complain_text(&format!("the task is {state}"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What was written last is a line, line end or not.
    fn finish_line(&mut self) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.rest);
        self.context.output.text(&safe(&rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_writes_cannot_drive_a_terminal() {
        assert_eq!(safe("a\r\n\u{1b}[2Jb\r\n\tc"), "a\n\\x1b[2Jb\n\tc");
        assert_eq!(safe(""), "");
    }

    #[test]
    fn a_task_ends_as_its_program_did() {
        let event = |text: Option<&str>, exit| TaskEvent {
            sequence: 1,
            kind: TaskEventKind::Error,
            time: None,
            state: None,
            progress: None,
            text: text.map(str::to_owned),
            exit,
        };
        let code = |event: &TaskEvent| match end_like(event) {
            Ok(()) => 0,
            Err(Error::Ended { code }) => code,
            Err(error) => panic!("{error}"),
        };
        for (text, exit, expected) in [
            (None, Some(Cause::Exited(0)), 0),
            (Some("Process exited with code 7"), Some(Cause::Exited(7)), 7),
            (Some("Process was killed"), Some(Cause::Signal(9)), 137),
            (Some("Process timed out after 5ms"), Some(Cause::Signal(15)), 4),
            (Some("cancelled"), None, 1),
            (Some("cancelled"), Some(Cause::Exited(0)), 1),
        ] {
            assert_eq!(code(&event(text, exit)), expected, "{text:?}");
        }
    }

    #[test]
    fn a_list_shows_prompts_as_text() {
        let info = TaskInfo {
            task: "x".into(),
            state: TaskState::Running,
            owner: 0,
            executor: Some("pty".into()),
            priority: 5,
            worker_id: None,
            prompt: "\u{1b}[2Jls\r".into(),
            submitted: "2026-01-01T00:00:00Z".into(),
            began: None,
            ended: None,
            session: None,
            worker: None,
            exit: None,
            error: None,
            progress: 10,
            timeout_ms: 1,
            estimated_duration_ms: 1,
            output_bytes: 1536,
            sequence: 9,
        };
        let text = rows(&[info]);
        assert_eq!(
            text.lines().nth(1),
            Some("x     running  pty       10%       5         1.5K    2026-01-01T00:00:00Z  \\x1b[2Jls\\r")
        );
    }
}
