//! One connection to the control socket: what it has said, what it waits for, what is on its way to it, and how long it
//! may take. Never decides what a call means: `dispatch.rs` does.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use mio::{Interest, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::attached::Attached;
use super::follow::LogFollower;
use super::output::{Full, Output, Written};
use super::pieces::Pieces;
use super::roles::Principal;
use super::running::Piped;
use super::waiting::Awaited;
use crate::daemon::clock;
use crate::daemon::events::{Cursor, EventReader};
use crate::daemon::sources::Sources;
use crate::daemon::tasks::Following;
use crate::daemon::telemetry::Ticket;
use crate::engine::{RequestId, Time};
use crate::protocol::attach::{Frame as _, Parting, ToViewer};
use crate::protocol::control::{Error, EventsReply, FollowTaskReply, LogsReply, ServeToolsReply};
use crate::protocol::varlink::{Decoder, FRAME_BYTES_MAX, REPLY_BYTES_MAX, Reply};

/// The first whole message has to come within this time of the connection.
pub(super) const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A message that has begun has to be whole within this time.
pub(super) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// The last reply has to be taken within this time.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How much is read of one client in one turn, in bytes.
const READ_BYTES_MAX: usize = 64 << 10;
/// Calls wait while this much is on its way to their client, in bytes.
const BUFFER_BYTES: usize = 16 << 10;

/// What a client waits for. While it does, its next calls wait too: answers come in the order of the calls.
#[derive(Debug, Default)]
pub(in crate::daemon) enum Task {
    /// Nothing: its next call is taken.
    #[default]
    Idle,
    /// The engine's answer to an order.
    Order,
    /// What becomes of a request to a pool.
    Request(RequestId),
    /// Calls of workers for the tools that it serves.
    Tools,
    /// Pools to be there.
    Await(Box<Awaited>),
    /// The rest of a long answer, piece by piece as it is read.
    Pieces(Pieces),
    /// Events as they happen, until it says something else.
    Events(EventReader),
    /// The same of telemetry.
    Telemetry(Cursor, Ticket),
    /// Lines as they are written, until it says something else.
    Logs(LogFollower),
    /// A terminal, for as long as both are there; calls are spoken no more.
    Attached(Box<Attached>),
    /// A program without a terminal that it has started; calls are spoken no more.
    Piped(Box<Piped>),
    /// The end of the daemon; with `more`, it was last told of so many workers.
    Shutdown(Option<u32>),
    /// What happens to a task, until it is over or it says something else.
    Story(Box<Following>),
    /// An image, by the number of its import; with `more`, it was last told of so many bytes.
    Import(u64, Option<u64>),
}

/// What the socket had when it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Nothing more; the kernel says when there is.
    Blocked,
    /// Perhaps more; the kernel will not say so again.
    More,
    /// The client says nothing any more.
    Ended,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    pub(super) token: Token,
    /// Tells it from others that had its place.
    pub(super) number: u64,
    pub(super) peer: Principal,
    pub(super) task: Task,
    /// The lease that it holds.
    pub(super) lease: Option<RequestId>,
    /// The terminal that it looks at, or did when it was last put back.
    pub(super) terminal: Option<u64>,
    decoder: Decoder,
    output: Output,
    input: Input,
    /// Whether there may be calls that have not been taken.
    calls_wait: bool,
    /// The socket takes no more for now.
    blocked: bool,
    waits_to_write: bool,
    /// When it has to have said something; `None` once it has.
    greeting_due: Option<Time>,
    message_due: Option<Time>,
    close_due: Option<Time>,
    /// When the earliest timer is set for.
    armed: Option<Time>,
    gone: bool,
    /// What came with a message that was not taken yet.
    passed: Option<Passed>,
    /// What came with the message that was taken last, for the call that it is.
    brought: Option<OwnedFd>,
}

/// A descriptor, and whose it is.
#[derive(Debug)]
struct Passed {
    fd: OwnedFd,
    /// How many messages wait before the one that it came with.
    before: usize,
}

impl Client {
    pub(super) fn new(socket: OwnedFd, token: Token, number: u64, peer: Principal, now: Time) -> Self {
        Self {
            socket,
            token,
            number,
            peer,
            task: Task::Idle,
            lease: None,
            terminal: None,
            decoder: Decoder::new(),
            output: Output::default(),
            input: Input::Blocked,
            calls_wait: false,
            blocked: false,
            waits_to_write: false,
            greeting_due: Some(clock::after(now, FIRST_MESSAGE_TIMEOUT)),
            message_due: None,
            close_due: None,
            armed: None,
            gone: false,
            passed: None,
            brought: None,
        }
    }

    /// One that has spoken already, to the program before this one.
    pub(super) fn greeted(socket: OwnedFd, token: Token, number: u64, peer: Principal, now: Time) -> Self {
        Self { greeting_due: None, ..Self::new(socket, token, number, peer, now) }
    }

    /// Its socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether nothing is under way in either direction.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.task, Task::Idle)
            && self.lease.is_none()
            && self.is_read_up()
            && self.decoder.waiting_bytes() == 0
    }

    /// Whether the connection is over and nothing can be said any more.
    pub(super) const fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether its next call may be taken.
    pub(super) fn takes_calls(&self) -> bool {
        let free = match self.task {
            Task::Idle | Task::Events(_) | Task::Telemetry(..) | Task::Logs(_) | Task::Story(_) => true,
            Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Pieces(_)
            | Task::Attached(_)
            | Task::Piped(_)
            | Task::Shutdown(_)
            | Task::Import(..) => false,
        };
        free && !self.gone && self.close_due.is_none() && self.output.is_empty()
    }

    /// Whether its next call is to be taken although the kernel has no news of it.
    pub(super) fn has_calls(&self) -> bool {
        self.calls_wait && self.takes_calls()
    }

    /// The request that it waits for, if it is still there to send it something.
    pub(super) fn waits_for(&self) -> Option<RequestId> {
        if let Task::Request(request) = self.task
            && !self.gone
            && self.close_due.is_none()
        {
            return Some(request);
        }
        None
    }

    /// Whether it may have said more than was taken, of which the kernel has no news.
    pub(super) const fn has_more_to_say(&self) -> bool {
        self.calls_wait
    }

    /// Whether something new can be put on its way.
    pub(super) fn is_read_up(&self) -> bool {
        self.output.is_empty() && !self.gone && self.close_due.is_none()
    }

    /// Whether it can be written to, or has to be closed.
    pub(super) fn can_be_written(&self) -> bool {
        self.gone || !self.output.is_empty() && !self.blocked || self.output.is_empty() && self.close_due.is_some()
    }

    /// Reads what there is, within the budget.
    pub(super) fn read(&mut self) {
        self.blocked = false;
        let mut buffer = [0; BUFFER_BYTES];
        let mut budget = READ_BYTES_MAX;
        // Calls that are not taken yet fill the decoder and then the socket, and hold back their sender.
        while self.input != Input::Ended && budget > 0 && self.has_room() && !self.holds_descriptor() {
            self.input = match self.receive(&mut buffer) {
                Ok((0, _)) => Input::Ended,
                Ok((count, passed)) => {
                    let read = buffer.get(..count).unwrap_or_default();
                    self.take_in(read);
                    if let Some(fd) = passed {
                        // The kernel ends a read with the message that a descriptor came with.
                        self.passed = Some(Passed { fd, before: self.decoder.frames_before_last() });
                    }
                    budget = budget.saturating_sub(count);
                    Input::More
                }
                Err(Errno::INTR) => Input::More,
                Err(Errno::AGAIN) => {
                    self.input = Input::Blocked;
                    return;
                }
                Err(_gone) => {
                    self.gone = true;
                    return;
                }
            };
        }
        // Who has only finished speaking still reads; who has hung up does not.
        self.gone |= self.has_hung_up();
    }

    /// Whether a descriptor has come that no call has taken and whose call is whole: what comes behind it is read later, or
    /// another call's descriptor would take its place.
    fn holds_descriptor(&self) -> bool {
        self.passed.is_some() && self.decoder.has_frame()
    }

    fn has_room(&self) -> bool {
        match &self.task {
            Task::Attached(attached) => attached.takes_more(),
            Task::Piped(piped) => piped.takes_more(),
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Pieces(_)
            | Task::Events(_)
            | Task::Telemetry(..)
            | Task::Logs(_)
            | Task::Story(_)
            | Task::Import(..)
            | Task::Shutdown(_) => self.decoder.waiting_bytes() <= FRAME_BYTES_MAX,
        }
    }

    fn take_in(&mut self, read: &[u8]) {
        match &mut self.task {
            Task::Attached(attached) => attached.push(read),
            Task::Piped(piped) => piped.push(read),
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Pieces(_)
            | Task::Events(_)
            | Task::Telemetry(..)
            | Task::Logs(_)
            | Task::Story(_)
            | Task::Import(..)
            | Task::Shutdown(_) => {
                self.decoder.push(read);
            }
        }
    }

    /// Ends it at once: nothing that could be said would be heard.
    pub(super) const fn hang_up(&mut self) {
        self.gone = true;
    }

    /// What it looks at a terminal with, if it does.
    pub(super) fn attached(&self) -> Option<&Attached> {
        if let Task::Attached(attached) = &self.task { Some(attached) } else { None }
    }

    /// The same, to be changed.
    pub(super) fn attached_mut(&mut self) -> Option<&mut Attached> {
        if let Task::Attached(attached) = &mut self.task { Some(attached) } else { None }
    }

    /// Whether it says nothing any more.
    pub(super) fn has_ended(&self) -> bool {
        self.input == Input::Ended
    }

    /// Whether there may be more to read although the kernel has no news of it.
    pub(super) fn may_have_more(&self) -> bool {
        self.input == Input::More
    }

    /// If it looks at a terminal from now on, what it has said behind its call belongs to that.
    pub(super) fn begin_to_look(&mut self) {
        if matches!(self.task, Task::Attached(_) | Task::Piped(_)) {
            let rest = self.decoder.take_rest();
            self.take_in(&rest);
            self.terminal = self.attached().map(|attached| attached.viewer.terminal);
            self.message_due = None;
        }
    }

    /// Puts a frame on its way to a client that looks at a terminal; it has read all before.
    pub(super) fn say_frame(&mut self, frame: Vec<u8>) {
        if !self.gone && self.close_due.is_none() {
            self.output.push(frame).unwrap_or_else(|Full| self.output.cut());
        }
    }

    /// Reads once. Of the descriptors that come along there is one at most: whoever sends more would have the daemon hold them
    /// (HARDENING M3).
    fn receive(&self, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        let mut passed = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                passed = rights.last();
            }
        }
        // Of several the kernel has let go of all but one, and which it was nobody means.
        let is_alone = !received.flags.contains(ReturnFlags::CTRUNC);
        Ok((received.bytes, passed.filter(|_| is_alone)))
    }

    /// Takes the descriptor that was passed with the call that was taken last.
    pub(super) fn take_passed(&mut self) -> Option<OwnedFd> {
        self.brought.take()
    }

    /// The next message is taken: what came with it is its own, and what came with the one before is nobody's any more.
    fn bring_passed(&mut self) {
        self.brought = None;
        match self.passed.take() {
            Some(Passed { fd, before: 0 }) => self.brought = Some(fd),
            Some(Passed { fd, before }) => self.passed = Some(Passed { fd, before: before - 1 }),
            None => {}
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&at_once)).is_ok_and(|count| count > 0)
            && polled.iter().any(|polled| polled.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }

    /// Takes the next whole message. `None` is for now, or for good: then it is being closed.
    pub(super) fn next_frame(&mut self, now: Time) -> Option<Vec<u8>> {
        match self.decoder.next_frame() {
            Ok(Some(frame)) => {
                self.greeting_due = None;
                self.message_due = None;
                self.bring_passed();
                return Some(frame);
            }
            Ok(None) if self.input == Input::Ended => {
                self.finish_stream();
                self.close(now);
            }
            Ok(None) if self.decoder.waiting_bytes() > 0 => {
                self.message_due = self.message_due.or(Some(clock::after(now, MESSAGE_TIMEOUT)));
            }
            Ok(None) => self.message_due = None,
            Err(error) => {
                self.finish_stream();
                self.say_last(&error.reply(), now);
            }
        }
        None
    }

    /// Remembers whether calls wait: none do after `next_frame` gave none and the socket is empty, nor behind the call that was
    /// taken last where nothing has come behind it. Whoever says one thing at a time costs no turn that finds nothing.
    pub(super) fn note_calls(&mut self, drained: bool) {
        let behind = self.decoder.waiting_bytes() > 0 || self.input == Input::Ended;
        self.calls_wait = (!drained && behind) || self.input == Input::More;
    }

    /// Puts a reply on its way. A client whose queue is full is let go.
    pub(super) fn say(&mut self, reply: &Reply, now: Time) {
        if self.gone || self.close_due.is_some() {
            return;
        }
        let mut frame = reply.encode();
        if frame.len() > REPLY_BYTES_MAX {
            let reason = "the answer is longer than 16 MiB: ask with `more`, or for less".into();
            frame = Error::Refused { reason }.to_reply().encode();
        }
        if let Err(Full) = self.output.push(frame) {
            self.let_go(now);
        }
    }

    /// Puts a reply on its way that is written already, with the descriptor that goes with it. A client whose queue is full is
    /// let go.
    pub(super) fn say_written(&mut self, frame: Vec<u8>, passed: Option<OwnedFd>, now: Time) {
        if self.gone || self.close_due.is_some() {
            return;
        }
        if let Err(Full) = self.output.push_with(frame, passed) {
            self.let_go(now);
        }
    }

    /// Puts a piece on its way, if there is room for it.
    pub(super) fn takes(&mut self, frame: Vec<u8>) -> bool {
        !self.gone && self.close_due.is_none() && self.output.push(frame).is_ok()
    }

    /// The request whose stream it has read as far as it was made.
    pub(super) fn read_up_stream(&self) -> Option<RequestId> {
        if let Task::Request(request) = self.task
            && self.is_read_up()
        {
            return Some(request);
        }
        None
    }

    /// Ends it with one last reply.
    pub(super) fn say_last(&mut self, reply: &Reply, now: Time) {
        self.say(reply, now);
        self.close(now);
    }

    /// Ends a client that does not read: what it was to get is dropped, but why is said.
    pub(super) fn let_go(&mut self, now: Time) {
        self.output.cut();
        let reason = "replies were not read as fast as they came".into();
        self.say_last(&Error::Refused { reason }.to_reply(), now);
    }

    /// Ends a stream of replies with the last one.
    pub(super) fn finish_stream(&mut self) {
        let last = match self.task {
            Task::Events(_) | Task::Telemetry(..) => Reply::last(&EventsReply::default()),
            Task::Logs(_) => Reply::last(&LogsReply::default()),
            Task::Story(_) => Reply::last(&FollowTaskReply::default()),
            Task::Tools => Reply::last(&ServeToolsReply::default()),
            Task::Piped(_) => return self.say_frame(ToViewer::Parted(Parting::DaemonLeaves).encode()),
            Task::Attached(_) => {
                self.task = Task::Idle;
                return self.say_frame(ToViewer::Parted(Parting::DaemonLeaves).encode());
            }
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Await(_)
            | Task::Pieces(_)
            | Task::Shutdown(_)
            | Task::Import(..) => return,
        };
        self.task = Task::Idle;
        // Who has not read what was before it has no use for it.
        self.output.push(last.encode()).unwrap_or_else(|Full| self.output.cut());
    }

    /// Takes no more calls; is gone when the last reply is written, or by a deadline.
    pub(super) fn close(&mut self, now: Time) {
        self.close_due = self.close_due.or(Some(clock::after(now, CLOSE_TIMEOUT)));
        // What belongs to a program or a request is given back when the connection is.
        if !matches!(self.task, Task::Piped(_) | Task::Request(_)) {
            self.task = Task::Idle;
        }
        self.greeting_due = None;
        self.message_due = None;
    }

    /// Writes what is on its way, within the budget. `true`: there is more, and the kernel will not say so.
    pub(super) fn write(&mut self) -> bool {
        match self.output.write(self.socket.as_fd()) {
            Written::All => {
                self.blocked = false;
                self.gone |= self.close_due.is_some();
                false
            }
            Written::Blocked => {
                self.blocked = true;
                false
            }
            Written::More => true,
            Written::Gone => {
                self.gone = true;
                false
            }
        }
    }

    /// Waits for room in the socket only while something is on its way.
    pub(super) fn adjust_interest(&mut self, sources: &Sources) {
        let wanted = !self.output.is_empty();
        if self.gone || wanted == self.waits_to_write {
            return;
        }
        let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        match sources.change(self.token, self.socket.as_fd(), interest) {
            Ok(()) => self.waits_to_write = wanted,
            Err(_refused) => self.gone = true,
        }
    }

    /// When a timer is to be set, if one is: only if none is set that comes earlier.
    pub(super) fn arm(&mut self) -> Option<Time> {
        let due = self.due()?;
        if self.armed.is_some_and(|armed| armed <= due) {
            return None;
        }
        self.armed = Some(due);
        self.armed
    }

    fn due(&self) -> Option<Time> {
        [self.greeting_due, self.message_due, self.close_due].into_iter().flatten().min()
    }

    /// A timer has come.
    pub(super) fn expire(&mut self, now: Time) {
        self.armed = None;
        let is_over = |due: Option<Time>| due.is_some_and(|due| due <= now);
        let late = |what: &str, limit: Duration| {
            let reason = format!("{what} did not come within {} s", limit.as_secs());
            Error::Refused { reason }.to_reply()
        };
        if is_over(self.close_due) {
            self.gone = true;
        } else if is_over(self.message_due) {
            self.finish_stream();
            self.say_last(&late("the rest of a message", MESSAGE_TIMEOUT), now);
        } else if is_over(self.greeting_due) {
            self.say_last(&late("a first message", FIRST_MESSAGE_TIMEOUT), now);
        }
    }

    /// Deregisters and closes it.
    pub(super) fn end(self, sources: &mut Sources) {
        sources.remove(self.token, self.socket.as_fd());
    }
}
