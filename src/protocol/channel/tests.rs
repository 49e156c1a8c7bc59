//! Tests of the channel's frames: each kind there and back, each rule with its error.

use super::super::seeded::Seeded;
use super::*;

const ID: RequestId = RequestId::new(0xab);

fn json(text: &str) -> Option<Verbatim> {
    Some(Verbatim::parse(text.as_bytes()).unwrap())
}

fn request() -> Request {
    Request {
        id: ID,
        command: "c".into(),
        args: None,
        deadline_ms: None,
        stream: false,
        credit: 0,
        input: false,
        session: None,
        correlation: None,
        payload: None,
    }
}

fn full_request() -> Request {
    Request {
        args: json(r#"{ "a": [1.0, null] }"#),
        deadline_ms: Some(5),
        stream: true,
        credit: CREDIT_MAX,
        input: true,
        session: Some("s".into()),
        correlation: Some("k".into()),
        payload: Some(RequestPayload { bytes: PAYLOAD_BYTES_MAX, shared: true }),
        ..request()
    }
}

/// Each frame of a worker, as it is written.
fn from_worker() -> Vec<(FromWorker, &'static str)> {
    let failure = Failure { message: "m".into(), reason: None, category: None, details: None, traceback: None };
    let full_failure = Failure {
        message: "m".into(),
        reason: Some("r".into()),
        category: Some("c".into()),
        details: json("[ 1 ]"),
        traceback: Some("t".into()),
    };
    let lent = AnswerPayload { bytes: 9, in_request: true };
    let own = AnswerPayload { bytes: 0, in_request: false };
    vec![
        (FromWorker::Hello { protocol: 1, pid: Some(7) }, r#"{"kind":"hello","protocol":1,"pid":7}"#),
        (FromWorker::Hello { protocol: 1, pid: None }, r#"{"kind":"hello","protocol":1}"#),
        (FromWorker::Ready, r#"{"kind":"ready"}"#),
        (FromWorker::Pong { id: u64::MAX }, r#"{"kind":"pong","id":18446744073709551615}"#),
        (
            FromWorker::Result(Answer { id: ID, result: None, payload: None }),
            r#"{"kind":"result","id":"00000000000000ab"}"#,
        ),
        (
            FromWorker::Result(Answer { id: ID, result: json("null"), payload: Some(lent) }),
            r#"{"kind":"result","id":"00000000000000ab","result":null,"payload":{"bytes":9,"in_request":true}}"#,
        ),
        (
            FromWorker::Result(Answer { id: ID, result: json("1.0"), payload: Some(own) }),
            r#"{"kind":"result","id":"00000000000000ab","result":1.0,"payload":{"bytes":0}}"#,
        ),
        (
            FromWorker::Error(Box::new(Failed { id: ID, error: failure })),
            r#"{"kind":"error","id":"00000000000000ab","error":{"message":"m"}}"#,
        ),
        (
            FromWorker::Error(Box::new(Failed { id: ID, error: full_failure })),
            r#"{"kind":"error","id":"00000000000000ab","error":{"message":"m","reason":"r","category":"c","details":[ 1 ],"traceback":"t"}}"#,
        ),
        (
            FromWorker::Chunk(Chunk { id: ID, data: json("[]"), payload: Some(ChunkPayload { bytes: 3 }) }),
            r#"{"kind":"chunk","id":"00000000000000ab","data":[],"payload":{"bytes":3}}"#,
        ),
        (FromWorker::Credit(Credit { id: ID, count: 8 }), r#"{"kind":"credit","id":"00000000000000ab","count":8}"#),
        (
            FromWorker::Call(Call { call: 0, id: ID, tool: "t".into(), args: json("2") }),
            r#"{"kind":"call","call":0,"id":"00000000000000ab","tool":"t","args":2}"#,
        ),
        (
            FromWorker::Event(Event { event: "e".into(), measurements: json("{}"), metadata: json(r#"{"a":1}"#) }),
            r#"{"kind":"event","event":"e","measurements":{},"metadata":{"a":1}}"#,
        ),
        (FromWorker::Unsupported("bind"), r#"{"kind":"bind"}"#),
    ]
}

/// Each frame of the daemon, as it is written.
fn to_worker() -> Vec<(ToWorker, &'static str)> {
    let refusal = Refusal { reason: "r".into(), message: "m".into() };
    vec![
        (ToWorker::Hello { protocol: 1 }, r#"{"kind":"hello","protocol":1}"#),
        (ToWorker::Ping { id: 3 }, r#"{"kind":"ping","id":3}"#),
        (ToWorker::Request(Box::new(request())), r#"{"kind":"request","id":"00000000000000ab","command":"c"}"#),
        (
            ToWorker::Request(Box::new(full_request())),
            r#"{"kind":"request","id":"00000000000000ab","command":"c","args":{ "a": [1.0, null] },"deadline_ms":5,"stream":true,"credit":65536,"input":true,"session":"s","correlation":"k","payload":{"bytes":1099511627776,"shared":true}}"#,
        ),
        (ToWorker::Cancel { id: ID }, r#"{"kind":"cancel","id":"00000000000000ab"}"#),
        (ToWorker::Credit(Credit { id: ID, count: 1 }), r#"{"kind":"credit","id":"00000000000000ab","count":1}"#),
        (
            ToWorker::Chunk(InputChunk { id: ID, data: json("null"), payload: None, end: false }),
            r#"{"kind":"chunk","id":"00000000000000ab","data":null}"#,
        ),
        (
            ToWorker::Chunk(InputChunk { id: ID, data: None, payload: Some(ChunkPayload { bytes: 3 }), end: true }),
            r#"{"kind":"chunk","id":"00000000000000ab","payload":{"bytes":3},"end":true}"#,
        ),
        (
            ToWorker::Reply(Reply { call: 4, result: json("[]"), error: None }),
            r#"{"kind":"reply","call":4,"result":[]}"#,
        ),
        (
            ToWorker::Reply(Reply { call: 4, result: None, error: Some(refusal) }),
            r#"{"kind":"reply","call":4,"error":{"reason":"r","message":"m"}}"#,
        ),
        (ToWorker::Drain, r#"{"kind":"drain"}"#),
        (ToWorker::Forget, r#"{"kind":"forget"}"#),
        (ToWorker::Unsupported("bind"), r#"{"kind":"bind"}"#),
    ]
}

#[test]
fn each_frame_is_written_and_read_as_it_is_said() {
    for (frame, text) in from_worker() {
        assert_eq!(String::from_utf8(frame.encode().unwrap()).unwrap(), text);
        assert_eq!(FromWorker::decode(text.as_bytes()).unwrap(), frame);
    }
    for (frame, text) in to_worker() {
        assert_eq!(String::from_utf8(frame.encode().unwrap()).unwrap(), text);
        assert_eq!(ToWorker::decode(text.as_bytes()).unwrap(), frame);
    }
}

#[test]
fn a_kind_may_stand_anywhere_and_be_written_in_any_way() {
    for text in
        [r#"{"id":3,"kind":"pong"}"#, r#" { "k\u0069nd" : "pong", "id" : 3 } "#, r#"{"kind":"p\u006fng","id":3}"#]
    {
        assert_eq!(FromWorker::decode(text.as_bytes()).unwrap(), FromWorker::Pong { id: 3 });
    }
}

#[test]
fn what_is_absent_may_be_said_to_be_null() {
    let text = br#"{"kind":"request","id":"00000000000000ab","command":"c","deadline_ms":null,"session":null}"#;
    assert_eq!(ToWorker::decode(text).unwrap(), ToWorker::Request(Box::new(request())));
}

/// Whether both sides say frames of its kind.
fn goes_both_ways(text: &str) -> bool {
    ["chunk", "credit"].iter().any(|kind| text.starts_with(&format!("{{\"kind\":\"{kind}\"")))
}

#[test]
fn each_side_refuses_what_only_the_other_says() {
    let last = br#"{"kind":"chunk","id":"00000000000000ab","end":true}"#;
    assert!(FromWorker::decode(last).unwrap_err().to_string().contains("unknown field `end`"));
    for (frame, text) in to_worker().into_iter().filter(|(frame, _)| !matches!(frame, ToWorker::Unsupported(_))) {
        let read = FromWorker::decode(text.as_bytes());
        if matches!(frame, ToWorker::Hello { .. }) {
            assert!(read.is_ok());
        } else if !goes_both_ways(text) {
            assert!(read.unwrap_err().to_string().contains("a worker does not send `"), "{text}");
        }
    }
    for (frame, text) in from_worker().into_iter().filter(|(frame, _)| !matches!(frame, FromWorker::Unsupported(_))) {
        let read = ToWorker::decode(text.as_bytes());
        if let FromWorker::Hello { pid, .. } = frame {
            assert_eq!(read.is_ok(), pid.is_none());
        } else if !goes_both_ways(text) {
            assert!(read.unwrap_err().to_string().contains("the daemon does not send `"), "{text}");
        }
    }
}

#[test]
fn a_frame_says_whether_a_descriptor_comes_along() {
    let with: Vec<_> = from_worker().into_iter().filter(|(frame, _)| frame.has_descriptor()).collect();
    assert_eq!(with.iter().map(|(_, text)| text.split('"').nth(3).unwrap()).collect::<Vec<_>>(), ["result", "chunk"]);
    assert!(with.iter().all(|(_, text)| text.contains("payload") && !text.contains("in_request")));
    assert!(to_worker().iter().all(|(frame, text)| frame.has_descriptor() == text.contains("payload")));
}

#[test]
fn what_is_no_frame_is_refused_with_its_reason() {
    for (message, expected) in [
        ("{}", "expected a `kind`"),
        (r#"{"kind":1}"#, "expected a `kind`"),
        (r#"{"kind":"nope"}"#, "unknown kind `nope`"),
        (r#"{"kind":"ping","id":1}"#, "does not send `ping`"),
        (r#"{"kind":"pong"}"#, "missing field `id`"),
        (r#"{"kind":"pong","id":-1}"#, "invalid value"),
        (r#"{"kind":"pong","id":1.5}"#, "invalid type"),
        (r#"{"kind":"pong","id":1,"x":1}"#, "unknown field `x`"),
        (r#"{"kind":"pong","id":1,"id":2}"#, "duplicate field `id`"),
        (r#"{"kind":"pong","id":1,"kind":"pong"}"#, "duplicate field `kind`"),
        (r#"{"kind":"pong","id":1,"k\u0069nd":"pong"}"#, "duplicate field `kind`"),
        (r#"{"id":1,"kind":3,"kind":"pong"}"#, "duplicate field `kind`"),
        (r#"{"kind":"ready","x":1}"#, "unknown field `x`"),
        (r#"{"kind":"hello"}"#, "missing field `protocol`"),
        (r#"{"kind":"bind","a":1,"a":2}"#, "read a channel frame"),
        (r#"{"kind":"pong","id":1} 2"#, "read a channel frame"),
        ("", "read a channel frame"),
        ("[]", "read a channel frame"),
        (r#"{"kind":"result","id":171}"#, "16 lower-case hexadecimal digits"),
        (r#"{"kind":"result","id":"00000000000000AB"}"#, "16 lower-case hexadecimal digits"),
        (r#"{"kind":"result"}"#, "missing field `id`"),
        (r#"{"kind":"result","id":"00000000000000ab","result":{"a":1,"a":2}}"#, "key \"a\" comes twice"),
        (r#"{"kind":"result","id":"00000000000000ab","result":[1e999]}"#, "out of range"),
        (r#"{"kind":"result","id":"00000000000000ab","payload":{}}"#, "missing field `bytes`"),
        (r#"{"kind":"result","id":"00000000000000ab","payload":{"bytes":-1}}"#, "invalid value"),
        (r#"{"kind":"result","id":"00000000000000ab","payload":{"bytes":1099511627777}}"#, "`bytes`"),
        (r#"{"kind":"chunk","id":"00000000000000ab","payload":{"bytes":1,"shared":true}}"#, "unknown field `shared`"),
        (r#"{"kind":"error","id":"00000000000000ab"}"#, "missing field `error`"),
        (r#"{"kind":"error","id":"00000000000000ab","error":{}}"#, "missing field `message`"),
        (r#"{"kind":"call","call":-1,"id":"00000000000000ab","tool":"t"}"#, "invalid value"),
        (r#"{"kind":"call","call":1,"id":"00000000000000ab","tool":""}"#, "`tool` is empty"),
        (r#"{"kind":"event","event":"e","measurements":[]}"#, "`measurements` is not an object"),
        (r#"{"kind":"event","event":"e","metadata":null}"#, "`metadata` is not an object"),
    ] {
        let error = FromWorker::decode(message.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{message}: {error}");
    }
    for (message, expected) in [
        (r#"{"kind":"request","id":"00000000000000ab","command":""}"#, "`command` is empty"),
        (r#"{"kind":"request","id":"00000000000000ab","command":"c","credit":1}"#, "`credit` without `stream`"),
        (r#"{"kind":"request","id":"00000000000000ab","command":"c","stream":1}"#, "invalid type"),
        (r#"{"kind":"credit","id":"00000000000000ab","count":0}"#, "`count` is out of range"),
        (r#"{"kind":"credit","id":"00000000000000ab","count":65537}"#, "`count` is out of range"),
        (r#"{"kind":"chunk","id":"00000000000000ab","payload":{"bytes":1099511627777}}"#, "`bytes`"),
        (r#"{"kind":"chunk","id":"00000000000000ab","end":1}"#, "invalid type"),
        (r#"{"kind":"reply","call":1,"result":1,"error":{"reason":"r","message":"m"}}"#, "both `result` and `error`"),
    ] {
        let error = ToWorker::decode(message.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{message}: {error}");
    }
    let deep = format!(r#"{{"kind":"result","id":"{ID}","result":{}{}}}"#, "[".repeat(15), "]".repeat(15));
    assert!(FromWorker::decode(deep.as_bytes()).unwrap_err().to_string().contains("deeper than 14 levels"));
    let long = vec![b' '; FRAME_BYTES_MAX + 1];
    assert!(matches!(FromWorker::decode(&long), Err(ChannelError::TooLong)));
}

#[test]
fn texts_are_bounded_where_they_are_read_and_where_they_are_written() {
    let (long, longer) = ("n".repeat(NAME_BYTES_MAX), "n".repeat(NAME_BYTES_MAX + 1));
    let named = |command: &String, session: &String| {
        ToWorker::Request(Box::new(Request { command: command.clone(), session: Some(session.clone()), ..request() }))
    };
    let good = named(&long, &long).encode().unwrap();
    assert_eq!(ToWorker::decode(&good).unwrap(), named(&long, &long));
    for bad in [named(&longer, &long), named(&long, &longer)] {
        assert!(bad.encode().unwrap_err().to_string().contains("longer than 256 bytes"));
    }
    let text = String::from_utf8(good).unwrap().replace(&format!("\"{long}\""), &format!("\"{longer}\""));
    assert!(ToWorker::decode(text.as_bytes()).unwrap_err().to_string().contains("longer than 256 bytes"));
    for (field, bytes_max) in
        [("reason", REASON_BYTES_MAX), ("category", REASON_BYTES_MAX), ("traceback", TRACEBACK_BYTES_MAX)]
    {
        let text = |length: usize| {
            let text = "t".repeat(length);
            format!(r#"{{"kind":"error","id":"{ID}","error":{{"message":"m","{field}":"{text}"}}}}"#)
        };
        assert!(FromWorker::decode(text(bytes_max).as_bytes()).is_ok(), "{field}");
        assert!(FromWorker::decode(text(bytes_max + 1).as_bytes()).is_err(), "{field}");
    }
}

#[test]
fn a_frame_that_would_be_too_long_is_an_error() {
    let with = |length: usize| {
        let args = json(&format!("\"{}\"", "a".repeat(length)));
        ToWorker::Request(Box::new(Request { args, ..request() }))
    };
    let around = with(0).encode().unwrap().len();
    let longest = with(FRAME_BYTES_MAX - around);
    assert_eq!(longest.encode().unwrap().len(), FRAME_BYTES_MAX);
    assert_eq!(ToWorker::decode(&longest.encode().unwrap()).unwrap(), longest);
    assert!(matches!(with(FRAME_BYTES_MAX - around + 1).encode(), Err(ChannelError::TooLong)));
}

#[test]
fn no_message_makes_it_panic() {
    let pieces: &[&[u8]] = &[
        b"{",
        b"}",
        b"\"kind\":",
        b"\"pong\"",
        b"\"result\"",
        b"\"request\"",
        b",",
        b"\"id\":1",
        b"\"id\":\"00000000000000ab\"",
        b"\"payload\":{\"bytes\":1}",
        b"\"command\":\"c\"",
        b"\"bind\"",
    ];
    let mut good: Vec<_> = from_worker().into_iter().map(|(_, text)| text).collect();
    good.extend(to_worker().into_iter().map(|(_, text)| text));
    for seed in 0..3_000 {
        let mut seeded = Seeded::new(seed);
        drop(FromWorker::decode(&seeded.bytes(200, pieces)));
        drop(ToWorker::decode(&seeded.bytes(200, pieces)));
        let at = seeded.below(good.len());
        let mutated = seeded.mutated(good[at].as_bytes());
        let reread = |encoded: Result<Vec<u8>, ChannelError>| encoded.expect("what was read can be written");
        if let Ok(frame) = FromWorker::decode(&mutated) {
            assert_eq!(FromWorker::decode(&reread(frame.encode())).unwrap(), frame);
        }
        if let Ok(frame) = ToWorker::decode(&mutated) {
            assert_eq!(ToWorker::decode(&reread(frame.encode())).unwrap(), frame);
        }
    }
}
