//! What became of the latest requests, for whoever asks later: `RequestStatus`.
//!
//! Bounded in number and in bytes: the oldest is forgotten first. Gone with the daemon, which `NotFound` says as well.

use std::collections::{BTreeMap, VecDeque};

use super::super::clock;
use super::super::control::Outcome;
use super::super::state::Daemon;
use super::Open;
use crate::engine::{Delivery, RequestId, Time};
use crate::protocol::control::{
    Error, RequestInfo, RequestOutcome, RequestState, RequestStatusReply, RequestStatusRequest,
};
use crate::protocol::varlink::Reply;
use crate::spec::PoolId;

/// How many requests that are over are known.
const ENDED_MAX: usize = 16_384;

/// How much text of theirs is kept, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// How many requests one answer tells of.
const TOLD_MAX: usize = 256;

/// A request that is over.
#[derive(Debug)]
struct Ended {
    pool: PoolId,
    outcome: RequestOutcome,
    reason: Option<Box<str>>,
    /// Where it is not the request's own number.
    correlation: Option<Box<str>>,
    delivery: Option<Delivery>,
    submitted: Time,
    ended: Time,
}

impl Ended {
    fn text_bytes(&self) -> usize {
        [&self.reason, &self.correlation].into_iter().flatten().map(|text| text.len()).sum()
    }
}

/// Requests that are over, as many as may be known.
#[derive(Debug, Default)]
pub(super) struct Past {
    ended: BTreeMap<RequestId, Ended>,
    /// In the order of their ends.
    order: VecDeque<RequestId>,
    text_bytes: usize,
}

impl Past {
    fn add(&mut self, id: RequestId, ended: Ended) {
        self.text_bytes += ended.text_bytes();
        self.ended.insert(id, ended);
        self.order.push_back(id);
        while self.order.len() > ENDED_MAX || self.text_bytes > TEXT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(forgotten) = self.ended.remove(&oldest) {
                self.text_bytes -= forgotten.text_bytes();
            }
        }
    }
}

impl Daemon {
    /// Keeps what became of a request, and why it has no result if so.
    pub(super) fn remember_end(&mut self, id: RequestId, open: &Open, outcome: RequestOutcome, reason: Option<&str>) {
        let is_own = open.correlation == self.requests.name(id);
        let ended = Ended {
            pool: open.pool,
            outcome,
            reason: reason.map(Box::from),
            correlation: (!is_own).then(|| open.correlation.as_str().into()),
            delivery: open.delivery,
            submitted: open.submitted,
            ended: self.now,
        };
        self.requests.past.add(id, ended);
    }

    /// How far requests are, or what became of them.
    pub(in crate::daemon) fn request_status(&self, request: &RequestStatusRequest) -> Outcome {
        let wanted = match request.pool.as_ref().map(|name| self.resolve_pool(name)).transpose() {
            Ok(wanted) => wanted,
            Err(error) => return error.into(),
        };
        let (name, number) = (request.request.as_str(), self.requests.number(&request.request).map(RequestId));
        let is_of = |pool: PoolId| wanted.map_or_else(|| self.pools.contains_key(&pool), |wanted| wanted == pool);
        let ended = self.requests.past.ended.iter().filter(|(id, ended)| {
            is_of(ended.pool) && (number == Some(**id) || ended.correlation.as_deref() == Some(name))
        });
        let open = self
            .requests
            .open
            .iter()
            .filter(|(id, open)| is_of(open.pool) && (number == Some(**id) || open.correlation == name));
        let mut told: Vec<(RequestId, RequestInfo)> = ended.map(|(id, one)| (*id, self.told_ended(*id, one))).collect();
        told.extend(open.map(|(id, one)| (*id, self.told_open(*id, one))));
        told.sort_by_key(|(id, _)| *id);
        if told.is_empty() {
            let what = format!("request {name}, among those under way and the last {ENDED_MAX} that are over,");
            return Error::NotFound { what }.into();
        }
        let requests = told.split_off(told.len().saturating_sub(TOLD_MAX)).into_iter().map(|(_, info)| info).collect();
        Outcome::Reply(Reply::last(&RequestStatusReply { requests }))
    }

    fn told_open(&self, id: RequestId, open: &Open) -> RequestInfo {
        let state = if self.engine.is_in_flight(id) { RequestState::Running } else { RequestState::Queued };
        self.told(id, open.pool, Some(&open.correlation), state, open.delivery, open.submitted)
    }

    fn told_ended(&self, id: RequestId, ended: &Ended) -> RequestInfo {
        let state = match ended.outcome {
            RequestOutcome::Answered => RequestState::Answered,
            RequestOutcome::NeverStarted => RequestState::NeverStarted,
            RequestOutcome::InDoubt => RequestState::InDoubt,
        };
        let correlation = ended.correlation.as_deref();
        RequestInfo {
            reason: ended.reason.as_deref().map(str::to_owned),
            ended_ms: Some(self.ms_since(ended.ended)),
            ..self.told(id, ended.pool, correlation, state, ended.delivery, ended.submitted)
        }
    }

    fn told(
        &self,
        id: RequestId,
        pool: PoolId,
        correlation: Option<&str>,
        state: RequestState,
        delivery: Option<Delivery>,
        submitted: Time,
    ) -> RequestInfo {
        let request = self.requests.name(id);
        RequestInfo {
            correlation: correlation.map_or_else(|| request.clone(), str::to_owned),
            request,
            pool: self.pools.get(&pool).map_or_else(String::new, |pool| pool.spec.name.to_string()),
            state,
            reason: None,
            worker: delivery.map(|delivery| self.worker_name(delivery.worker)),
            generation: delivery.map(|delivery| delivery.generation.0),
            attempts: delivery.map_or(0, |delivery| delivery.number),
            age_ms: self.ms_since(submitted),
            ended_ms: None,
        }
    }

    fn ms_since(&self, then: Time) -> u64 {
        u64::try_from(clock::since(then, self.now).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(correlation: Option<usize>) -> Ended {
        Ended {
            pool: PoolId(1),
            outcome: RequestOutcome::Answered,
            reason: None,
            correlation: correlation.map(|length| "x".repeat(length).into()),
            delivery: None,
            submitted: Time(0),
            ended: Time(1),
        }
    }

    #[test]
    fn as_many_are_known_as_may_be_and_the_latest_of_them() {
        let mut past = Past::default();
        for number in 0..2 * ENDED_MAX as u64 {
            past.add(RequestId(number), ended(None));
        }
        assert_eq!((past.ended.len(), past.order.len(), past.text_bytes), (ENDED_MAX, ENDED_MAX, 0));
        assert_eq!(past.ended.keys().next(), Some(&RequestId(ENDED_MAX as u64)));
    }

    #[test]
    fn long_texts_push_out_more_of_the_oldest() {
        let mut past = Past::default();
        for number in 0..2 * ENDED_MAX as u64 {
            past.add(RequestId(number), ended(Some(256)));
        }
        assert_eq!((past.ended.len(), past.text_bytes), (TEXT_BYTES_MAX / 256, TEXT_BYTES_MAX));
        for number in 0..ENDED_MAX as u64 {
            past.add(RequestId((1 << 40) | number), ended(None));
        }
        assert_eq!((past.ended.len(), past.text_bytes), (ENDED_MAX, 0));
    }
}
