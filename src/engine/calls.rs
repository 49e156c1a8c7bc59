//! Owns the control calls that wait for workers, and sees to it that each gets exactly one answer.
//!
//! A call waits for workers to *settle*: to be up or empty, or to have failed at it for now. What was achieved is counted
//! when the answer is given, so that it is true then. Never decides what an order does: `orders.rs` opens calls, the engine
//! settles and answers them, at the latest at their deadline.

use std::collections::{BTreeMap, BTreeSet};

use super::{CallId, Instead, Time};
use crate::spec::{PoolId, WorkerId};

/// What a call waits for a worker to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// Become ready.
    Up,
    /// Become empty.
    Down,
}

/// What a call asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// These up.
    Up(Vec<WorkerId>),
    /// These down.
    Down(Vec<WorkerId>),
    /// This one down, which was to be reset and is not.
    Gone(WorkerId, Instead),
    /// So many in this pool.
    Size(PoolId, u32),
}

/// A call without an answer yet.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) ask: Ask,
    pending: BTreeSet<(WorkerId, Wish)>,
    pub(super) armed: Option<Time>,
}

/// All calls without an answer yet.
#[derive(Debug, Default)]
pub(super) struct Calls {
    open: BTreeMap<CallId, Call>,
    waiting: BTreeMap<(WorkerId, Wish), BTreeSet<CallId>>,
}

impl Calls {
    /// Lets `id` wait for all of `pending`.
    pub(super) fn open(&mut self, id: CallId, ask: Ask, pending: BTreeSet<(WorkerId, Wish)>) -> &mut Call {
        for &wait in &pending {
            self.waiting.entry(wait).or_default().insert(id);
        }
        self.open.entry(id).insert_entry(Call { ask, pending, armed: None }).into_mut()
    }

    /// A worker has settled: the calls that wait for nothing more.
    pub(super) fn settle(&mut self, worker: WorkerId, wish: Wish) -> Vec<CallId> {
        let mut complete = Vec::new();
        for id in self.waiting.remove(&(worker, wish)).unwrap_or_default() {
            if let Some(call) = self.open.get_mut(&id) {
                call.pending.remove(&(worker, wish));
                if call.pending.is_empty() {
                    complete.push(id);
                }
            }
        }
        complete
    }

    /// Takes a call out, to be answered.
    pub(super) fn close(&mut self, id: CallId) -> Option<Call> {
        let call = self.open.remove(&id)?;
        for wait in &call.pending {
            if let Some(ids) = self.waiting.get_mut(wait) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.waiting.remove(wait);
                }
            }
        }
        Some(call)
    }

    /// Every open call and what it asked for.
    pub(super) fn iter(&self) -> impl Iterator<Item = (CallId, &Ask)> {
        self.open.iter().map(|(&id, call)| (id, &call.ask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_complete_once_and_only_with_all_its_workers() {
        let (a, b) = (WorkerId { pool: PoolId(1), slot: 0 }, WorkerId { pool: PoolId(1), slot: 1 });
        let mut calls = Calls::default();
        calls.open(CallId(7), Ask::Up(vec![a, b]), BTreeSet::from([(a, Wish::Up), (b, Wish::Up)]));
        calls.open(CallId(8), Ask::Down(vec![b]), BTreeSet::from([(b, Wish::Down)]));
        assert_eq!(calls.settle(a, Wish::Up), []);
        assert_eq!(calls.settle(a, Wish::Up), []);
        assert_eq!(calls.settle(b, Wish::Down), [CallId(8)]);
        assert_eq!(calls.settle(b, Wish::Up), [CallId(7)]);
        assert!(calls.close(CallId(7)).is_some());
        assert!(calls.close(CallId(7)).is_none());
    }

    #[test]
    fn a_closed_call_is_waited_for_no_more() {
        let a = WorkerId { pool: PoolId(1), slot: 0 };
        let mut calls = Calls::default();
        calls.open(CallId(7), Ask::Up(vec![a]), BTreeSet::from([(a, Wish::Up)]));
        assert!(calls.close(CallId(7)).is_some());
        assert_eq!(calls.settle(a, Wish::Up), []);
        assert!(calls.waiting.is_empty());
    }
}
