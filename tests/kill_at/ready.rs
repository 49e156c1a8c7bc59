//! How long a daemon took to be ready, without the time in which a busy machine kept it from running.
//!
//! The kernel counts for each thread how long it was runnable and had no processor (`/proc/PID/schedstat`, the second number,
//! in nanoseconds). That is no doing of the daemon's, and is not held against it: neither its own wait nor that of the thread
//! that times it, to which a message may come in time and be read late. Both may have waited at the same moment, so only
//! the longer of the two waits counts. What is left, its computing and whatever it blocks on, has to keep the budget as it is.

#![expect(clippy::disallowed_methods, reason = "starts are timed by the real clock")]

use std::fs;
use std::time::{Duration, Instant};

/// Begins to time a start.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    begun: Instant,
    /// How long the thread that times it had waited before.
    waited_before: Duration,
}

/// How long a daemon took to be ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// Without the time in which it waited for a processor.
    pub(crate) own: Duration,
    /// That time.
    #[expect(dead_code, reason = "it is told with the other")]
    waited: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { begun: Instant::now(), waited_before: waited("thread-self") }
    }

    pub(crate) const fn begun(&self) -> Instant {
        self.begun
    }

    /// Of this process, which has one thread, and was started since; timed by the thread that has started the watch, or another that
    /// has waited less.
    pub(crate) fn ready(&self, pid: u32) -> Ready {
        let took = self.begun.elapsed();
        let timer = waited("thread-self").saturating_sub(self.waited_before);
        let waited = waited(&pid.to_string()).max(timer);
        Ready { own: took.saturating_sub(waited), waited }
    }
}

/// How long a thread of `/proc` was runnable and did not run; nothing where the kernel does not count that.
fn waited(thread: &str) -> Duration {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default();
    let nanoseconds = text.split(' ').nth(1).and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
