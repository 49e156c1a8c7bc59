//! Budgets: how many requests several pools may have in flight together, and who is next when one of them is over.

use std::collections::{BTreeMap, BTreeSet};

use crate::spec::{Budget, BudgetId, BudgetKind, PoolId};

/// Who may be given one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Every desk.
    Any,
    /// A desk with nothing in flight.
    Idle,
    Nobody,
}

/// What one budget has given out.
#[derive(Debug, Default)]
struct Account {
    used: u32,
    /// Pools that found it used up.
    starved: BTreeSet<PoolId>,
}

/// All budgets.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    accounts: BTreeMap<BudgetId, Account>,
}

impl Budgets {
    /// Whether one more request may be in flight in a pool with this budget, and where.
    pub(super) fn room(&self, budget: Option<Budget>) -> Room {
        let Some(budget) = budget else { return Room::Any };
        let used = self.accounts.get(&budget.id).map_or(0, |account| account.used);
        match budget.kind {
            BudgetKind::Shared | BudgetKind::Hybrid if used < budget.max => Room::Any,
            BudgetKind::Shared => Room::Nobody,
            BudgetKind::Hybrid => Room::Idle,
        }
    }

    /// A pool finds its budget used up: it is told when it is so no more.
    pub(super) fn starve(&mut self, budget: Option<Budget>, pool: PoolId) {
        if let Some(budget) = budget {
            self.accounts.entry(budget.id).or_default().starved.insert(pool);
        }
    }

    /// Counts anew: pools and their budgets are other ones by now.
    pub(super) fn count_again(&mut self, in_flight: impl Iterator<Item = (Budget, u32)>) {
        self.accounts.clear();
        for (budget, used) in in_flight {
            self.accounts.entry(budget.id).or_default().used += used;
        }
    }

    /// A request is in flight.
    pub(super) fn take(&mut self, budget: Option<Budget>) {
        if let Some(budget) = budget {
            self.accounts.entry(budget.id).or_default().used += 1;
        }
    }

    /// It is not any more. The pools that have waited for that.
    pub(super) fn give_back(&mut self, budget: Option<Budget>) -> BTreeSet<PoolId> {
        let Some(account) = budget.and_then(|budget| self.accounts.get_mut(&budget.id)) else {
            return BTreeSet::new();
        };
        account.used = account.used.saturating_sub(1);
        std::mem::take(&mut account.starved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pools_share_one_budget_and_who_was_refused_is_told() {
        let shared = Some(Budget { id: BudgetId(1), max: 2, kind: BudgetKind::Shared });
        let mut budgets = Budgets::default();
        for pool in [PoolId(1), PoolId(2)] {
            assert_eq!(budgets.room(shared), Room::Any, "{pool:?}");
            budgets.take(shared);
        }
        assert_eq!(budgets.room(shared), Room::Nobody);
        budgets.starve(shared, PoolId(2));
        assert_eq!(budgets.give_back(shared), BTreeSet::from([PoolId(2)]));
        assert_eq!((budgets.room(shared), budgets.room(None)), (Room::Any, Room::Any));
    }

    #[test]
    fn a_hybrid_one_never_keeps_an_idle_worker_idle() {
        let hybrid = Some(Budget { id: BudgetId(1), max: 1, kind: BudgetKind::Hybrid });
        let mut budgets = Budgets::default();
        budgets.take(hybrid);
        assert_eq!(budgets.room(hybrid), Room::Idle);
    }
}
