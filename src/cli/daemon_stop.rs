//! `halsup daemon stop`: asks the daemon to end, and waits until it is gone.
//!
//! Gone is what the kernel says: the connection has ended and the pidfd of the daemon is readable. Where no daemon runs
//! there is nothing to do, which is no error.

use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::stopwatch::Stopwatch;
use crate::protocol::control::{
    NoParameters, Request, SHUTDOWN_TIMEOUT_MS_MAX, ShutdownReply, ShutdownRequest, StatusReply,
};
use crate::spec::parse_duration;

/// How long the process may take to end after it has closed its connection.
const EXIT_SECONDS_MAX: i64 = 10;

/// End all workers, then the daemon; waits until it is gone. Does nothing where none runs.
#[derive(Debug, Default, Args)]
pub(super) struct Stop {
    /// After this long everything is killed, such as 30s [default: as configured].
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(super) timeout: Option<Duration>,
    /// End the daemon alone: the next one takes its workers over (on_supervisor_death says how long they wait for it).
    #[arg(long, conflicts_with = "timeout")]
    pub(super) keep_workers: bool,
}

/// What a stop amounted to.
#[derive(Debug, Serialize)]
struct Stopped {
    was_running: bool,
    pid: Option<u32>,
    stopped_ms: u64,
    stuck: Vec<String>,
}

impl Stop {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let stopwatch = Stopwatch::start();
        let mut client = match context.client() {
            Ok(client) => client,
            Err(Error::Unreachable { .. }) => {
                let nothing = Stopped { was_running: false, pid: None, stopped_ms: 0, stuck: Vec::new() };
                return context.output.answer(&nothing, |_| "no halsup daemon runs".into());
            }
            Err(error) => return Err(error),
        };
        let StatusReply { pid, .. } = client.call(&Request::Status(NoParameters {}))?;
        let stuck = self.stop(&mut client, pid)?;
        let stopped_ms = u64::try_from(stopwatch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let stopped = Stopped { was_running: true, pid: Some(pid), stopped_ms, stuck };
        context.output.answer(&stopped, |_| format!("halsup daemon stopped (pid {pid}) after {stopped_ms} ms"))?;
        if stopped.stuck.is_empty() { Ok(()) } else { Err(Error::Stuck { workers: stopped.stuck }) }
    }

    fn stop(&self, client: &mut Client, pid: u32) -> Result<Vec<String>, Error> {
        // Opened while the daemon still answers, so it is this daemon's pid and no later one's.
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let timeout_ms = self.timeout.and_then(|timeout| u64::try_from(timeout.as_millis()).ok());
        let mut stuck = Vec::new();
        client.call_more(
            &Request::Shutdown(ShutdownRequest { timeout_ms, keep_workers: self.keep_workers.then_some(true) }),
            |reply: ShutdownReply| {
                stuck = reply.stuck;
                Ok(())
            },
        )?;
        client.wait_for_end();
        // A daemon in another pid namespace has no pid here; that its connection ended is then all that can be known.
        if let Some(Ok(process)) = process {
            let limit = Timespec { tv_sec: EXIT_SECONDS_MAX, tv_nsec: 0 };
            let ended = loop {
                match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
                    Err(rustix::io::Errno::INTR) => {}
                    outcome => break outcome.map_err(|errno| Error::Wait { source: errno.into() })?,
                }
            };
            if ended == 0 {
                return Err(Error::StillRuns { pid, seconds: EXIT_SECONDS_MAX });
            }
        }
        Ok(stuck)
    }
}

/// For clap: a duration with its unit, at most a day.
fn timeout(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if duration <= Duration::from_millis(SHUTDOWN_TIMEOUT_MS_MAX) { Ok(duration) } else { Err("at most 1d".into()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::protocol::varlink::Reply;

    #[test]
    fn a_stop_waits_for_the_last_answer_and_the_end() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let left = |remaining: u32, stuck: &[&str]| ShutdownReply {
            remaining,
            stuck: stuck.iter().map(|name| (*name).into()).collect(),
        };
        far.write_all(&Reply::piece(&left(2, &[])).encode()).unwrap();
        far.write_all(&Reply::last(&left(1, &["web.3"])).encode()).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        // No process can have this pid, as none of another pid namespace has one here.
        let stuck = Stop::default().stop(&mut Client::over(near), u32::MAX).unwrap();
        assert_eq!(stuck, ["web.3"]);
    }

    #[test]
    fn a_daemon_that_breaks_off_has_not_stopped() {
        let (near, far) = UnixStream::pair().unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        let error = Stop::default().stop(&mut Client::over(near), u32::MAX).unwrap_err();
        assert!(matches!(error, Error::Lost { method: "Shutdown" }));
    }
}
