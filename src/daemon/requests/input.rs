//! What callers send to requests piece by piece, towards their workers: never more than a worker has room for, each piece once, in
//! its order, and nothing behind the last.
//!
//! A worker grants chunks as its tool takes them; until then the next one stays in its caller's socket, which holds back the caller
//! and nobody else. A chunk that a worker has granted and its socket has no room for is kept, one for each request, and sent
//! when there is some. A request whose input has begun is given to no second worker. Called by the control socket with what a
//! client says while it waits for its request, and by the loop with what a worker says on its channel.

use std::os::fd::{AsFd as _, OwnedFd};

use mio::Interest;
use rustix::io::Errno;

use super::super::message::send_with;
use super::super::state::Daemon;
use super::accept::{payload, value};
use crate::engine::{AttemptId, RequestId};
use crate::protocol::channel::{self, CREDIT_MAX, ChunkPayload, Credit, InputChunk, ToWorker};
use crate::protocol::control::{Request, SendChunkRequest};
use crate::protocol::varlink::Call;
use crate::spec::{Generation, WorkerId};

/// How far the input of one request is, for the attempt that has it.
#[derive(Debug, Default)]
pub(super) struct Inflow {
    /// How many chunks its worker takes before it has granted more.
    credit: u32,
    /// The last one was taken of its caller.
    ended: bool,
    /// One that its worker's socket had no room for.
    held: Option<Held>,
}

/// A chunk on its way.
#[derive(Debug)]
pub(super) struct Held {
    frame: Vec<u8>,
    passed: Option<OwnedFd>,
    /// How large the memory is that goes with it, in bytes.
    size: u64,
}

/// What a grant of a worker's was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Granted {
    /// There may be room for the next chunk.
    Room,
    /// The last chunk was taken already, which the worker may not have heard.
    TooLate,
    /// More than may be granted.
    Refused,
}

impl Inflow {
    /// Whether the next chunk may be taken of the caller.
    const fn has_room(&self) -> bool {
        !self.ended && self.credit > 0 && self.held.is_none()
    }

    /// The worker takes so many more.
    fn grant(&mut self, count: u32) -> Granted {
        match self.credit.checked_add(count).filter(|credit| *credit <= CREDIT_MAX) {
            _ if self.ended => Granted::TooLate,
            Some(credit) => {
                self.credit = credit;
                Granted::Room
            }
            None => Granted::Refused,
        }
    }

    /// A chunk was taken of the caller; there was room for it.
    fn take(&mut self, is_last: bool) {
        self.credit = self.credit.saturating_sub(1);
        self.ended = is_last;
    }

    /// How much memory is kept with it, in bytes.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.size)
    }

    /// Another attempt has it, of whose worker nothing is known yet. None of it has gone to the one before, or there would be none.
    pub(super) fn begin_again(&mut self) {
        self.credit = 0;
    }
}

impl Daemon {
    /// Whether the next thing that is said by whoever waits for a request is a chunk for it, and may be taken.
    pub(in crate::daemon) fn takes_chunk(&self, id: RequestId) -> bool {
        self.requests.open.get(&id).and_then(|open| open.inflow.as_ref()).is_some_and(Inflow::has_room)
    }

    /// Takes a chunk of whoever waits for a request, and passes it on.
    ///
    /// # Errors
    /// Why it is none, in words: the input has a hole then, and so no end.
    pub(in crate::daemon) fn take_chunk(
        &mut self,
        id: RequestId,
        frame: &[u8],
        passed: Option<OwnedFd>,
    ) -> Result<(), String> {
        let call = Call::decode(frame).map_err(|error| error.to_string())?;
        let oneway = call.oneway;
        let Ok(Request::SendChunk(said)) = Request::decode(call) else {
            return Err(
                "until the input of its request has ended, nothing but sound SendChunk is said on a connection".into(),
            );
        };
        if !oneway {
            return Err("SendChunk is said with \"oneway\": the answer that is waited for is the request's".into());
        }
        let Some(open) = self.requests.open.get(&id) else { return Ok(()) };
        let Some(delivery) = open.delivery else { return Ok(()) };
        let (is_last, held) = self.chunk(open.uid, delivery.attempt, &said, passed)?;
        if let Some(inflow) = self.requests.open.get_mut(&id).and_then(|open| open.inflow.as_mut()) {
            inflow.take(is_last);
        }
        self.send_chunk(id, held);
        Ok(())
    }

    /// The frame of a chunk, and whether it is the last.
    fn chunk(
        &self,
        uid: u32,
        attempt: AttemptId,
        said: &SendChunkRequest,
        passed: Option<OwnedFd>,
    ) -> Result<(bool, Held), String> {
        let data = said.chunk.as_ref().map(|chunk| value("chunk", chunk)).transpose()?;
        let memory = payload(said.payload, passed)?;
        let size = memory.as_ref().map_or(0, |memory| memory.size);
        if let Some(reason) = self.requests.refusal_of(uid, size) {
            return Err(reason);
        }
        let end = said.end == Some(true);
        let payload = memory.as_ref().map(|memory| ChunkPayload { bytes: memory.said.bytes });
        let id = channel::RequestId::new(attempt.0);
        let frame =
            ToWorker::Chunk(InputChunk { id, data, payload, end }).encode().map_err(|error| error.to_string())?;
        Ok((end, Held { frame, passed: memory.map(|memory| memory.fd), size }))
    }

    /// Sends a chunk to the worker that has its request, or keeps it until there is room.
    fn send_chunk(&mut self, id: RequestId, chunk: Held) {
        let Some(delivery) = self.requests.open.get(&id).and_then(|open| open.delivery) else { return };
        let (worker, generation) = (delivery.worker, delivery.generation);
        let live = self.live.get(&worker).filter(|live| live.generation == generation);
        let Some(socket) = live.and_then(|live| live.channel.as_ref()) else { return };
        match send_with(socket.fd.as_fd(), &chunk.frame, chunk.passed.as_ref().map(OwnedFd::as_fd)) {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => {
                let (token, both) = (socket.token, Interest::READABLE | Interest::WRITABLE);
                let watched = self.sources.change(token, socket.fd.as_fd(), both);
                super::super::log::best_effort(watched, "the next word of its worker has it tried again");
                if let Some(inflow) = self.requests.open.get_mut(&id).and_then(|open| open.inflow.as_mut()) {
                    inflow.held = Some(chunk);
                    self.requests.holding.insert((worker, id));
                }
            }
            // The worker is gone, and its requests with it.
            Err(errno) => {
                tracing::debug!(target: "dispatch", worker = %self.worker_name(worker), %errno, "pass a chunk on");
            }
        }
    }

    /// A worker's channel may have room again: what was kept for it goes on.
    pub(in crate::daemon) fn send_held_chunks(&mut self, worker: WorkerId) {
        let of_worker = (worker, RequestId(0))..=(worker, RequestId(u64::MAX));
        let kept: Vec<RequestId> = self.requests.holding.range(of_worker.clone()).map(|(_, id)| *id).collect();
        if kept.is_empty() {
            return;
        }
        for id in kept {
            self.requests.holding.remove(&(worker, id));
            let Some(open) = self.requests.open.get_mut(&id) else { continue };
            let is_its = open.delivery.is_some_and(|delivery| delivery.worker == worker);
            let held = open.inflow.as_mut().and_then(|inflow| inflow.held.take());
            if let Some(chunk) = held.filter(|_| is_its) {
                self.send_chunk(id, chunk);
                self.call_for_chunks(id);
            }
        }
        let socket = self.live.get(&worker).and_then(|live| live.channel.as_ref());
        if let Some(socket) = socket.filter(|_| self.requests.holding.range(of_worker).next().is_none()) {
            let watched = self.sources.change(socket.token, socket.fd.as_fd(), Interest::READABLE);
            super::super::log::best_effort(watched, "a word too many of the kernel's does no harm");
        }
    }

    /// A worker takes more chunks of a request's input.
    pub(in crate::daemon) fn on_credit(&mut self, worker: WorkerId, generation: Generation, credit: Credit) {
        let id = self.requests.of_attempt(AttemptId(credit.id.number()), worker, generation);
        let inflow = id.and_then(|id| self.requests.open.get_mut(&id)).and_then(|open| open.inflow.as_mut());
        match (id, inflow.map(|inflow| inflow.grant(credit.count))) {
            (Some(id), Some(Granted::Room)) => self.call_for_chunks(id),
            (Some(_), Some(Granted::TooLate)) => {}
            (_, Some(Granted::Refused) | None) | (None, Some(_)) => self.count_junk(worker),
        }
    }

    /// Has what the caller of a request has said meanwhile looked at.
    fn call_for_chunks(&mut self, id: RequestId) {
        let waits = self.requests.open.get(&id).filter(|_| self.takes_chunk(id)).map(|open| open.waits);
        if let Some(token) = waits.and_then(|waits| self.control.token_of(waits)) {
            self.sources.again(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// splitmix64.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % end
        }
    }

    fn chunk(number: usize) -> Held {
        Held { frame: number.to_be_bytes().to_vec(), passed: None, size: 1 }
    }

    /// A caller, a worker that grants, and a socket between them that is full now and then. What they may expect is written down
    /// here a second time.
    #[derive(Default)]
    struct World {
        inflow: Inflow,
        said: usize,
        granted: u64,
        refused: u64,
        /// What has come to the worker.
        heard: Vec<usize>,
    }

    impl World {
        fn step(&mut self, dice: &mut Dice, most: usize) {
            match dice.below(4) {
                0 => {
                    let count =
                        if dice.below(50) == 0 { CREDIT_MAX } else { 1 + u32::try_from(dice.below(8)).unwrap() };
                    let open = self.granted - self.heard.len() as u64 - u64::from(self.inflow.held.is_some());
                    let fits = open + u64::from(count) <= u64::from(CREDIT_MAX);
                    let granted = self.inflow.grant(count);
                    match granted {
                        Granted::Room => self.granted += u64::from(count),
                        Granted::Refused => self.refused += 1,
                        Granted::TooLate => assert_eq!(self.said, most, "the last is not said yet"),
                    }
                    assert_eq!(granted == Granted::Refused, !fits && self.said < most);
                }
                1 | 2 if self.inflow.has_room() => {
                    assert!(self.said < most, "it takes something behind the last");
                    self.inflow.take(self.said + 1 == most);
                    if dice.below(3) == 0 {
                        self.inflow.held = Some(chunk(self.said));
                    } else {
                        self.heard.push(self.said);
                    }
                    self.said += 1;
                }
                1 | 2 => {}
                _ => self
                    .heard
                    .extend(self.inflow.held.take().map(|held| usize::from_be_bytes(held.frame.try_into().unwrap()))),
            }
            assert!(self.heard.len() as u64 <= self.granted, "it gets more than it has granted");
            assert_eq!(self.inflow.held_bytes(), (self.said - self.heard.len()) as u64, "one is kept at most");
        }
    }

    #[test]
    fn each_chunk_comes_once_in_its_order_and_none_before_it_is_granted_or_behind_the_last() {
        let mut refused = 0;
        for seed in 0..500 {
            let mut dice = Dice(seed);
            let most = 1 + usize::try_from(dice.below(40)).unwrap();
            let mut world = World::default();
            for _ in 0..2_000 {
                world.step(&mut dice, most);
            }
            assert!(world.heard.iter().copied().eq(0..most), "seed {seed}: {:?}", world.heard);
            assert!(!world.inflow.has_room());
            refused += world.refused;
        }
        assert!(refused > 0, "nobody granted too much");
    }

    #[test]
    fn another_attempt_grants_anew() {
        let mut inflow = Inflow::default();
        assert_eq!(
            (inflow.grant(CREDIT_MAX), inflow.grant(1), inflow.has_room()),
            (Granted::Room, Granted::Refused, true)
        );
        inflow.begin_again();
        assert!(!inflow.has_room());
        assert_eq!(inflow.grant(1), Granted::Room);
        inflow.take(true);
        assert_eq!((inflow.grant(1), inflow.has_room()), (Granted::TooLate, false));
    }
}
