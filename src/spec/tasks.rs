//! Tasks: what is run for a prompt, and how many at once.

use std::time::Duration;

use super::PoolName;

/// The least and the most that a prompt, typed by nobody, is thought to take, and what each of its words adds, in milliseconds.
const ESTIMATE_MS: (u64, u64, u64) = (2_000, 30_000, 50);

/// What runs tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskExecutor {
    /// A program in a worker, under a terminal.
    Pty,
    /// Nothing: a task takes as long as it was thought to take. For trying out what is in front of it.
    Stub,
}

impl TaskExecutor {
    /// Its name, everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pty => "pty",
            Self::Stub => "stub",
        }
    }
}

/// What the engine decides about tasks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskPolicy {
    /// At most so many run at once; at least 1.
    pub max_concurrent: u32,
    /// At most so many wait; one more is refused.
    pub queue_max: u32,
    /// What runs those that begin, until somebody switches.
    pub executor: TaskExecutor,
    /// How long one that has ended stays known.
    pub retention: Duration,
    /// At most so many that have ended stay known.
    pub retained_max: u32,
}

/// `[tasks]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TasksSpec {
    /// Whose workers run them.
    pub pool: PoolName,
    /// What runs; a task's own arguments follow it where it `takes_arguments`.
    pub command: Vec<String>,
    /// Whether `--worker-id` and `--priority` are added as a task says them.
    pub takes_arguments: bool,
    /// How long one may run that does not say so itself.
    pub timeout: Duration,
    /// Width of the terminal in cells.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
    /// After this long the prompt is typed even if the program is not quiet yet, or has said nothing.
    pub prompt_delay: Duration,
    /// So much of the output is kept at the most, in bytes; the last of it.
    pub output_bytes_max: u64,
    /// What the engine decides by.
    pub policy: TaskPolicy,
}

/// How long a task with this prompt is thought to take.
#[must_use]
pub fn estimated_duration(prompt: &str) -> Duration {
    let (least, most, each) = ESTIMATE_MS;
    let words = u64::try_from(prompt.split_whitespace().count()).unwrap_or(u64::MAX);
    Duration::from_millis(words.saturating_mul(each).saturating_add(least).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_thought_to_take_two_seconds_and_fifty_milliseconds_a_word_up_to_half_a_minute() {
        for (prompt, expected) in [("", 2_000), ("one", 2_050), (" a  b\nc ", 2_150), (&"w ".repeat(10_000), 30_000)] {
            assert_eq!(estimated_duration(prompt), Duration::from_millis(expected), "{prompt:.20}");
        }
    }
}
