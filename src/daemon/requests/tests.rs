//! What requests become on their way, without a daemon around them: `tests/it/requests` has that.

use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde_json::json;

use super::accept::{FRAME_REST_BYTES, PAYLOADS_BYTES_OF_USER_MAX, demand, payload, read};
use super::deliver::frame_of;
use super::*;
use crate::protocol::channel::{FRAME_BYTES_MAX, ToWorker};
use crate::protocol::control::ExecuteRequest;
use crate::spec::Generation;

const WORKER: WorkerId = WorkerId { pool: PoolId(1), slot: 2 };

fn pool(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

fn request(command: &str) -> ExecuteRequest {
    ExecuteRequest::of(pool("work"), command.to_owned())
}

fn text(json: &str) -> Verbatim {
    Verbatim::parse(json.as_bytes()).expect("JSON")
}

fn open(uid: u32) -> Open {
    Open {
        waits: (0, 0),
        uid,
        pool: WORKER.pool,
        command: "do".to_owned(),
        args: None,
        session: None,
        correlation: "tied".to_owned(),
        payload: None,
        stream: false,
        submitted: Time(1),
        began: None,
        delivery: None,
        credit: CREDIT,
        inflow: None,
        meter: Metering::Unwanted,
        lease: None,
    }
}

fn delivery(attempt: u64, generation: u64) -> Delivery {
    let deadline = Time(9_000_000_000);
    Delivery { attempt: AttemptId(attempt), worker: WORKER, generation: Generation(generation), number: 1, deadline }
}

fn memory(size: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("payload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("make memory");
    ftruncate(&fd, size).expect("give it a size");
    fcntl_add_seals(&fd, seals).expect("seal it");
    fd
}

const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
const IMMUTABLE: SealFlags = FIXED.union(SealFlags::WRITE);

#[test]
fn what_is_said_of_a_request_is_what_the_engine_hears() {
    let mut said = request("do");
    (said.timeout_ms, said.queue_timeout_ms, said.idempotent) = (Some(1_500), Some(20), Some(true));
    let heard = demand(&said, Some(SessionId(3)), None);
    let times = (Some(Duration::from_millis(1_500)), Some(Duration::from_millis(20)));
    assert_eq!((heard.timeout, heard.queue_timeout), times);
    assert_eq!((heard.idempotent, heard.session, heard.affinity), (true, Some(SessionId(3)), None));
    said.stream = Some(true);
    assert!(!demand(&said, None, None).idempotent, "chunks cannot be taken back");
    (said.stream, said.input) = (None, Some(true));
    assert!(!demand(&said, None, None).idempotent, "nor can those that were sent");
    assert!(!demand(&request("do"), None, None).idempotent);
}

#[test]
fn requests_that_say_the_same_are_known_again_and_others_are_not() {
    let of = |command: &str, args: Option<&Verbatim>| demand(&request(command), None, args).fingerprint;
    let (one, other) = (text("[1]"), text("[2]"));
    assert_eq!(of("do", Some(&one)), of("do", Some(&text("[1]"))));
    let all = [of("do", None), of("do", Some(&one)), of("do", Some(&other)), of("undo", Some(&one))];
    let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
    assert_eq!(distinct.len(), all.len());
}

#[test]
fn arguments_fit_a_frame_to_the_byte() {
    let most = FRAME_BYTES_MAX - FRAME_REST_BYTES;
    // Two bytes are the quotes.
    for (length, fits) in [(most - 2, true), (most - 1, false)] {
        let mut said = request(&"c".repeat(256));
        said.args = Some(json!("x".repeat(length)));
        let args = read(&said);
        assert_eq!(args.is_ok(), fits, "{length}");
        let mut longest = open(0);
        (longest.command, longest.args) = (said.command, args.ok().flatten());
        (longest.session, longest.correlation) = (Some("s".repeat(256)), "t".repeat(256));
        assert!(frame_of(&longest, &delivery(u64::MAX, 1), Time(0)).encode().is_ok());
    }
}

#[test]
fn a_worker_is_told_what_is_left_of_the_time_and_what_memory_it_gets() {
    let mut asked = open(0);
    asked.stream = true;
    asked.payload =
        Some(Payload { said: SentPayload { bytes: 7, shared: Some(true) }, fd: memory(10, FIXED), size: 10 });
    let ToWorker::Request(told) = frame_of(&asked, &delivery(5, 1), Time(2_000_000_000)) else {
        panic!("a request is sent")
    };
    assert_eq!((told.deadline_ms, told.credit, told.id.number()), (Some(7_000), CREDIT, 5));
    let memory = told.payload.expect("it has some");
    assert_eq!((memory.bytes, memory.shared), (7, true));
    let ToWorker::Request(late) = frame_of(&open(0), &delivery(5, 1), Time(10_000_000_000)) else {
        panic!("a request is sent")
    };
    assert_eq!((late.deadline_ms, late.credit, late.payload), (Some(0), 0, None));
}

#[test]
fn memory_is_what_it_is_said_to_be_and_counted_as_large_as_it_is() {
    let said = |bytes, shared: bool| Some(SentPayload { bytes, shared: shared.then_some(true) });
    let taken = payload(said(10, false), Some(memory(100, IMMUTABLE))).expect("it is some").expect("it was said");
    assert_eq!((taken.size, taken.is_lent()), (100, false));
    assert!(payload(said(10, true), Some(memory(100, FIXED))).expect("it is some").is_some_and(|lent| lent.is_lent()));
    assert!(payload(said(10, false), Some(memory(100, FIXED))).is_err(), "it can be written");
    assert!(payload(said(101, false), Some(memory(100, IMMUTABLE))).is_err());
    assert!(payload(said(10, false), None).is_err());
    assert!(payload(None, Some(memory(1, IMMUTABLE))).expect("nobody speaks of it").is_none());

    let mut requests = Requests::new(1);
    let mut held = open(7);
    held.payload = Some(Payload { size: PAYLOADS_BYTES_OF_USER_MAX - 10, ..taken });
    requests.open.insert(RequestId(1), held);
    assert_eq!((requests.refusal_of(7, 10), requests.refusal_of(7, 0)), (None, None));
    assert_eq!(requests.refusal_of(8, PAYLOADS_BYTES_OF_USER_MAX), None, "another user");
    assert!(requests.refusal_of(7, 11).is_some() && requests.refusal_of(7, u64::MAX).is_some());
    assert!(requests.refusal_of(8, PAYLOADS_BYTES_OF_USER_MAX + 1).is_some());
    requests.open.clear();
    assert_eq!(requests.refusal_of(7, 11), None);
}

#[test]
fn an_attempt_is_of_one_request_in_one_spawn_of_one_worker() {
    let mut requests = Requests::new(1);
    let mut given = open(0);
    given.delivery = Some(delivery(5, 3));
    requests.open.insert(RequestId(1), given);
    requests.attempts.insert(AttemptId(5), RequestId(1));
    // An earlier try of it that its worker has not given up yet.
    requests.attempts.insert(AttemptId(4), RequestId(1));
    let of = |attempt, worker, generation| requests.of_attempt(AttemptId(attempt), worker, Generation(generation));
    assert_eq!(of(5, WORKER, 3), Some(RequestId(1)));
    let other = WorkerId { slot: 1, ..WORKER };
    assert_eq!([of(4, WORKER, 3), of(5, WORKER, 2), of(5, other, 3), of(6, WORKER, 3)], [None; 4]);
}

#[test]
fn a_session_is_known_by_its_name_in_its_pool_until_it_is_forgotten() {
    let mut requests = Requests::new(1);
    let one = requests.session(&pool("work"), "a");
    assert_eq!(requests.session(&pool("work"), "a"), one);
    let others = [requests.session(&pool("work"), "b"), requests.session(&pool("more"), "a")];
    assert!(others[0] != one && others[1] != one && others[0] != others[1]);
    assert_eq!(requests.forget_session(one), Some((pool("work"), "a".to_owned())));
    assert_eq!(requests.forget_session(one), None);
    assert_ne!(requests.session(&pool("work"), "a"), one, "nobody takes it for the one before");
}
