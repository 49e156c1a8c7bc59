//! How long a task is thought to take: learned from those that have ended, once they are enough, and until then by the length
//! of its prompt. Clients wait so long before they ask for the first time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::estimated_duration;

/// So many have to have ended before anything is thought of them; after that, each new one counts one in so many.
const ENOUGH: u64 = 5;

/// What is known of how long tasks take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct Learned {
    /// How many have ended.
    tasks: u64,
    /// How long they took: of the first ones the mean, then moving towards each that comes.
    mean_ms: u64,
}

impl Learned {
    /// One has ended that nobody has ended.
    pub(super) fn add(&mut self, took_ms: u64) {
        self.tasks = self.tasks.saturating_add(1);
        let parts = self.tasks.min(ENOUGH);
        let rest = u128::from(self.mean_ms) * u128::from(parts - 1);
        self.mean_ms = u64::try_from((rest + u128::from(took_ms)) / u128::from(parts)).unwrap_or(u64::MAX);
    }

    /// How long one with this prompt is thought to take.
    pub(super) fn estimate(&self, prompt: &str) -> Duration {
        if self.tasks < ENOUGH { estimated_duration(prompt) } else { Duration::from_millis(self.mean_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_thought_of_few_and_the_latest_count_most() {
        let mut learned = Learned::default();
        for took in [100, 200, 300, 400] {
            learned.add(took);
            assert_eq!(learned.estimate("one"), Duration::from_millis(2_050));
        }
        learned.add(500);
        assert_eq!(learned.estimate("one"), Duration::from_millis(300), "the mean of the first five");
        learned.add(1_300);
        assert_eq!(learned.estimate("one"), Duration::from_millis(500), "a fifth of the way to the next");
        for _ in 0..100 {
            learned.add(10_000);
        }
        assert!(learned.estimate("").abs_diff(Duration::from_secs(10)) < Duration::from_millis(10));
        let mut longest = Learned::default();
        (0..10).for_each(|_| longest.add(u64::MAX));
        assert_eq!(longest.estimate(""), Duration::from_millis(u64::MAX));
    }
}
