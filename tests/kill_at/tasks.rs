//! A scenario with tasks: one that runs and one that waits for it, each with an end of its own.
//!
//! Whenever the daemon dies: a task that was accepted is there and comes to its true end, the one that waited is run, none is run
//! twice, and what was printed is in the file of its output, but for what the daemon had taken from a terminal at that moment.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::checker::line::Line;
use crate::checker::{Findings, Invariant, pause};
use crate::requests::ledger;
use crate::scenarios::{From, Keep, Scenario};
use crate::scene::Scene;
use crate::site::Site;

/// How long the next daemon may take until all are over.
const PATIENCE: Duration = Duration::from_secs(40);
/// How soon it is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A program that ends as its prompt says, and writes down what it does.
pub(crate) const PROGRAM: &str = r#"
echo "begin $CLAUDE_TASK_ID" >>/mnt/ledger
echo "hello of $CLAUDE_TASK_ID"
read -r code
echo "got $code of $CLAUDE_TASK_ID"
echo "end $CLAUDE_TASK_ID" >>/mnt/ledger
exit "$code"
"#;

const RUNS: &str = "[pool.agents]\nbind = ['{DIR}/seen:/mnt:rw']\n[pool.agents.claims]\nmin = 1\nmax = 2\n\
    [tasks]\npool = 'agents'\ncommand = ['sh', '/mnt/task.sh']\nmax_concurrent = 1\ntimeout = '10s'\n";

/// All of them.
pub(crate) const ALL: &[Scenario] = &[Scenario {
    name: "task",
    from: From::Order,
    keep: Keep::Runs,
    config: RUNS,
    prepare: agents_are_up,
    act: two_tasks,
}];

/// What was heard of a task.
#[derive(Debug)]
pub(crate) struct Heard {
    name: &'static str,
    /// What its program ends with.
    code: u8,
    is_accepted: bool,
    /// What it has written, as far as that was told.
    text: String,
    /// The state that it was over in, if that was told.
    over: Option<Value>,
}

fn agents_are_up(scene: &mut Scene<'_>) -> Option<()> {
    scene.state("agents.0", "healthy")
}

fn two_tasks(scene: &mut Scene<'_>) -> Option<()> {
    submit(scene, "one", 0)?;
    submit(scene, "two", 3)?;
    follow(scene, 0)?;
    follow(scene, 1)
}

fn submit(scene: &mut Scene<'_>, name: &'static str, code: u8) -> Option<()> {
    let answer = scene.ask("RunTask", &json!({ "task": name, "prompt": code.to_string() }));
    let is_accepted = answer.as_ref().is_some_and(|answer| answer["error"].is_null());
    scene.told.tasks.push(Heard { name, code, is_accepted, text: String::new(), over: None });
    answer.map(drop)
}

/// Follows one to its end.
fn follow(scene: &mut Scene<'_>, number: usize) -> Option<()> {
    let mut line = scene.line()?;
    let heard = scene.told.tasks.get_mut(number)?;
    line.say("FollowTask", &json!({ "task": heard.name }), true)?;
    loop {
        let reply = line.next()?;
        for event in reply["parameters"]["events"].as_array().into_iter().flatten() {
            heard.text.push_str(event["text"].as_str().filter(|_| event["kind"] == "output").unwrap_or_default());
            if is_over(&event["state"]) {
                heard.over = Some(event["state"].clone());
            }
        }
        if reply["continues"] != true {
            return heard.over.as_ref().map(drop);
        }
    }
}

fn is_over(state: &Value) -> bool {
    ["completed", "failed", "cancelled"].iter().any(|over| state == over)
}

/// All tasks, once they are over, or when they have taken too long.
fn wait_over(site: &Site) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = Line::connect(&site.instance.control(), PATIENCE).ok();
        let listed = line.and_then(|mut line| line.ask("ListTasks", &json!({}))).unwrap_or_default();
        let tasks = listed["parameters"]["tasks"].as_array().cloned().unwrap_or_default();
        if tasks.iter().all(|task| is_over(&task["state"])) || Instant::now() > deadline {
            return tasks;
        }
        pause(LOOK_AGAIN);
    }
}

/// Holds what was heard of tasks against what their programs have written down, once the next daemon has seen all of them to
/// their ends. `kills`: how many daemons were killed.
pub(crate) fn judge(site: &Site, heard: &[Heard], kills: usize, found: &mut Findings) {
    let tasks = wait_over(site);
    let ledger = ledger(site);
    let (mut unfinished, mut incomplete) = (0, Vec::new());
    for heard in heard {
        let name = heard.name;
        let noted = |what: &str| ledger.iter().filter(|line| **line == format!("{what} {name}")).count();
        let (begun, ended) = (noted("begin"), noted("end"));
        if begun > 1 {
            found.add(Invariant::Answers, format!("task {name} was begun {begun} times"));
        }
        let Some(task) = tasks.iter().find(|task| task["task"] == name) else {
            if heard.is_accepted || begun > 0 {
                found
                    .add(Invariant::Truth, format!("begun {begun} times, and the next daemon does not know {heard:?}"));
            }
            continue;
        };
        if ended == 0 {
            // Its program was about to start, or its prompt about to be typed, when a daemon was killed.
            unfinished += 1;
            let error = task["error"].as_str().unwrap_or_default();
            let why = ["nobody knows what became of it", "Process timed out after 10000ms"];
            if task["state"] != "failed" || !why.iter().any(|why| error.ends_with(why)) {
                found.add(Invariant::Truth, format!("begun {begun} times and never ended: {task}"));
            }
        } else {
            let state = if heard.code == 0 { "completed" } else { "failed" };
            if task["state"] != state || task["exit"] != format!("exited {}", heard.code) {
                found.add(Invariant::Truth, format!("{heard:?} ended, and is told as {task}"));
            }
        }
        if heard.over.as_ref().is_some_and(|over| *over != task["state"]) {
            found.add(Invariant::Truth, format!("after {heard:?}, it is told as {task}"));
        }
        incomplete.extend(printed(site, heard, ended, found));
    }
    if unfinished > kills {
        found.add(Invariant::Truth, format!("{kills} kills, and {unfinished} tasks did not come to their ends"));
    }
    // What a daemon had taken from a terminal and not written when it was killed, nobody has: one program's, as one runs at a time.
    if incomplete.len() > kills {
        found.add(Invariant::Truth, format!("{kills} kills, and of more tasks something is missing: {incomplete:?}"));
    }
}

/// Looks whether the file of a task's output holds what was told of it and nothing twice; what it is, if something is missing.
fn printed(site: &Site, heard: &Heard, ended: usize, found: &mut Findings) -> Option<String> {
    let name = heard.name;
    let text = fs::read_to_string(site.path(&format!("state/tasks/{name}.0"))).unwrap_or_default();
    if !text.starts_with(&heard.text) {
        found.add(Invariant::Truth, format!("task {name} has {text:?}, and {:?} was told", heard.text));
    }
    let lines = [format!("hello of {name}"), format!("got {} of {name}", heard.code)];
    let counts = lines.map(|line| text.matches(&line).count());
    if counts.iter().any(|count| *count > 1) {
        found.add(Invariant::Truth, format!("task {name} has printed each line once, and its output is {text:?}"));
    }
    (ended > 0 && counts.contains(&0)).then(|| format!("{name}: {text:?}"))
}
