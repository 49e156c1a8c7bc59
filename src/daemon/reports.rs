//! What workers say: their init's reports, notifications, channel frames, output. Each source has a budget a turn; a worker
//! that floods waits for the next turn like everybody else, and its own exit drains it whole.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use mio::Token;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg, send};

use super::birth::{release, start_failure};
use super::control::running::{not_started, program_ended};
use super::live::{Live, Phase, ReadyWord, Watched};
use super::probe::Purpose;
use super::state::Daemon;
use crate::engine::{Input, RequestInput};
use crate::host::logfile::Stream;
use crate::host::spawn::{Gone, pid_of, program_failed};
use crate::protocol::channel::{self, FromWorker, ToWorker};
use crate::protocol::init::{MAIN, Report, kind};
use crate::protocol::notify::{self, Notification, Watchdog};
use crate::spec::{HeartbeatSource, Ready, WorkerId};

/// How much one source may say in one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Budget {
    /// The usual share; what is left is asked for again.
    Turn,
    /// Everything, because nobody is left who could add to it.
    Rest,
}

impl Budget {
    const fn of(self, turn: usize) -> usize {
        match self {
            Self::Turn => turn,
            // A pipe or socket holds less than this many messages of a dead sender.
            Self::Rest => 4096,
        }
    }
}

const REPORTS_A_TURN: usize = 8;
const DATAGRAMS_A_TURN: usize = 32;
const FRAMES_A_TURN: usize = 16;
const READS_A_TURN: usize = 4;
const READ_BYTES: usize = 16 * 1024;

impl Daemon {
    /// Reads a worker's init.
    pub(super) fn on_init(&mut self, worker: WorkerId, token: Token, budget: Budget) {
        for _ in 0..budget.of(REPORTS_A_TURN) {
            let Some(live) = self.live.get_mut(&worker) else { return };
            let Some(socket) = &live.init else { return };
            match receive_report(socket.fd.as_fd()) {
                Ok(Some((report, passed))) => self.on_report(worker, &report, passed),
                Ok(None) => {
                    if let Some(socket) = live.init.take() {
                        socket.close(&mut self.sources);
                    }
                    return;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                // ENOMEM: the socket has it still, and an edge is not told twice. At the end it is asked for once more.
                Err(errno) if budget == Budget::Turn => {
                    tracing::warn!(target: "worker", error = %errno, "read the init of {}", self.worker_name(worker));
                    return;
                }
                Err(_) => {}
            }
        }
        if budget == Budget::Turn {
            self.sources.again(token);
        }
    }

    fn on_report(&mut self, worker: WorkerId, report: &Report, passed: Option<OwnedFd>) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        // Its first word shows that it has exec'd, and so is done with the daemon's memory.
        release(&mut self.shared.stacks, live.birth.take(), Gone::InitSpoke);
        match report.kind {
            kind::STARTED if report.a != MAIN => self.on_program_started(worker, report.a, passed),
            kind::STARTED if live.phase == Phase::Starting => {
                live.phase = Phase::Running;
                live.main_pid = passed.as_ref().and_then(pid_of);
                live.main = passed;
                let generation = live.generation;
                self.inputs.push(Input::Spawned(worker, generation));
                self.await_ready(worker);
            }
            kind::PARKED if live.phase == Phase::Starting => {
                live.phase = Phase::Running;
                let generation = live.generation;
                self.inputs.push(Input::Spawned(worker, generation));
                self.foresee(worker, generation);
            }
            // It was heard before.
            kind::PARKED => {}
            kind::TERMINAL => self.on_terminal_made(worker, report.a, passed),
            kind::NOT_STARTED if report.c != MAIN => self.on_program_ended(worker, report.c, not_started(report)),
            kind::PROGRAM_ENDED => self.on_program_ended(worker, report.a, program_ended(report)),
            // The program of a claim.
            kind::STARTED if report.a == MAIN && live.main.is_none() => {
                live.main_pid = passed.as_ref().and_then(pid_of);
                live.main = passed;
                let (generation, pid) = (live.generation, live.main_pid);
                self.claim_is_done(worker, generation, pid);
            }
            // Said to the daemon before this one, which was killed before it heard; its pidfd was found without it.
            kind::STARTED => {}
            kind::NOT_STARTED => {
                let of_pool = self.pools.get(&live.pool).map(|pool| &pool.spec.command);
                let of_session = self.sessions.of(worker).map(|session| &session.command);
                let program = of_session.or(of_pool).and_then(|command| command.first());
                let program = program.map_or("", String::as_str);
                let cwd = self.sessions.of(worker).and_then(|session| session.cwd.as_deref());
                let error = program_failed(report, program, cwd.unwrap_or(super::environment::WORK_DIR));
                live.start_failure = Some(start_failure("exec", &error));
            }
            kind::MAIN_EXITED => live.main_exit = Some(*report),
            kind::SWEPT => live.leftover = Some(report.a),
            _ => live.junk += 1,
        }
    }

    /// A program is about to start on a terminal.
    fn on_terminal_made(&mut self, worker: WorkerId, program: u64, master: Option<OwnedFd>) {
        // That of the main program may be known: its init keeps it. That of another is nobody's if its client has gone.
        if self.terminal_of(worker, program).is_some() == (program == MAIN) {
            return;
        }
        let begun = match master {
            Some(master) => self.begin_terminal(worker, program, master),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        if let Err(error) = begun {
            tracing::warn!(target: "worker", %error, "watch the terminal of {}: nobody can attach to it", self.worker_name(worker));
        }
    }

    /// Begins to look for the sign by which this worker becomes ready.
    pub(super) fn await_ready(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get(&worker) else { return };
        let generation = live.generation;
        let Some(pool) = self.pools.get(&live.pool) else { return };
        match pool.spec.ready.clone() {
            Ready::Exec | Ready::Notify | Ready::Channel => {}
            Ready::Probe(probe) => self.begin_probe(worker, generation, &probe, Purpose::Readiness),
            Ready::File(file) => self.watch_ready_file(worker, generation, &file, false),
            Ready::PortFile(file) => self.watch_ready_file(worker, generation, &file, true),
        }
    }

    /// Reads a worker's notify socket.
    pub(super) fn on_notify(&mut self, worker: WorkerId, token: Token, budget: Budget) {
        let mut datagram = [0_u8; notify::DATAGRAM_BYTES_MAX + 1];
        for _ in 0..budget.of(DATAGRAMS_A_TURN) {
            let first = self.awaits_word(worker, &Ready::Notify, budget);
            let Some(live) = self.live.get_mut(&worker) else { return };
            let Some(socket) = &live.notify else { return };
            match hear(&socket.fd, &mut datagram, first) {
                Ok(_) if take_word(live) => {}
                Ok(length) => {
                    let said = notify::parse(datagram.get(..length).unwrap_or_default());
                    let keeps = keep_word(live.notify.as_ref(), &mut live.ready_word, first, said.ready);
                    self.on_notification(worker, said);
                    if keeps {
                        break;
                    }
                }
                Err(Errno::AGAIN) => return,
                // An error of one datagram is no reason to stop listening (HARDENING M1).
                Err(_) => {}
            }
        }
        self.sources.again(token);
    }

    fn on_notification(&mut self, worker: WorkerId, said: Notification) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        let Some(pool) = self.pools.get(&live.pool) else { return };
        let generation = live.generation;
        live.junk += u64::from(said.junk_lines);
        if said.status.is_some() {
            live.status_text = said.status;
        }
        let inputs = &mut self.inputs;
        if let Some(extension) = said.extend_timeout {
            inputs.push(Input::TimeoutExtended(worker, generation, extension));
        }
        if let Some(interval) = said.watchdog_interval {
            inputs.push(Input::BeatIntervalSet(worker, generation, interval));
        }
        if said.ready && pool.spec.ready == Ready::Notify {
            inputs.push(Input::BecameReady(worker, generation));
        }
        let beats = pool.spec.policy.heartbeat.is_some_and(|heartbeat| heartbeat.source == HeartbeatSource::Notify);
        match said.watchdog {
            Some(Watchdog::Beat) if beats => inputs.push(Input::Beat(worker, generation)),
            Some(Watchdog::Trigger) => inputs.push(Input::BreakageAnnounced(worker, generation)),
            Some(Watchdog::Beat) | None => {}
        }
        if said.stopping {
            inputs.push(Input::StopAnnounced(worker, generation));
        }
    }

    /// Reads a worker's channel.
    pub(super) fn on_channel(&mut self, worker: WorkerId, token: Token, budget: Budget) {
        let mut frame = vec![0_u8; channel::FRAME_BYTES_MAX + 1];
        for _ in 0..budget.of(FRAMES_A_TURN) {
            let first = self.awaits_word(worker, &Ready::Channel, budget);
            let Some(live) = self.live.get_mut(&worker) else { return };
            let Some(socket) = &live.channel else { return };
            let heard = if first {
                hear(&socket.fd, &mut frame, first).map(|length| (length, None))
            } else {
                hear_with_descriptor(&socket.fd, &mut frame)
            };
            match heard {
                // A worker may send an empty packet, which looks like the end; the hang-up that comes with the end tells
                // them apart no better, and a worker that sends nothing at length has no use for a channel.
                Ok((0, _)) => {
                    if let Some(socket) = live.channel.take() {
                        socket.close(&mut self.sources);
                    }
                    return;
                }
                Ok(_) if take_word(live) => {}
                Ok((length, passed)) => {
                    let said = FromWorker::decode(frame.get(..length).unwrap_or_default());
                    let ready = matches!(said, Ok(FromWorker::Ready));
                    let keeps = keep_word(live.channel.as_ref(), &mut live.ready_word, first, ready);
                    match said {
                        Ok(said) => self.on_frame(worker, said, passed),
                        Err(error) => {
                            live.junk += 1;
                            tracing::debug!(target: "worker", %error, "channel of {}", self.worker_name(worker));
                        }
                    }
                    if keeps {
                        break;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(_) => {}
            }
        }
        self.sources.again(token);
    }

    /// Whether this worker's word of readiness is still to come, by this way.
    fn awaits_word(&self, worker: WorkerId, way: &Ready, budget: Budget) -> bool {
        let Some(live) = self.live.get(&worker).filter(|live| live.ready_word == ReadyWord::Unheard) else {
            return false;
        };
        // Of a worker that has ended, nothing is left to a later daemon.
        budget == Budget::Turn && self.pools.get(&live.pool).is_some_and(|pool| pool.spec.ready == *way)
    }

    fn on_frame(&mut self, worker: WorkerId, said: FromWorker, passed: Option<OwnedFd>) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        let Some(pool) = self.pools.get(&live.pool) else { return };
        let generation = live.generation;
        let dispatches = pool.spec.policy.dispatch.is_some() && pool.spec.serve.is_none();
        match said {
            FromWorker::Hello { .. } => {
                let hello = ToWorker::Hello { protocol: channel::PROTOCOL };
                say(live, &hello);
            }
            FromWorker::Ready if pool.spec.ready == Ready::Channel || dispatches => {
                if pool.spec.ready == Ready::Channel {
                    self.inputs.push(Input::BecameReady(worker, generation));
                }
                self.inputs.push(Input::Request(RequestInput::Unoccupied(worker, generation)));
            }
            FromWorker::Pong { id } if id < live.next_ping => self.inputs.push(Input::Beat(worker, generation)),
            FromWorker::Result(answer) if dispatches => self.on_answer(worker, generation, answer, passed),
            FromWorker::Error(failed) if dispatches => self.on_failed(worker, generation, failed),
            FromWorker::Chunk(chunk) if dispatches => self.on_chunk(worker, generation, &chunk, passed),
            FromWorker::Credit(credit) if dispatches => self.on_credit(worker, generation, credit),
            FromWorker::Call(call) if dispatches => self.on_call(worker, generation, &call),
            FromWorker::Event(event) if dispatches => self.on_event(worker, &event),
            FromWorker::Ready
            | FromWorker::Pong { .. }
            | FromWorker::Result(_)
            | FromWorker::Error(_)
            | FromWorker::Chunk(_)
            | FromWorker::Credit(_)
            | FromWorker::Call(_)
            | FromWorker::Event(_)
            | FromWorker::Unsupported(_) => live.junk += 1,
        }
    }

    /// Asks a worker for a sign of life.
    pub(super) fn ping(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        let generation = live.generation;
        let Some(pool) = self.pools.get(&live.pool) else { return };
        if let Some(probe) = pool.spec.heartbeat_probe.clone() {
            self.begin_probe(worker, generation, &probe, Purpose::Heartbeat);
            return;
        }
        let ping = ToWorker::Ping { id: live.next_ping };
        live.next_ping += 1;
        // A worker that does not read its channel does not get the ping and so misses it.
        say(live, &ping);
    }

    /// Reads a worker's output.
    pub(super) fn on_output(&mut self, worker: WorkerId, stream: Stream, token: Token, budget: Budget) {
        let mut bytes = [0_u8; READ_BYTES];
        for _ in 0..budget.of(READS_A_TURN) {
            let Some(live) = self.live.get_mut(&worker) else { return };
            let pipe = match stream {
                Stream::Stdout => &mut live.stdout,
                Stream::Stderr => &mut live.stderr,
            };
            let Some(open) = pipe.as_ref() else { return };
            match rustix::io::read(&open.fd, bytes.as_mut_slice()) {
                Ok(0) => {
                    if let Some(ended) = pipe.take() {
                        ended.close(&mut self.sources);
                    }
                    return;
                }
                Ok(length) => {
                    let piece = bytes.get(..length).unwrap_or_default();
                    if let Some(log) = self.logs.get_mut(&worker) {
                        log.append(stream, piece, super::clock::wall());
                    }
                    self.log_line(worker, stream, piece);
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        self.sources.again(token);
    }
}

/// Receives a message, or only looks at it, `first`, before it is known whether it is the word of readiness.
fn hear(socket: &OwnedFd, message: &mut [u8], first: bool) -> Result<usize, Errno> {
    let flags = if first { RecvFlags::DONTWAIT | RecvFlags::PEEK } else { RecvFlags::DONTWAIT };
    recv(socket, message, flags).map(|(length, _)| length)
}

/// Receives a message and the descriptor that came with it. A message that is longer than a frame, or brought more than one
/// descriptor, comes without any, and is none.
fn hear_with_descriptor(socket: &OwnedFd, message: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [std::io::IoSliceMut::new(message)], &mut ancillary, flags)?;
    let mut passed = None;
    for control in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = control {
            passed = rights.last();
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        passed = None;
    }
    Ok((received.bytes, passed))
}

/// Whether the message just received was the word of readiness, heard a turn ago and written down since.
fn take_word(live: &mut Live) -> bool {
    let heard = live.ready_word == ReadyWord::Heard;
    if heard {
        live.ready_word = ReadyWord::Taken;
    }
    heard
}

/// Leaves a message that was only looked at in the socket if it is the word of readiness, else takes it out; whether it was
/// left.
fn keep_word(socket: Option<&Watched>, word: &mut ReadyWord, first: bool, ready: bool) -> bool {
    if first && ready {
        *word = ReadyWord::Heard;
    } else if let Some(socket) = socket.filter(|_| first) {
        let mut taken = [0_u8; 1];
        super::log::best_effort(hear(&socket.fd, &mut taken, false), "it was looked at a moment ago");
    }
    first && ready
}

fn say(live: &mut Live, frame: &ToWorker) {
    let Some(socket) = &live.channel else { return };
    let sent = frame
        .encode()
        .is_ok_and(|message| send(&socket.fd, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok());
    live.junk += u64::from(!sent);
}

/// One packet and the descriptor that came with it; `None` at the end.
fn receive_report(socket: std::os::fd::BorrowedFd<'_>) -> Result<Option<(Report, Option<OwnedFd>)>, Errno> {
    let mut words = [0_u8; size_of::<Report>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut vector = [std::io::IoSliceMut::new(&mut words)];
    let received = recvmsg(socket, &mut vector, &mut ancillary, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let passed = ancillary
        .drain()
        .find_map(|message| if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None });
    let mut fields = words.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    let mut next = || fields.next().unwrap_or(0);
    let report = Report { kind: next(), a: next(), b: next(), c: next(), d: next(), e: next() };
    Ok(Some((report, passed)))
}
