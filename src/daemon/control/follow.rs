//! Streams that go on until the client says something else: events, lines of logs, the end of the daemon.
//!
//! Events wait in the ring, and a slow reader misses some. Lines are put together from what workers write only for workers
//! that somebody follows; a reader that is too slow for them is let go.

use std::collections::BTreeMap;

use super::super::clock;
use super::super::state::Daemon;
use super::client::{Client, Task};
use super::dispatch::PIECE_EVENTS_MAX;
use super::orders::covers;
use super::output::QUEUED_BYTES_MAX;
use crate::engine::{State, Target as EngineTarget};
use crate::host::logfile::{Lines, Stream};
use crate::protocol::control::{LogEntry, LogsReply, ShutdownReply, Stream as WireStream};
use crate::protocol::escape;
use crate::protocol::varlink::Reply;
use crate::spec::WorkerId;

/// What an entry costs beside its text, in bytes.
const ENTRY_BYTES: usize = 128;

/// Lines on their way to one follower.
#[derive(Debug)]
pub(in crate::daemon) struct LogFollower {
    target: EngineTarget,
    entries: Vec<LogEntry>,
    bytes: usize,
}

impl LogFollower {
    pub(super) const fn new(target: EngineTarget) -> Self {
        Self { target, entries: Vec::new(), bytes: 0 }
    }

    pub(super) const fn has_lines(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Takes what has come together since the reply before.
    pub(super) fn take(&mut self) -> LogsReply {
        self.bytes = 0;
        LogsReply { entries: std::mem::take(&mut self.entries) }
    }

    /// Adds a line. `false`: more wait than may.
    fn add(&mut self, entry: &LogEntry) -> bool {
        self.bytes = self.bytes.saturating_add(entry.text.len() + ENTRY_BYTES);
        if self.bytes > QUEUED_BYTES_MAX {
            self.entries = Vec::new();
            return false;
        }
        self.entries.push(entry.clone());
        true
    }
}

/// What of each followed worker's streams has no newline yet.
#[derive(Debug, Default)]
pub(super) struct FollowedLines(BTreeMap<WorkerId, (Lines, Lines)>);

impl FollowedLines {
    fn feed(&mut self, worker: WorkerId, stream: Stream, bytes: &[u8]) -> Vec<String> {
        let (stdout, stderr) = self.0.entry(worker).or_default();
        let lines = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        let mut whole = Vec::new();
        lines.feed(bytes, |line, _end| whole.push(escape::bytes(line)));
        whole
    }
}

impl Client {
    /// What collects the lines of `worker` for this client, if it follows it: a worker whose last lines it has not been
    /// told yet will be read from its file.
    fn follower_of(&mut self, worker: WorkerId) -> Option<&mut LogFollower> {
        let (follower, reached) = match &mut self.task {
            Task::Logs(follower) => (follower, None),
            Task::Pieces(pieces) => pieces.follower()?,
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Events(_)
            | Task::Telemetry(..)
            | Task::Attached(_)
            | Task::Piped(_)
            | Task::Story(_)
            | Task::Shutdown(_)
            | Task::Import(..) => return None,
        };
        let told = reached.is_none_or(|reached| worker <= reached);
        (told && covers(follower.target, worker)).then_some(follower)
    }

    fn follows_logs(&mut self) -> bool {
        match &mut self.task {
            Task::Logs(_) => true,
            Task::Pieces(pieces) => pieces.follower().is_some(),
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Events(_)
            | Task::Telemetry(..)
            | Task::Attached(_)
            | Task::Piped(_)
            | Task::Story(_)
            | Task::Shutdown(_)
            | Task::Import(..) => false,
        }
    }
}

impl Daemon {
    /// Hands what a worker wrote to whoever follows its log, line by line. Before or after [`LogFile::append`], but in the
    /// same turn.
    ///
    /// [`LogFile::append`]: crate::host::logfile::LogFile::append
    pub(in crate::daemon) fn log_line(&mut self, worker: WorkerId, stream: Stream, bytes: &[u8]) {
        if self.control.clients.values_mut().any(|client| client.follower_of(worker).is_some()) {
            let lines = self.control.lines.feed(worker, stream, bytes);
            self.hand_out(worker, stream, lines);
        }
    }

    /// A worker has ended: what it wrote last is a line, newline or not.
    pub(in crate::daemon) fn finish_followed_lines(&mut self, worker: WorkerId) {
        let Some((mut stdout, mut stderr)) = self.control.lines.0.remove(&worker) else { return };
        for (stream, lines) in [(Stream::Stdout, &mut stdout), (Stream::Stderr, &mut stderr)] {
            let rest = lines.take();
            if !rest.is_empty() {
                self.hand_out(worker, stream, vec![escape::bytes(&rest)]);
            }
        }
    }

    fn hand_out(&mut self, worker: WorkerId, stream: Stream, lines: Vec<String>) {
        let (name, time) = (self.worker_name(worker), clock::rfc3339(clock::wall()));
        let stream = match stream {
            Stream::Stdout => WireStream::Stdout,
            Stream::Stderr => WireStream::Stderr,
        };
        for text in lines {
            let entry = LogEntry { worker: name.clone(), stream, time: time.clone(), text };
            for client in self.control.clients.values_mut() {
                if client.follower_of(worker).is_some_and(|follower| !follower.add(&entry)) {
                    client.let_go(self.now);
                }
            }
        }
    }

    /// From now on the lines of `worker` are put together, from the beginning of the one that is being written.
    pub(super) fn begin_lines(&mut self, worker: WorkerId) {
        let lines = self.logs.get(&worker).map_or_else(Default::default, |log| {
            let after = |stream| Lines::after(log.unfinished(stream));
            (after(Stream::Stdout), after(Stream::Stderr))
        });
        self.control.lines.0.insert(worker, lines);
    }

    /// Drops half lines that nobody waits for.
    pub(super) fn forget_followed_lines(&mut self) {
        if !self.control.lines.0.is_empty() && !self.control.clients.values_mut().any(Client::follows_logs) {
            self.control.lines.0.clear();
        }
    }

    /// Whether there is something to put on a client's way now.
    pub(super) fn has_news(&self, client: &Client) -> bool {
        client.is_read_up()
            && match &client.task {
                Task::Idle
                | Task::Order
                | Task::Request(_)
                | Task::Tools
                | Task::Shutdown(None)
                | Task::Import(_, None) => false,
                Task::Import(import, Some(told)) => self.has_read_more(*import, *told),
                Task::Await(awaited) => self.may_be_there(awaited),
                Task::Pieces(_) => true,
                Task::Events(reader) => self.events.has_news_for(reader),
                Task::Telemetry(cursor, _) => self.telemetry.has_news(*cursor),
                Task::Logs(follower) => follower.has_lines(),
                Task::Story(following) => self.has_news_of_task(following),
                Task::Attached(attached) => self.has_news_for(client, attached),
                Task::Piped(piped) => piped.has_news(),
                Task::Shutdown(Some(told)) => self.remaining() != *told,
            }
    }

    /// Puts the next piece of what a client waits for on its way, if it has read all before.
    pub(super) fn feed(&mut self, client: &mut Client) {
        if !self.has_news(client) {
            return;
        }
        let now = self.now;
        if matches!(client.task, Task::Attached(_)) {
            return self.feed_viewer(client);
        }
        if matches!(client.task, Task::Piped(_)) {
            return self.feed_runner(client);
        }
        client.task = match std::mem::take(&mut client.task) {
            Task::Pieces(pieces) => {
                let (reply, next) = self.next_piece(pieces);
                client.say(&reply, now);
                next
            }
            Task::Await(awaited) => self.look_at_wait(client, awaited),
            Task::Events(mut reader) => {
                let reply = self.events.read_on(&mut reader, PIECE_EVENTS_MAX);
                // All that happened may be of other pools than of this reader's.
                if !reply.events.is_empty() || reply.missed > 0 {
                    client.say(&Reply::piece(&reply), now);
                }
                Task::Events(reader)
            }
            Task::Telemetry(mut cursor, ticket) => {
                client.say(&Reply::piece(&self.telemetry.read(&mut cursor, PIECE_EVENTS_MAX)), now);
                Task::Telemetry(cursor, ticket)
            }
            Task::Logs(mut follower) => {
                client.say(&Reply::piece(&follower.take()), now);
                Task::Logs(follower)
            }
            Task::Story(following) => {
                let (reply, next) = self.next_of_task(following);
                client.say(&reply, now);
                next
            }
            Task::Shutdown(Some(_)) => {
                let remaining = self.remaining();
                client.say(&Reply::piece(&ShutdownReply { remaining, stuck: Vec::new() }), now);
                Task::Shutdown(Some(remaining))
            }
            Task::Import(import, Some(_)) => {
                let progress = self.import_progress(import);
                client.say(&Reply::piece(&progress), now);
                Task::Import(import, Some(progress.read_bytes))
            }
            task @ (Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Attached(_)
            | Task::Piped(_)
            | Task::Shutdown(None)
            | Task::Import(_, None)) => task,
        };
    }

    /// How many workers the end of the daemon waits for.
    fn remaining(&self) -> u32 {
        let runs = |state| !matches!(state, State::Stopped | State::Crashed | State::Stuck);
        u32::try_from(self.engine.workers().filter(|view| runs(view.state)).count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PoolId;

    const WORKER: WorkerId = WorkerId { pool: PoolId(1), slot: 3 };

    #[test]
    fn lines_are_put_together_per_stream() {
        let mut lines = FollowedLines::default();
        assert_eq!(lines.feed(WORKER, Stream::Stdout, b"one\ntw"), ["one"]);
        assert_eq!(lines.feed(WORKER, Stream::Stderr, b"error\n"), ["error"]);
        assert_eq!(lines.feed(WORKER, Stream::Stdout, b"o\n\xff\n"), ["two", "\\xff"]);
    }

    #[test]
    fn a_follower_holds_a_bounded_number_of_bytes() {
        let mut follower = LogFollower::new(EngineTarget::All);
        let entry = LogEntry {
            worker: "web.3".into(),
            stream: WireStream::Stdout,
            time: String::new(),
            text: "x".repeat(1000),
        };
        let taken = (0..2_000).take_while(|_| follower.add(&entry)).count();
        assert_eq!(taken, QUEUED_BYTES_MAX / (1000 + ENTRY_BYTES));
        assert!(!follower.has_lines(), "what cannot be read is not kept");
    }
}
