//! The desks of a pool: what dispatch knows of each place, who waits, and who is free.
//!
//! A desk follows its worker (`follow.rs`); its breaker outlives generations. Free desks are kept in an order that makes the
//! choice O(log n) for each way of selecting; desks that are to be chosen last are kept apart.

use std::collections::{BTreeMap, BTreeSet};

use super::breaker::{Breaker, BreakerRecord};
use super::budget::Room;
use super::recycle::Surge;
use super::{AttemptId, RequestId};
use crate::engine::Time;
use crate::engine::step::Phase;
use crate::spec::{DispatchPolicy, Generation, Select};

/// Whose an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// This request's.
    Request(RequestId),
    /// Nobody's any more: its answer is wanted no more, and if it is not there by then, its worker does not listen.
    Orphan(Time),
}

/// The order of free desks: the first is chosen.
type Rank = (u64, u64, u32);

/// What dispatch knows of one place.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// The spawn whose answers count; `None` while nobody is there.
    pub(super) generation: Option<Generation>,
    /// Where its worker was when the desk followed it last.
    pub(super) phase: Option<Phase>,
    /// Whether it may be given requests, as far as its worker goes.
    pub(super) open: bool,
    /// Whether beats are missing.
    pub(super) unwell: bool,
    /// Until when an earlier daemon's requests may still be in it; it has been told that nobody wants them.
    pub(super) occupied: Option<Time>,
    /// Whether it is to be replaced and is given nothing more.
    pub(super) retiring: bool,
    pub(super) in_flight: BTreeMap<AttemptId, Holder>,
    /// Requests that wait for this one.
    pub(super) bound: BTreeSet<RequestId>,
    pub(super) breaker: Breaker,
    pub(super) tainted_until: Option<Time>,
    /// Requests that this generation was given.
    pub(super) served: u64,
    /// Since when this generation has been open.
    pub(super) opened: Option<Time>,
    /// When it was last given or had given back a request, as a count.
    touched: u64,
    listed: Option<(bool, Rank)>,
    /// The head of `bound` as it is listed.
    head: Option<RequestId>,
    pub(super) total: u64,
    pub(super) failed: u64,
    pub(super) armed_breaker: Option<Time>,
    pub(super) armed_overdue: Option<Time>,
    pub(super) armed_ttl: Option<Time>,
    pub(super) armed_taint: Option<Time>,
    pub(super) armed_memory: Option<Time>,
}

impl Desk {
    /// One that nobody sits at, with the breaker that an earlier daemon has left.
    pub(super) fn new(breaker: BreakerRecord) -> Self {
        Self { breaker: Breaker::restored(breaker), ..Self::default() }
    }

    /// What is left of it where nothing is dispatched any more: whatever its worker still has in it.
    pub(super) fn remains(self) -> Option<Self> {
        let (generation, occupied, in_flight) = (self.generation, self.occupied, self.in_flight);
        let is_busy = occupied.is_some() || !in_flight.is_empty();
        is_busy.then(|| Self { generation, occupied, in_flight, ..Self::default() })
    }

    /// Whether it can take one more request.
    pub(super) fn is_free(&self, policy: &DispatchPolicy) -> bool {
        let room = self.in_flight.len() < policy.capacity as usize;
        self.generation.is_some()
            && self.open
            && !self.retiring
            && self.occupied.is_none()
            && room
            && self.breaker.allows()
            && !self.is_overdue()
    }

    /// Whether a request of a strict session may wait for it.
    pub(super) const fn is_there(&self) -> bool {
        self.generation.is_some() && self.open
    }

    /// Whether something is in it that nobody wants any more.
    fn is_overdue(&self) -> bool {
        self.in_flight.values().any(|holder| matches!(holder, Holder::Orphan(_)))
    }

    /// When its worker does not listen; `None` while some request in it is wanted.
    pub(super) fn deaf_at(&self) -> Option<Time> {
        let mut latest = self.occupied;
        for holder in self.in_flight.values() {
            match *holder {
                Holder::Request(_) => return None,
                Holder::Orphan(at) => latest = latest.max(Some(at)),
            }
        }
        latest
    }

    fn rank(&self, slot: u32, select: Select) -> Rank {
        match select {
            Select::RoundRobin => (0, 0, slot),
            Select::LeastBusy => (u64::try_from(self.in_flight.len()).unwrap_or(u64::MAX), self.touched, slot),
            Select::Lifo => (u64::MAX - self.touched, 0, slot),
        }
    }
}

/// Numbers of a pool's requests over its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) requests: u64,
    pub(super) queued: u64,
    pub(super) answered: u64,
    pub(super) errors: u64,
    pub(super) queue_timeouts: u64,
    pub(super) saturated: u64,
    pub(super) retries: u64,
    pub(super) abandoned: u64,
    pub(super) quarantined: u64,
    pub(super) recycled: u64,
}

/// The desks of a pool and the requests that wait for one.
#[derive(Debug, Default)]
pub(in crate::engine) struct Dispatcher {
    pub(super) desks: BTreeMap<u32, Desk>,
    /// Who waits for any desk, in the order in which they came.
    pub(super) waiting: BTreeSet<RequestId>,
    free: BTreeSet<Rank>,
    last_choice: BTreeSet<Rank>,
    /// The first of those who wait for one desk, of each desk that is free.
    heads: BTreeSet<(RequestId, u32)>,
    /// The place that was chosen last.
    cursor: Option<u32>,
    touches: u64,
    /// How many wait for one desk, over all desks.
    pub(super) bound: usize,
    pub(super) breaker: Breaker,
    pub(super) armed_breaker: Option<Time>,
    pub(super) counters: Counters,
    pub(in crate::engine) surge: Surge,
    /// Whether the budget was found used up since it last was not.
    pub(super) starved: bool,
}

impl Dispatcher {
    /// Takes over how the pool's breaker was.
    pub(in crate::engine) fn restore_breaker(&mut self, record: BreakerRecord) {
        self.breaker = Breaker::restored(record);
    }

    /// How many requests wait.
    pub(super) fn queued(&self) -> usize {
        self.waiting.len() + self.bound
    }

    /// Whether a desk may take one more, as far as the budget goes.
    fn fits(&self, slot: u32, room: Room) -> bool {
        match room {
            Room::Any => true,
            Room::Idle => self.desks.get(&slot).is_some_and(|desk| desk.in_flight.is_empty()),
            Room::Nobody => false,
        }
    }

    /// Whether some desk is free, as far as the budget goes.
    fn has_free(&self, room: Room) -> bool {
        self.free.iter().chain(&self.last_choice).any(|&(_, _, slot)| self.fits(slot, room))
    }

    /// Marks that a desk was given a request, or has given one back.
    pub(super) fn touch(&mut self, slot: u32) {
        self.touches += 1;
        if let Some(desk) = self.desks.get_mut(&slot) {
            desk.touched = self.touches;
        }
    }

    /// Puts a desk where it belongs by now.
    pub(super) fn refresh(&mut self, slot: u32, policy: &DispatchPolicy, now: Time) {
        let Some(desk) = self.desks.get_mut(&slot) else { return };
        if let Some((last, rank)) = desk.listed.take() {
            if last {
                self.last_choice.remove(&rank)
            } else {
                self.free.remove(&rank)
            };
        }
        if let Some(head) = desk.head.take() {
            self.heads.remove(&(head, slot));
        }
        if !desk.is_free(policy) {
            return;
        }
        let last = desk.unwell || desk.tainted_until.is_some_and(|until| until > now);
        let rank = desk.rank(slot, policy.select);
        if last {
            self.last_choice.insert(rank)
        } else {
            self.free.insert(rank)
        };
        desk.listed = Some((last, rank));
        if let Some(&head) = desk.bound.first() {
            self.heads.insert((head, slot));
            desk.head = Some(head);
        }
    }

    /// Takes a desk out, with everything that lists it.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Desk> {
        let desk = self.desks.remove(&slot)?;
        if let Some((last, rank)) = desk.listed {
            if last {
                self.last_choice.remove(&rank)
            } else {
                self.free.remove(&rank)
            };
        }
        if let Some(head) = desk.head {
            self.heads.remove(&(head, slot));
        }
        self.bound -= desk.bound.len();
        Some(desk)
    }

    /// Whether a desk is free, as far as the budget goes.
    pub(super) fn is_free(&self, slot: u32, room: Room) -> bool {
        self.desks.get(&slot).is_some_and(|desk| desk.listed.is_some()) && self.fits(slot, room)
    }

    /// The oldest request that a desk is free for: the desk is known already where it waits for one.
    pub(super) fn next(&self, room: Room) -> Option<(RequestId, Option<u32>)> {
        let any = self.waiting.first().copied().filter(|_| self.has_free(room));
        let bound = self.heads.iter().copied().find(|&(_, slot)| self.fits(slot, room));
        match (any, bound) {
            (Some(any), Some((bound, slot))) if bound < any => Some((bound, Some(slot))),
            (None, Some((bound, slot))) => Some((bound, Some(slot))),
            (Some(any), _) => Some((any, None)),
            (None, None) => None,
        }
    }

    /// Chooses a free desk, if there is one a desk that was not tried.
    pub(super) fn choose(&mut self, tried: &[u32], select: Select, room: Room) -> Option<u32> {
        let untried = |slot| !tried.contains(&slot) && self.fits(slot, room);
        let found = [&self.free, &self.last_choice]
            .into_iter()
            .find_map(|desks| first_of(desks, self.cursor, select, untried))
            .or_else(|| {
                [&self.free, &self.last_choice]
                    .into_iter()
                    .find_map(|desks| first_of(desks, self.cursor, select, |slot| self.fits(slot, room)))
            })?;
        self.cursor = Some(found);
        Some(found)
    }

    /// Whether a free desk is there that was not tried.
    pub(super) fn has_untried(&self, tried: &[u32]) -> bool {
        let untried = |&(_, _, slot): &Rank| !tried.contains(&slot);
        self.free.iter().chain(&self.last_choice).take(tried.len() + 1).any(untried)
    }

    /// Binds a request to a desk.
    pub(super) fn bind(&mut self, slot: u32, request: RequestId) {
        if let Some(desk) = self.desks.get_mut(&slot)
            && desk.bound.insert(request)
        {
            self.bound += 1;
        }
    }

    /// Takes a request out of the queue.
    pub(super) fn unqueue(&mut self, request: RequestId, bound: Option<u32>) {
        match bound {
            None => {
                self.waiting.remove(&request);
            }
            Some(slot) => {
                if let Some(desk) = self.desks.get_mut(&slot)
                    && desk.bound.remove(&request)
                {
                    self.bound -= 1;
                }
            }
        }
    }
}

/// The first in order that fits; in turn it begins behind `cursor` and goes around.
fn first_of(desks: &BTreeSet<Rank>, cursor: Option<u32>, select: Select, fits: impl Fn(u32) -> bool) -> Option<u32> {
    let slot = |rank: &Rank| fits(rank.2).then_some(rank.2);
    match (select, cursor) {
        (Select::RoundRobin, Some(cursor)) => {
            let behind = desks.range((0, 0, cursor.saturating_add(1))..).find_map(slot);
            behind.or_else(|| desks.range(..=(0, 0, cursor)).find_map(slot))
        }
        (Select::RoundRobin | Select::LeastBusy | Select::Lifo, _) => desks.iter().find_map(slot),
    }
}
