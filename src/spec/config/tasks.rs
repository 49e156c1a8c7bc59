//! `[tasks]`: what runs for a prompt. Without the table there are no tasks.
//!
//! Owns its keys, and the variables of the system that had them first, which override the file and mean something only where
//! there is the table.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{Fault, Faults, Place};
use super::keys::{Bounds, Key, Written, apply, nearest, walk};
use super::node::Node;
use super::pool::Checked;
use super::pool_keys::TEXT_BYTES_MAX;
use crate::spec::{PoolName, TaskExecutor, TaskPolicy, TasksSpec};

/// What runs where nobody says anything, and what it is told.
const PROGRAM: &str = "claude";
const HEADLESS: &str = "--headless";
/// The program of that system, whose arguments it keeps.
const PROGRAM_VARIABLE: &str = "CLAUDE_CLI_PATH";
/// The most words of a command.
const WORDS_MAX: usize = 256;
/// The most cells of a terminal in one direction.
const CELLS_MAX: u64 = 1_000;
/// A variable whose name ends so is a number of milliseconds.
const MILLISECONDS: &str = "_MS";

/// `[tasks]` while it is read.
#[derive(Debug)]
pub(super) struct TasksDraft {
    pool: Option<PoolName>,
    spec: TasksSpec,
    written: Written,
    place: Place,
}

impl TasksDraft {
    fn new(place: Place) -> Result<Self, Fault> {
        let policy = TaskPolicy {
            max_concurrent: 5,
            queue_max: 100,
            executor: TaskExecutor::Pty,
            retention: Duration::from_secs(30),
            retained_max: 1_000,
        };
        // Stands in until the table has named one.
        let pool = PoolName::parse("tasks").map_err(|error| place.fault("not a name", error.expected))?;
        let spec = TasksSpec {
            pool,
            command: vec![PROGRAM.to_owned(), HEADLESS.to_owned()],
            takes_arguments: true,
            timeout: Duration::from_secs(300),
            columns: 80,
            rows: 24,
            prompt_delay: Duration::from_secs(1),
            output_bytes_max: 64 << 20,
            policy,
        };
        Ok(Self { pool: None, spec, written: Written::new(), place })
    }

    /// Where a key was written, or the table.
    fn place_of(&self, key: &str) -> Place {
        self.written.get(key).cloned().unwrap_or_else(|| self.place.clone())
    }

    fn override_by(&mut self, environment: &BTreeMap<String, String>) -> Faults {
        let mut faults = Faults::default();
        for key in TASK_KEYS.iter().filter(|key| !key.variable.is_empty()) {
            let Some(text) = environment.get(key.variable).filter(|text| !text.is_empty()) else { continue };
            let place = Place::outside(key.variable);
            self.written.insert(key.name, place.clone());
            if key.variable == PROGRAM_VARIABLE {
                let node = Node::outside(text, place, Bounds::Length(TEXT_BYTES_MAX));
                if let Some(program) = faults.note(node.text()) {
                    self.spec.command = vec![program.to_owned(), HEADLESS.to_owned()];
                    self.spec.takes_arguments = true;
                }
                continue;
            }
            let is_bare = key.variable.ends_with(MILLISECONDS) && text.bytes().all(|byte| byte.is_ascii_digit());
            let text = if is_bare { format!("{text}ms") } else { text.clone() };
            faults.note(apply(TASK_KEYS, self, key.name, &text, place));
        }
        faults
    }

    /// What it is to be, where the pool that it names can carry it.
    pub(super) fn finish(self, pools: &[Checked]) -> Result<TasksSpec, Fault> {
        let Some(name) = &self.pool else {
            return Err(self.place.fault("pool is missing", "the pool whose workers run tasks"));
        };
        let place = self.place_of("pool");
        let Some(pool) = pools.iter().find(|pool| pool.spec.name == *name).map(|pool| &pool.spec) else {
            let near = nearest(name.as_str(), pools.iter().map(|pool| pool.spec.name.as_str()));
            return Err(place.fault(format!("no pool is named {:?}", name.as_str()), "").suggest(near));
        };
        let Some(claims) = pool.policy.claims else {
            return Err(place.fault(format!("the workers of {name} cannot be claimed"), "a pool with `claims`"));
        };
        let running = self.spec.policy.max_concurrent;
        if running > claims.sessions_max {
            let what = format!("{running} run at once, and `claims.sessions` of {name} is {}", claims.sessions_max);
            return Err(self.place_of("max_concurrent").fault(what, "at most as many"));
        }
        Ok(TasksSpec { pool: name.clone(), ..self.spec })
    }
}

/// The keys of `[tasks]`.
pub(super) const TASK_KEYS: &[Key<TasksDraft>] = &[
    Key {
        name: "pool",
        aliases: &[],
        variable: "",
        kind: "name",
        default: "",
        bounds: Bounds::Prose("a pool of this file with `claims`"),
        what: "Whose workers run tasks: one that is warm, or one that is started. Needed. Each task is a session of it while it runs.",
        set: |tasks, node| {
            tasks.pool = Some(PoolName::parse(node.text()?).map_err(|error| node.fault(error.expected))?);
            Ok(())
        },
    },
    Key {
        name: "command",
        aliases: &[],
        variable: PROGRAM_VARIABLE,
        kind: "list of strings",
        default: "",
        bounds: Bounds::Items(WORDS_MAX),
        what: "What runs, and is typed the prompt. As it is written; if it is left out, `claude`, and what the variable names, with `--headless`, `--worker-id ID` where a task says one, and `--priority N`.",
        set: |tasks, node| {
            let mut faults = Faults::default();
            let mut words = Vec::new();
            for item in node.items(Bounds::Length(TEXT_BYTES_MAX))? {
                words.extend(faults.note(item.text().map(str::to_owned)));
            }
            if faults.is_empty() && words.first().is_none_or(String::is_empty) {
                faults.push(node.place.fault("the command is empty", "at least a program"));
            }
            (tasks.spec.command, tasks.spec.takes_arguments) = (words, false);
            faults.or(())
        },
    },
    Key {
        name: "timeout",
        aliases: &["timeout_ms"],
        variable: "PTY_TIMEOUT_MS",
        kind: "duration",
        default: "\"5m\"",
        bounds: Bounds::Time(Duration::from_millis(1), Duration::from_secs(86_400)),
        what: "A task that runs longer is asked to end, and after its pool's `stop_grace` is killed, with all that it started. Unless it says a time itself.",
        set: |tasks, node| {
            tasks.spec.timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "max_concurrent",
        aliases: &[],
        variable: "MAX_CONCURRENT_PROCESSES",
        kind: "integer",
        default: "5",
        bounds: Bounds::Count(1, 10_000),
        what: "So many run at once; at most `claims.sessions` of the pool. What is more waits, first come first.",
        set: |tasks, node| {
            tasks.spec.policy.max_concurrent = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "queue",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "100",
        bounds: Bounds::Count(0, 10_000),
        what: "So many wait; a further task is refused at once.",
        set: |tasks, node| {
            tasks.spec.policy.queue_max = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "cols",
        aliases: &["columns"],
        variable: "PTY_TERMINAL_COLS",
        kind: "integer",
        default: "80",
        bounds: Bounds::Count(1, CELLS_MAX),
        what: "Width of the terminal, in cells.",
        set: |tasks, node| {
            tasks.spec.columns = u16::try_from(node.count()?).ok().ok_or_else(|| node.fault("a smaller number"))?;
            Ok(())
        },
    },
    Key {
        name: "rows",
        aliases: &[],
        variable: "PTY_TERMINAL_ROWS",
        kind: "integer",
        default: "24",
        bounds: Bounds::Count(1, CELLS_MAX),
        what: "Its height.",
        set: |tasks, node| {
            tasks.spec.rows = u16::try_from(node.count()?).ok().ok_or_else(|| node.fault("a smaller number"))?;
            Ok(())
        },
    },
    Key {
        name: "executor",
        aliases: &[],
        variable: "EXECUTOR_TYPE",
        kind: "word",
        default: "\"auto\"",
        bounds: Bounds::Prose("auto, pty, stub"),
        what: "`pty`: the command, in a worker. `stub`: nothing runs, and a task takes as long as it was thought to take. `auto` is `pty`. `halsup task switch` changes it while the daemon runs.",
        set: |tasks, node| {
            let words = [("auto", TaskExecutor::Pty), ("pty", TaskExecutor::Pty), ("stub", TaskExecutor::Stub)];
            tasks.spec.policy.executor = node.word(&words)?;
            Ok(())
        },
    },
    Key {
        name: "prompt_delay",
        aliases: &["prompt_delay_ms"],
        variable: "",
        kind: "duration",
        default: "\"1s\"",
        bounds: Bounds::Time(Duration::ZERO, Duration::from_secs(3600)),
        what: "The prompt is typed as soon as the program has written something and then been quiet for a moment, and at the latest after this long.",
        set: |tasks, node| {
            tasks.spec.prompt_delay = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "output",
        aliases: &[],
        variable: "",
        kind: "size",
        default: "\"64m\"",
        bounds: Bounds::Bytes(64 << 10, 1 << 40),
        what: "So much of a task's output is kept on the disk while the task is known, as it was written; of more, the last of it.",
        set: |tasks, node| {
            tasks.spec.output_bytes_max = node.bytes()?;
            Ok(())
        },
    },
    Key {
        name: "retention",
        aliases: &[],
        variable: "",
        kind: "duration",
        default: "\"30s\"",
        bounds: Bounds::Time(Duration::from_secs(1), Duration::from_secs(30 * 86_400)),
        what: "How long a task that has ended stays known, with its output; its name is free again afterwards.",
        set: |tasks, node| {
            tasks.spec.policy.retention = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "retained",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "1000",
        bounds: Bounds::Count(1, 10_000),
        what: "Of those, so many at the most; the oldest give way.",
        set: |tasks, node| {
            tasks.spec.policy.retained_max = node.count_u32()?;
            Ok(())
        },
    },
];

/// Reads `[tasks]`.
pub(super) fn read(node: &Node<'_>, environment: &BTreeMap<String, String>) -> Result<TasksDraft, Faults> {
    let mut draft = TasksDraft::new(node.place.clone())?;
    let (written, mut faults) = walk(TASK_KEYS, &mut draft, node.table()?, &node.place);
    draft.written = written;
    faults.append(draft.override_by(environment));
    faults.or(draft)
}
