//! `[tasks]`: what runs for prompts.

use super::*;
use crate::spec::{TaskExecutor, TasksSpec};

const POOL: &str = "[pool.agents]\ncommand = [\"true\"]\nclaims = true\n";

fn tasks(more: &str) -> TasksSpec {
    parse(&format!("{POOL}[tasks]\npool = \"agents\"\n{more}")).tasks.unwrap()
}

/// The error of a table `[tasks]` in line 4 with `more` from line 5 on.
fn wrong(more: &str) -> String {
    errors(&format!("{POOL}[tasks]\n{more}"))
}

#[test]
fn without_the_table_there_are_none_and_its_variables_mean_nothing() {
    assert_eq!(parse("").tasks, None);
    let nonsense = variables(&[("PTY_TIMEOUT_MS", "soon"), ("EXECUTOR_TYPE", "magic")]);
    assert_eq!(parse_config("", &nonsense).unwrap().tasks, None);
}

#[test]
fn printed_defaults_of_tasks_are_true() {
    let plain = tasks("");
    assert_eq!(
        (plain.command.as_slice(), plain.takes_arguments),
        (&["claude", "--headless"].map(str::to_owned)[..], true)
    );
    for key in tasks::TASK_KEYS.iter().filter(|key| !key.default.is_empty()) {
        assert_eq!(tasks(&format!("{} = {}", key.name, key.default)), plain, "{}", key.name);
    }
}

#[test]
fn every_key_of_tasks() {
    let text = "command = ['bash', '-i']\ntimeout = '2s'\nmax_concurrent = 7\nqueue = 0\ncolumns = 132\nrows = 43\n\
                executor = 'stub'\nprompt_delay_ms = 20\noutput = '1m'\nretention = '1h'\nretained = 9";
    let spec = tasks(text);
    assert_eq!((spec.pool.as_str(), spec.takes_arguments), ("agents", false));
    assert_eq!(spec.command, ["bash", "-i"]);
    assert_eq!((spec.timeout, spec.prompt_delay), (Duration::from_secs(2), Duration::from_millis(20)));
    assert_eq!((spec.columns, spec.rows, spec.output_bytes_max), (132, 43, 1 << 20));
    let policy = spec.policy;
    assert_eq!((policy.max_concurrent, policy.queue_max, policy.executor), (7, 0, TaskExecutor::Stub));
    assert_eq!((policy.retention, policy.retained_max), (Duration::from_secs(3600), 9));
}

#[test]
fn variables_override_the_file() {
    let text = format!("{POOL}[tasks]\npool = \"agents\"\ncommand = ['bash']\ntimeout = '1s'\nexecutor = 'stub'");
    let set = variables(&[
        ("CLAUDE_CLI_PATH", "/opt/my claude"),
        ("PTY_TIMEOUT_MS", "1500"),
        ("MAX_CONCURRENT_PROCESSES", "3"),
        ("PTY_TERMINAL_COLS", "100"),
        ("PTY_TERMINAL_ROWS", "30"),
        ("EXECUTOR_TYPE", "auto"),
    ]);
    let spec = parse_config(&text, &set).unwrap().tasks.unwrap();
    assert_eq!(
        (spec.command.as_slice(), spec.takes_arguments),
        (&["/opt/my claude", "--headless"].map(str::to_owned)[..], true)
    );
    assert_eq!((spec.timeout, spec.columns, spec.rows), (Duration::from_millis(1_500), 100, 30));
    assert_eq!((spec.policy.max_concurrent, spec.policy.executor), (3, TaskExecutor::Pty));
    let said = parse_config(&text, &variables(&[("PTY_TIMEOUT_MS", "soon"), ("EXECUTOR_TYPE", "ptty")])).unwrap_err();
    assert_eq!(
        said.to_string(),
        "PTY_TIMEOUT_MS: found \"soon\"; expected a duration such as \"30s\" or \"500ms\", 1ms to 1day\n\
         EXECUTOR_TYPE: found \"ptty\"; expected auto, pty, stub; did you mean \"pty\"?"
    );
}

#[test]
fn mistakes_in_tasks_are_said_with_their_line() {
    for (more, sentence) in [
        ("", "line 4: tasks: pool is missing; expected the pool whose workers run tasks"),
        ("pool = 'agent'", "line 5: tasks.pool: no pool is named \"agent\"; did you mean \"agents\"?"),
        ("pool = 'agents'\ntimeot = '1s'", "line 6: tasks.timeot: unknown key; did you mean \"timeout\"?"),
        ("pool = 'agents'\ncommand = []", "line 6: tasks.command: the command is empty; expected at least a program"),
        (
            "pool = 'agents'\nmax_concurrent = 101",
            "line 6: tasks.max_concurrent: 101 run at once, and `claims.sessions` of agents is 100; expected at most as many",
        ),
        (
            "pool = 'agents'\nqueue = -1",
            "line 6: tasks.queue: found the integer -1; expected a whole number, 0 to 10000",
        ),
        (
            "pool = 'plain'\n[pool.plain]\ncommand = ['x']",
            "line 5: tasks.pool: the workers of plain cannot be claimed; expected a pool with `claims`",
        ),
    ] {
        assert_eq!(wrong(more), sentence, "{more}");
    }
    assert_eq!(errors("[task]"), "line 1: task: unknown key; did you mean \"tasks\"?");
}
