//! Tests of the Varlink framing: whole, cut, glued, too long, junk.

use serde_json::json;

use super::super::seeded::Seeded;
use super::*;

#[test]
fn frames_come_out_however_the_stream_is_cut() {
    let stream = b"{\"a\":1}\0{}\0\0{\"b\":2}\0";
    for seed in 0..500 {
        let mut seeded = Seeded::new(seed);
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        let mut rest: &[u8] = stream;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(1 + seeded.below(rest.len()));
            decoder.push(head);
            if seeded.below(2) == 0 {
                frames.extend(decoder.next_frame().unwrap());
            }
            rest = tail;
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        assert_eq!(frames, [&b"{\"a\":1}"[..], b"{}", b"", b"{\"b\":2}"]);
        assert_eq!(decoder.waiting_bytes(), 0);
    }
}

#[test]
fn the_longest_frame_passes_and_one_byte_more_does_not() {
    let mut decoder = Decoder::new();
    decoder.push(&[b' '; FRAME_BYTES_MAX]);
    assert_eq!(decoder.next_frame(), Ok(None));
    decoder.push(b"\0");
    assert_eq!(decoder.next_frame().unwrap().unwrap().len(), FRAME_BYTES_MAX);

    decoder.push(&[b' '; FRAME_BYTES_MAX]);
    decoder.push(b" \0");
    let refused = Err(FrameError::TooLong { bytes_max: FRAME_BYTES_MAX });
    assert_eq!(decoder.next_frame(), refused);
    decoder.push(b"{}\0");
    assert_eq!(decoder.next_frame(), refused, "a stream that broke a limit stays refused");
}

#[test]
fn two_mebibytes_without_an_end_are_one_clear_error_and_are_not_kept() {
    let mut decoder = Decoder::new();
    for _ in 0..2048 {
        decoder.push(&[b'x'; 1024]);
        assert!(decoder.buffer.capacity() <= FRAME_BYTES_MAX * BACKLOG_FRAMES_MAX * 2);
    }
    let error = decoder.next_frame().unwrap_err();
    assert_eq!(error.to_string(), "message is longer than 262144 bytes");
    assert_eq!(decoder.buffer.capacity(), 0);
    let reply = error.reply();
    assert_eq!(reply.error.as_deref(), Some("io.halsup.Control.Refused"));
    assert_eq!(reply.parameters["reason"], "message is longer than 262144 bytes");
}

#[test]
fn frames_that_nobody_takes_out_do_not_pile_up() {
    let mut decoder = Decoder::new();
    for _ in 0..200_000 {
        decoder.push(b"{\"a\":12}\0");
    }
    assert!(matches!(decoder.next_frame(), Err(FrameError::Backlog { .. })));
    assert_eq!(decoder.waiting_bytes(), 0);
}

#[test]
fn the_last_frame_is_told_from_those_before_it_whole_or_in_part() {
    let mut decoder = Decoder::new();
    for (pushed, before) in [(&b"a"[..], 0), (b"bc", 0), (b"\0", 0), (b"d", 1), (b"\0e\0", 2)] {
        decoder.push(pushed);
        assert_eq!(decoder.frames_before_last(), before, "after {pushed:?}");
    }
    assert_eq!(decoder.next_frame().unwrap(), Some(b"abc".to_vec()));
    assert_eq!(decoder.frames_before_last(), 1);
}

#[test]
fn calls_and_replies_survive_the_way_there_and_back() {
    let call = Call {
        method: "io.halsup.Control.Logs".into(),
        parameters: object_of(&json!({"worker": "web.3", "text": "nul \u{0} inside"})),
        oneway: false,
        more: true,
        upgrade: false,
    };
    let frame = call.encode();
    assert_eq!(frame.iter().filter(|byte| **byte == 0).count(), 1);
    assert_eq!(Call::decode(&frame[..frame.len() - 1]).unwrap(), call);
    let reply = Reply::piece(&json!({"x": [1, null]}));
    let frame = reply.encode();
    assert_eq!(Reply::decode(&frame[..frame.len() - 1]).unwrap(), reply);
    assert_eq!(Reply::last(&json!({})).encode(), b"{\"parameters\":{}}\0");
}

#[test]
fn what_is_no_call_is_refused_with_its_reason() {
    for (frame, expected) in [
        (r#"{"method":"a.B","parameters":{}}"#, ""),
        (r#"{"method":"a.B","parameters":null}"#, ""),
        (r#"{"method":"a.B","more":true,"oneway":false}"#, ""),
        (r#"{}"#, "missing field `method`"),
        (r#"{"method":1}"#, "expected a string"),
        (r#"{"method":"a.B","fds":1}"#, "unknown field `fds`"),
        (r#"{"method":"a.B","parameters":[]}"#, "expected a map"),
        (r#"{"method":"a.B","more":"yes"}"#, "expected a boolean"),
        (r#"{"method":"a.B","method":"a.C"}"#, "comes twice"),
        ("junk", "not valid"),
    ] {
        match Call::decode(frame.as_bytes()) {
            Ok(_) => assert_eq!(expected, "", "{frame}"),
            Err(error) => {
                let reason = error.reply().parameters["reason"].as_str().unwrap().to_string();
                assert!(!expected.is_empty() && reason.contains(expected), "{frame}: {reason}");
            }
        }
    }
}

#[test]
fn no_bytes_make_the_decoders_panic_or_grow() {
    let pieces: &[&[u8]] = &[
        b"{",
        b"}",
        b"\0",
        b"\"method\":",
        b"\"a.B\"",
        b",",
        b"\"parameters\":",
        b"{}",
        b"\"more\":true",
        b"\"error\":",
    ];
    for seed in 0..2_000 {
        let mut seeded = Seeded::new(seed);
        let bytes = seeded.bytes(400, pieces);
        let mut decoder = Decoder::with_limit(64);
        for chunk in bytes.chunks(1 + seeded.below(50)) {
            decoder.push(chunk);
            assert!(decoder.waiting_bytes() <= 64 * BACKLOG_FRAMES_MAX);
            while let Ok(Some(frame)) = decoder.next_frame() {
                assert!(frame.len() <= 64);
                drop(Call::decode(&frame));
                drop(Reply::decode(&frame));
            }
        }
        let good = br#"{"method":"io.halsup.Control.List","parameters":{"pool":"web"},"more":true}"#;
        drop(Call::decode(&seeded.mutated(good)));
    }
}
