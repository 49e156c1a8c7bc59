//! Terminals of workers: the daemon's master ends, who looks at them and who types.
//!
//! `console.rs` is one terminal, `pipes.rs` what a program has instead, `ring.rs` the output that is kept and how far each viewer has come. Here they meet the
//! loop: `begin_terminal` when the init has handed over a master end, `on_terminal` when something is to be read or room
//! is made, `end_terminals` when the worker's end is known. The clients are `control::attached`. A viewer that reads may
//! hold back the program for a moment, as a slow terminal does; one that stops is not waited for (HARDENING E5).

mod console;
mod pipes;
mod ring;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use mio::{Interest, Token};

use self::console::Taken;
pub(in crate::daemon) use self::console::{Console, Full};
pub(in crate::daemon) use self::pipes::Pipes;
pub(in crate::daemon) use self::ring::View;
use self::ring::{RING_BYTES, Ring};
use super::clock;
use super::live::Watched;
use super::reports::Budget;
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::Time;
use crate::host::logfile::Stream;
use crate::protocol::attach::{Ended, Size};
use crate::protocol::init::MAIN;
use crate::spec::WorkerId;

const READ_BYTES: usize = 16 * 1024;
/// A master gives at most a page at a time.
const READS_A_TURN: usize = 16;
/// The kernel holds less than this many pages of what was written; others than the program may go on writing.
const READS_OF_REST: usize = 64;
/// A viewer that may hold the program back does so when it has this much to read.
const HOLD_BYTES: u64 = RING_BYTES as u64 / 2;
/// It is not waited for if it has read nothing for this long: a busy machine lets nobody wait so long for a turn.
const HOLD_TIME: Duration = Duration::from_secs(2);
/// How long viewers may take for the rest after the end.
const LINGER_TIME: Duration = Duration::from_secs(30);

/// Whose it is, and what the daemon does with its output.
#[derive(Debug)]
pub(in crate::daemon) struct Terminal {
    pub(in crate::daemon) worker: WorkerId,
    /// The number that the init knows its program by.
    pub(in crate::daemon) program: u64,
    pub(in crate::daemon) console: Console,
    /// The program's, if it is not the main one.
    pub(in crate::daemon) pidfd: Option<OwnedFd>,
    /// Who types, by the client's number.
    pub(in crate::daemon) writer: Option<u64>,
    /// Nothing is read until a viewer has read, or until this, when it is looked at whether it does.
    held: Option<Time>,
}

/// How one client looks at a terminal.
#[derive(Debug)]
pub(in crate::daemon) struct Viewer {
    pub(in crate::daemon) terminal: u64,
    pub(in crate::daemon) view: View,
    /// Whether the program waits for it, within bounds.
    pub(in crate::daemon) may_hold: bool,
    /// Where it was when it was last looked at while it held the program back.
    seen_at: Option<u64>,
    /// It did not read and is not waited for until it has caught up.
    given_up: bool,
}

impl Viewer {
    pub(in crate::daemon) const fn new(terminal: u64, view: View, may_hold: bool) -> Self {
        Self { terminal, view, may_hold, seen_at: None, given_up: false }
    }

    fn holds(&self, ring: &Ring) -> bool {
        self.may_hold && !self.given_up && self.view.lag(ring) >= HOLD_BYTES
    }

    /// Looks where it is; it is not waited for any longer if it has read nothing since it was last looked at.
    fn examine(&mut self, ring: &Ring) {
        if self.holds(ring) && self.seen_at.replace(self.view.place()) == Some(self.view.place()) {
            self.given_up = true;
        }
    }

    /// It has read something.
    pub(in crate::daemon) fn note_progress(&mut self, terminal: &Terminal) {
        if self.view.is_up_to_date(&terminal.console.ring) {
            self.given_up = false;
        }
    }
}

/// All terminals of the daemon, by numbers that are never used twice.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Terminals {
    open: BTreeMap<u64, Terminal>,
    last: u64,
    last_program: u64,
}

impl Terminals {
    /// A number for a program beside a main one, which no daemon before this one has given.
    pub(in crate::daemon) fn next_program(&mut self) -> u64 {
        let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.last_program = now.max(self.last_program.saturating_add(1));
        self.last_program
    }

    pub(in crate::daemon) fn get(&self, number: u64) -> Option<&Terminal> {
        self.open.get(&number)
    }

    pub(in crate::daemon) fn get_mut(&mut self, number: u64) -> Option<&mut Terminal> {
        self.open.get_mut(&number)
    }
}

impl Daemon {
    /// Takes the master end of a program's terminal, which the program has just been given, or had under a daemon before.
    ///
    /// # Errors
    /// The kernel's reason not to watch it.
    pub(in crate::daemon) fn begin_terminal(
        &mut self,
        worker: WorkerId,
        program: u64,
        master: OwnedFd,
    ) -> std::io::Result<u64> {
        let adopted = self.live.get(&worker).is_some_and(|live| live.adopted);
        // The description is shared with the init, which never uses it.
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        let expected = self.terminal_of(worker, program);
        let number = expected.unwrap_or(self.terminals.last + 1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = self.sources.add(master.as_fd(), Source::Terminal(number), interest)?;
        if let Some(terminal) = expected.and_then(|number| self.terminals.get_mut(number)) {
            terminal.console.begin(Watched { fd: master, token });
            return Ok(number);
        }
        let ring = if adopted { Ring::of_the_middle() } else { Ring::default() };
        let console = Console::new(Watched { fd: master, token }, ring);
        self.terminals.last = number;
        self.terminals
            .open
            .insert(number, Terminal { worker, program, console, pidfd: None, writer: None, held: None });
        if let Some(live) = self.live.get_mut(&worker) {
            live.terminals.push(number);
        }
        Ok(number)
    }

    /// A terminal whose program is about to start, for the client that has asked for it.
    pub(in crate::daemon) fn expect_terminal(&mut self, worker: WorkerId, program: u64, size: Size, by: u64) -> u64 {
        self.terminals.last += 1;
        let (number, console) = (self.terminals.last, Console::to_come(size));
        let terminal = Terminal { worker, program, console, pidfd: None, writer: Some(by), held: None };
        self.terminals.open.insert(number, terminal);
        if let Some(live) = self.live.get_mut(&worker) {
            live.terminals.push(number);
        }
        number
    }

    /// The client of a program beside the main one has gone, and the program goes with it.
    pub(in crate::daemon) fn leave_own_terminal(&mut self, number: u64) {
        let Some(terminal) = self.terminals.get_mut(number) else { return };
        if terminal.program == MAIN || terminal.console.ended.is_some() {
            return;
        }
        if let Some(pidfd) = terminal.pidfd.take() {
            super::log::best_effort(crate::host::spawn::kill(&pidfd), "it has ended by itself");
        }
        self.end_terminal(number, Ended::Signalled(9));
    }

    /// The number of the terminal of a worker's program.
    pub(in crate::daemon) fn terminal_of(&self, worker: WorkerId, program: u64) -> Option<u64> {
        let numbers = &self.live.get(&worker)?.terminals;
        let is_its = |number: &&u64| self.terminals.get(**number).is_some_and(|found| found.program == program);
        numbers.iter().find(is_its).copied()
    }

    /// A program writes, or reads what was typed.
    pub(in crate::daemon) fn on_terminal(&mut self, number: u64, token: Token, budget: Budget) {
        let Some(terminal) = self.terminals.get_mut(number) else { return };
        if terminal.console.write() {
            self.resume_typists(number);
        }
        let reads = match budget {
            Budget::Turn => READS_A_TURN,
            Budget::Rest => READS_OF_REST,
        };
        let mut buffer = [0_u8; READ_BYTES];
        for _ in 0..reads {
            // The rest fits the ring beside what anybody may lag behind.
            if budget == Budget::Turn && self.hold_back(number) {
                return;
            }
            let Some(terminal) = self.terminals.get_mut(number) else { return };
            let Taken::Bytes(count) = terminal.console.take(&mut buffer) else { return };
            let piece = buffer.get(..count).unwrap_or_default();
            self.log_terminal(number, piece);
        }
        self.sources.again(token);
    }

    /// The main program's terminal is the worker's output; that of another is its caller's alone.
    fn log_terminal(&mut self, number: u64, written: &[u8]) {
        let Some(terminal) = self.terminals.get_mut(number) else { return };
        if terminal.program != MAIN {
            return;
        }
        let worker = terminal.worker;
        self.task_wrote(worker, written);
        let Some(terminal) = self.terminals.get_mut(number) else { return };
        let logged = terminal.console.for_the_log(written);
        if let Some(log) = self.logs.get_mut(&worker) {
            log.append(Stream::Stdout, &logged, clock::wall());
        }
        self.log_line(worker, Stream::Stdout, &logged);
    }

    /// Whether some viewer holds this terminal back; then it is looked at again when it reads, or in a moment.
    fn hold_back(&mut self, number: u64) -> bool {
        let Some(terminal) = self.terminals.open.get_mut(&number) else { return false };
        let holds = self.control.viewers(number).any(|viewer| viewer.holds(&terminal.console.ring));
        if holds && terminal.held.is_none() {
            self.examine_viewers(number);
        }
        holds
    }

    /// Looks at everybody who holds a terminal back, and once more in a moment.
    fn examine_viewers(&mut self, number: u64) {
        let Some(terminal) = self.terminals.open.get_mut(&number) else { return };
        for viewer in self.control.viewers_mut(number) {
            viewer.examine(&terminal.console.ring);
        }
        let due = clock::after(self.now, HOLD_TIME);
        terminal.held = Some(due);
        self.timers.set(due, Timer::TerminalHeld(number));
    }

    /// Some viewer has read: goes on with a terminal that it held back.
    pub(in crate::daemon) fn go_on_with_terminal(&mut self, number: u64) {
        let Some(terminal) = self.terminals.open.get_mut(&number).filter(|terminal| terminal.held.is_some()) else {
            return;
        };
        if self.control.viewers(number).any(|viewer| viewer.holds(&terminal.console.ring)) {
            return;
        }
        terminal.held = None;
        for viewer in self.control.viewers_mut(number) {
            viewer.seen_at = None;
        }
        if let Some(master) = &terminal.console.master {
            self.sources.again(master.token);
        }
    }

    /// A terminal has been held back for a while, unless the timer is of an earlier time.
    pub(in crate::daemon) fn on_terminal_held(&mut self, number: u64) {
        let now = self.now;
        if self.terminals.get(number).is_some_and(|terminal| terminal.held.is_some_and(|due| due <= now)) {
            self.examine_viewers(number);
            self.go_on_with_terminal(number);
        }
    }

    /// Gives a terminal the size of its writer.
    pub(in crate::daemon) fn resize_terminal(&mut self, number: u64, size: Size) {
        if let Some(terminal) = self.terminals.get_mut(number) {
            terminal.console.resize(size);
        }
    }

    /// Reads what the programs of a dead worker have left in their terminals, before its end is recorded.
    pub(in crate::daemon) fn drain_terminals(&mut self, worker: WorkerId) {
        let numbers = self.live.get(&worker).map(|live| live.terminals.clone()).unwrap_or_default();
        for number in numbers {
            self.drain_terminal(number);
        }
    }

    fn drain_terminal(&mut self, number: u64) {
        let master = self.terminals.get(number).and_then(|terminal| terminal.console.master.as_ref());
        let Some(token) = master.map(|master| master.token) else { return };
        self.on_terminal(number, token, Budget::Rest);
        let master = self.terminals.get_mut(number).and_then(|terminal| terminal.console.master.take());
        if let Some(master) = master {
            master.close(&mut self.sources);
        }
    }

    /// The end of a worker is known: its viewers are told once they have read the rest. Programs beside the main one were
    /// killed with it.
    pub(in crate::daemon) fn end_terminals(&mut self, worker: WorkerId, ended: Ended) {
        let numbers = self.live.get_mut(&worker).map(|live| std::mem::take(&mut live.terminals)).unwrap_or_default();
        for number in numbers {
            let Some(terminal) = self.terminals.get(number) else { continue };
            let is_main = terminal.program == MAIN;
            self.end_terminal(number, if is_main { ended } else { Ended::Signalled(9) });
        }
    }

    /// The program of one terminal has ended.
    pub(in crate::daemon) fn end_terminal(&mut self, number: u64, ended: Ended) {
        self.drain_terminal(number);
        let Some(terminal) = self.terminals.get_mut(number) else { return };
        terminal.console.ended = Some(ended);
        let worker = terminal.worker;
        if let Some(live) = self.live.get_mut(&worker) {
            live.terminals.retain(|one| *one != number);
        }
        self.forget_terminal(number);
        if self.terminals.get(number).is_some() {
            self.timers.set(clock::after(self.now, LINGER_TIME), Timer::TerminalEnded(number));
        }
    }

    /// Forgets a terminal that has ended and that nobody looks at any more.
    pub(in crate::daemon) fn forget_terminal(&mut self, number: u64) {
        let over = self.terminals.get(number).is_some_and(|terminal| terminal.console.ended.is_some());
        if over && self.control.viewers(number).next().is_none() {
            self.terminals.open.remove(&number);
        }
    }

    /// Whoever has not read the rest by now will not.
    pub(in crate::daemon) fn on_terminal_ended(&mut self, number: u64) {
        self.terminals.open.remove(&number);
    }
}
