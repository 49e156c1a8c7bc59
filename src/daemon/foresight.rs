//! What the next claims will probably need, made while workers are parked and nobody waits: for each worker the map of its
//! project's owner, and for all of them places for secrets.
//!
//! What a claim brings is guessed from the pool's last one. A wrong guess costs nothing but the making: a claim takes what fits
//! it and has the rest made, as it does where nothing was foreseen. What is left over is kept: the kernel takes as long to undo
//! a mount as for all the rest of a claim.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::birth::chain;
use super::clock;
use super::live::Live;
use super::state::Daemon;
use super::timers::Timer;
use crate::host::identity::HostUser;
use crate::host::late_binding::{OwnerMap, place_for_secrets};
use crate::spec::{Generation, PoolId, WorkerId};

/// Pause before anything is made, and between workers: callers come first.
const PAUSE: Duration = Duration::from_millis(2);

/// What the last claim of a pool has brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Habit {
    /// Whose its project was.
    pub(super) owner: Option<HostUser>,
    /// Whether it had secrets.
    pub(super) secrets: bool,
}

/// What there is for claims of any worker, and for which workers more is to be made.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    due: BTreeSet<(WorkerId, Generation)>,
    pub(super) places: Vec<OwnedFd>,
    /// How many of the places are for workers that there are no more.
    surplus: usize,
}

impl Foresight {
    fn is_at_rest(&self) -> bool {
        self.due.is_empty() && self.surplus == 0
    }
}

/// How many of these are kept.
const STOCK_MAX: usize = 64;

impl Daemon {
    /// A worker is parked, or what is to be foreseen of it has changed.
    pub(super) fn foresee(&mut self, worker: WorkerId, generation: Generation) {
        if self.foresight.is_at_rest() {
            self.timers.set(clock::after(self.now, PAUSE), Timer::Foresee);
        }
        self.foresight.due.insert((worker, generation));
    }

    /// Makes what one worker lacks, or lets go of one thing that none does.
    pub(super) fn on_foresee_timer(&mut self) {
        if let Some((worker, generation)) = self.foresight.due.pop_first() {
            self.foresee_now(worker, generation);
        } else if let Some(left) = self.foresight.surplus.checked_sub(1) {
            self.foresight.surplus = left;
            self.foresight.places.pop();
        }
        if !self.foresight.is_at_rest() {
            self.timers.set(clock::after(self.now, PAUSE), Timer::Foresee);
        }
    }

    /// A pool is gone: what was made for its claims goes too, one after the other, unless the workers of others need it.
    pub(super) fn forget_foreseen(&mut self) {
        let waits = |(worker, live): &(&WorkerId, &Live)| {
            let has_secrets = self.pools.get(&worker.pool).is_some_and(|pool| pool.habit.secrets);
            has_secrets && live.claim.is_none() && live.main.is_none()
        };
        let surplus = self.foresight.places.len().saturating_sub(self.live.iter().filter(waits).count());
        if self.foresight.is_at_rest() && surplus > 0 {
            self.timers.set(clock::after(self.now, PAUSE), Timer::Foresee);
        }
        self.foresight.surplus = surplus;
    }

    fn foresee_now(&mut self, worker: WorkerId, generation: Generation) {
        let Some(pool) = self.pools.get(&worker.pool) else { return };
        let (habit, gid) = (pool.habit, pool.prepared.host_ids.map(|(_, gid)| gid));
        let Some(live) = self.live.get_mut(&worker).filter(|live| live.generation == generation) else { return };
        // Its program is there: it was claimed meanwhile.
        if live.claim.is_some() || live.main.is_some() {
            return;
        }
        let user = HostUser { uid: live.uid, gid: gid.unwrap_or(live.uid) };
        let mut trouble = None;
        if let Some(owner) = habit.owner.filter(|owner| *owner != user)
            && live.owner_map.as_ref().is_none_or(|map| !map.is_of(owner, user))
        {
            live.owner_map = OwnerMap::make(owner, user).map_err(|error| trouble = Some(chain(&error))).ok();
        }
        let stock = &mut self.foresight;
        if habit.secrets && stock.places.len() < STOCK_MAX {
            stock.places.extend(place_for_secrets().map_err(|error| trouble = Some(chain(&error))));
        }
        if let Some(trouble) = trouble {
            // A claim that needs it says so itself.
            tracing::debug!(target: "worker", "foresee a claim of {}: {trouble}", self.worker_name(worker));
        }
    }

    /// A claim has brought this: the others of its pool are made ready for one like it.
    pub(super) fn learn_habit(&mut self, pool: PoolId, habit: Habit) {
        let Some(pool) = self.pools.get_mut(&pool) else { return };
        if std::mem::replace(&mut pool.habit, habit) == habit {
            return;
        }
        let id = pool.id;
        let parked = self.live.iter().filter(|(worker, live)| worker.pool == id && live.claim.is_none());
        let parked: Vec<_> = parked.map(|(worker, live)| (*worker, live.generation)).collect();
        for (worker, generation) in parked {
            self.foresee(worker, generation);
        }
    }
}
