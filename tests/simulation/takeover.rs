//! What is promised across the death of a daemon, written down from the contract: what the next one owes to each place,
//! by what has truly become of its processes. Never looks at a record.

use std::time::Duration;

use halsup::engine::{Cause, Effect, Ended, Time};
use halsup::spec::{Generation, PoolId, PoolPolicy};

use crate::place::{Body, Fate, Live, Place, Stage, Wish};
use crate::promises::Promises;

/// However late its daemon comes back, a worker has this long to say that it is ready.
const READY_GRACE: Duration = Duration::from_secs(1);

/// What has truly become of a generation while no daemon was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// It lives and is to be kept.
    Lives,
    /// It ended, and its init wrote down how.
    Ended(Ended),
    /// Its program never ran, and its init wrote that down.
    NeverRan,
    /// It was ended because no daemon was there, or because none wants it.
    Abandoned,
    /// It is gone, or never was, and nobody wrote down why.
    Unwitnessed {
        /// The kernel has counted a kill for memory in its cgroup.
        oom: bool,
    },
}

impl Promises {
    /// There is a new daemon. What was asked of the old one and not answered never will be; what was answered holds. Whoever
    /// starts a daemon after one that was ending everything wants everything to begin. Says whether it was so.
    pub(crate) fn begin_again(&mut self) -> bool {
        let ending = self.shutdown.take().is_some();
        self.expired = false;
        self.finished = false;
        self.calls.clear();
        self.owed_answers.clear();
        // Pools that are in no configuration any more: nobody is left who could tell how their workers ended.
        let removed: Vec<PoolId> = self.pools.iter().filter(|(_, pool)| pool.removed).map(|(id, _)| *id).collect();
        for place in self.places.values().filter(|place| removed.contains(&place.id.pool)) {
            if let Some(live) = place.live() {
                self.generations.insert(live.generation, true);
            }
        }
        let unknown = |place: &Place| removed.contains(&place.id.pool) || (ending && place.live().is_none());
        self.places.retain(|_, place| !unknown(place));
        self.pools.retain(|_, pool| !pool.removed);
        for pool in self.pools.values_mut() {
            pool.starts.clear();
            if ending {
                pool.wanted = pool.policy.size.min;
            }
        }
        for place in self.places.values_mut() {
            place.reported = None;
            place.owed.clear();
            place.up_settled = false;
            place.down_settled = false;
            if ending {
                place.forget_failures();
                place.wish = Wish::Again;
            }
        }
        ending
    }

    /// The new daemon has a pool, with a policy that may be another one by now, and knows what became of its workers.
    pub(crate) fn taken_over(
        &mut self,
        id: PoolId,
        policy: &PoolPolicy,
        remains: impl Fn(Generation) -> Remains,
        now: Time,
    ) {
        let pool = self.pools.get_mut(&id).expect("a pool of the configuration");
        if pool.policy.size != policy.size {
            pool.wanted = policy.size.min;
        }
        pool.policy = policy.clone();
        for place in self.places.values_mut().filter(|place| place.id.pool == id) {
            let generation = place.live().map(|live| live.generation);
            place.taken_over(generation.map(&remains), policy, now);
        }
        self.fit(id, now);
        self.settle();
    }
}

impl Place {
    fn taken_over(&mut self, remains: Option<Remains>, policy: &PoolPolicy, now: Time) {
        let latest = now.after(policy.restart.delay_max);
        if let Body::Delayed(least, most) = &mut self.body {
            *least = (*least).min(latest);
            *most = (*most).min(latest);
        }
        let (Some(remains), Some(live)) = (remains, self.live_mut()) else { return };
        if let Some(Fate::Restart(least, most)) = &mut live.fate {
            *least = (*least).min(latest);
            *most = (*most).min(latest);
        }
        let begun = live.stage != Stage::Called || live.killed;
        let untouched = live.stage == Stage::Called && live.is_left_alone();
        if live.exited {
            live.stuck = false;
            live.stuck_at = Some(now.after(policy.stop.kill_timeout));
            return;
        }
        match remains {
            Remains::Lives => self.goes_on(policy, now),
            Remains::NeverRan if untouched => self.goes_on(policy, now),
            Remains::Ended(ended) => self.ended_unseen(ended, policy, now),
            Remains::Unwitnessed { oom: true } if begun => self.ended_unseen(Ended::OutOfMemory, policy, now),
            Remains::Unwitnessed { oom: false } if begun => self.ended_unseen(Ended::Unknown, policy, now),
            Remains::NeverRan | Remains::Abandoned | Remains::Unwitnessed { .. } => self.lost(policy, now),
        }
    }

    /// It lives: nobody touches it who did not before, and what was to end it is done once more, as it may not have been done.
    fn goes_on(&mut self, policy: &PoolPolicy, now: Time) {
        let id = self.id;
        let Some(live) = self.live_mut() else { return };
        if live.killed || live.stuck || live.meant.is_some() {
            live.stuck = false;
            return self.kill(None, policy, now);
        }
        if live.stopping {
            if live.why.is_some() {
                let generation = live.generation;
                self.owed.push(Effect::Signal(id, generation, policy.stop.signal));
            }
        } else if live.stage == Stage::Ready {
            live.watch(policy, now);
        } else {
            live.kill_at = live.kill_at.max(Some(now.after(READY_GRACE)));
        }
    }

    /// It ended while nobody looked: that counts as any end, and is judged when it is found.
    fn ended_unseen(&mut self, ended: Ended, policy: &PoolPolicy, now: Time) {
        if let Some(live) = self.live_mut() {
            live.stuck = false;
        }
        self.exited(ended, policy, now);
        if let Some(live) = self.live_mut() {
            live.stuck_at = Some(now.after(policy.stop.kill_timeout));
        }
    }

    /// It is gone because its daemon was: it begins again, past the restart policy, unless its end had been begun for another
    /// reason, or it was to be down.
    fn lost(&mut self, policy: &PoolPolicy, now: Time) {
        let (id, wish) = (self.id, self.wish);
        let Some(live) = self.live_mut() else { return };
        live.exited = true;
        live.stuck = false;
        live.beats = None;
        live.kill_at = None;
        live.stuck_at = Some(now.after(policy.stop.kill_timeout));
        let (generation, reason, ready_since) = (live.generation, live.why.or(live.meant), live.ready_since);
        self.owed.push(Effect::Certify(id, generation, reason.unwrap_or(Cause::Shutdown)));
        if wish == Wish::Policy {
            let fate = match reason {
                Some(cause) => self.judge(&policy.restart, cause, ready_since, now),
                None => Fate::Restart(now, now),
            };
            if let Some(live) = self.live_mut() {
                live.fate = Some(fate);
            }
        }
    }
}

impl Live {
    /// Nobody knows whether it has beaten meanwhile: its heartbeat begins anew.
    fn watch(&mut self, policy: &PoolPolicy, now: Time) {
        self.beats = policy.heartbeat.map(|rule| crate::beats::Beats::new(rule, self.own_interval, now));
    }
}
