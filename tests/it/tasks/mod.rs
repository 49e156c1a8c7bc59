//! Tasks from the outside: prompts that are typed into real programs, what they write, how they end, who waits for whom, and
//! what a daemon that dies leaves of them.

mod bounds;
mod hostile;
mod programs;
mod stub;
mod survival;

use serde_json::Value;

use crate::fixture::Daemon;
use crate::place::Output;

/// A daemon whose tasks run a program, a word of the command each.
pub(crate) fn config(command: &[&str], more: &str) -> String {
    let command = serde_json::to_string(command).expect("a list of texts");
    format!(
        "[pool.agents]\nstop_grace = '1s'\n[pool.agents.claims]\nmin = 1\nmax = 8\n\
         [tasks]\npool = 'agents'\nretention = '10m'\ncommand = {command}\n{more}"
    )
}

const BASH: [&str; 4] = ["bash", "--norc", "--noprofile", "-i"];

/// Runs a prompt to its end, with all events that it had.
#[track_caller]
fn run(daemon: &Daemon, id: &str, more: &[&str], prompt: &str) -> (Output, Vec<Value>) {
    let mut arguments = vec!["task", "run", "--follow", "--json", "--id", id];
    arguments.extend(more);
    arguments.extend(["--", prompt]);
    let output = daemon.cli(&arguments);
    let events = events(&output);
    (output, events)
}

#[track_caller]
fn events(output: &Output) -> Vec<Value> {
    let event = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    output.stdout.lines().map(event).collect()
}

/// All that a task has written, by its events.
fn text(events: &[Value]) -> String {
    let output = events.iter().filter(|event| event["kind"] == "output");
    output.filter_map(|event| event["text"].as_str()).collect()
}

/// The states that its events tell, in order.
fn states(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["state"].as_str()).collect()
}

/// Has a prompt run, and does not wait.
#[track_caller]
fn submit(daemon: &Daemon, id: &str, prompt: &str) {
    let output = daemon.cli(&["task", "run", "--id", id, "--", prompt]);
    assert_eq!((output.status, output.stdout.trim_end()), (0, id), "{output:?}");
}

/// All tasks, in order.
#[track_caller]
fn tasks(daemon: &Daemon) -> Vec<Value> {
    events(&daemon.cli(&["task", "ls", "--json"]))
}

/// One of them, with its prompt and the last of its output.
#[track_caller]
fn inspect(daemon: &Daemon, id: &str) -> Value {
    daemon.cli(&["task", "show", id, "--json"]).json()
}

/// Waits until a task is in this state.
#[track_caller]
fn wait_state(daemon: &mut Daemon, id: &str, state: &str) -> Value {
    daemon.wait_until(&format!("task {id} is {state}"), |daemon| {
        let told = inspect(daemon, id);
        (told["task"]["state"] == state).then_some(told)
    })
}

/// Waits until a task has written this.
#[track_caller]
fn wait_output(daemon: &mut Daemon, id: &str, word: &str) {
    daemon.wait_until(&format!("task {id} writes {word}"), |daemon| {
        inspect(daemon, id)["output"].as_str().is_some_and(|text| text.contains(word)).then_some(())
    });
}

/// How many processes of this machine have this word among their arguments.
fn processes_with(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").expect("list processes").flatten();
    let has = |path: std::path::PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    processes.filter(|entry| has(entry.path())).count()
}
