//! Requests that kill workers: how many workers each has killed, and whether it is let through again.
//!
//! A request is known by its fingerprint, so that the same one sent again by a patient client is the same. Bounded: of many
//! killers the one that was seen longest ago is forgotten.

use std::collections::BTreeMap;

use crate::spec::PoolId;

/// How many killers are remembered.
const KILLERS_MAX: usize = 1024;

/// What is known of killers.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    kills: BTreeMap<(PoolId, u64), (u32, u64)>,
    seen: u64,
}

impl Quarantine {
    /// A worker has crashed with this request in it. How many it has killed by now.
    pub(super) fn killed(&mut self, pool: PoolId, fingerprint: u64) -> u32 {
        self.seen += 1;
        if self.kills.len() >= KILLERS_MAX
            && !self.kills.contains_key(&(pool, fingerprint))
            && let Some(oldest) = self.kills.iter().min_by_key(|(_, (_, seen))| *seen).map(|(key, _)| *key)
        {
            self.kills.remove(&oldest);
        }
        let entry = self.kills.entry((pool, fingerprint)).or_insert((0, 0));
        *entry = (entry.0.saturating_add(1), self.seen);
        entry.0
    }

    /// It was answered: what killed workers before was not it.
    pub(super) fn answered(&mut self, pool: PoolId, fingerprint: u64) {
        self.kills.remove(&(pool, fingerprint));
    }

    /// Whether it has killed so many workers that it is let through no more.
    pub(super) fn holds(&self, pool: PoolId, fingerprint: u64, kills_max: u32) -> bool {
        kills_max > 0 && self.kills.get(&(pool, fingerprint)).is_some_and(|(kills, _)| *kills >= kills_max)
    }

    /// Forgives all of a pool. How many were held.
    pub(super) fn forgive(&mut self, pool: PoolId, kills_max: u32) -> u32 {
        let before = self.kills.len();
        let held =
            self.kills.iter().filter(|((of, _), (kills, _))| *of == pool && kills_max > 0 && *kills >= kills_max);
        let held = u32::try_from(held.count()).unwrap_or(u32::MAX);
        if before > 0 {
            self.kills.retain(|(of, _), _| *of != pool);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: PoolId = PoolId(1);

    #[test]
    fn the_third_kill_is_the_last_and_an_answer_forgives() {
        let mut quarantine = Quarantine::default();
        assert_eq!((quarantine.killed(POOL, 7), quarantine.killed(POOL, 7)), (1, 2));
        assert!(!quarantine.holds(POOL, 7, 3));
        quarantine.killed(POOL, 7);
        assert!(quarantine.holds(POOL, 7, 3) && !quarantine.holds(PoolId(2), 7, 3) && !quarantine.holds(POOL, 7, 0));
        assert_eq!((quarantine.forgive(POOL, 3), quarantine.forgive(POOL, 3)), (1, 0));
        quarantine.killed(POOL, 8);
        quarantine.answered(POOL, 8);
        assert_eq!(quarantine.killed(POOL, 8), 1);
    }

    #[test]
    fn of_many_the_oldest_is_forgotten() {
        let mut quarantine = Quarantine::default();
        for killer in 0..=u64::try_from(KILLERS_MAX).unwrap() {
            quarantine.killed(POOL, killer);
        }
        assert_eq!(quarantine.kills.len(), KILLERS_MAX);
        assert_eq!((quarantine.killed(POOL, 0), quarantine.killed(POOL, 9)), (1, 2));
    }
}
