//! What is promised of the bytes that callers and workers send: control calls, channel frames, notify datagrams.

use std::time::Duration;

use halsup::protocol::attach::CELLS_MAX;
use halsup::protocol::channel::{
    self, Answer, ChannelError, Chunk, ChunkPayload, FromWorker, InputChunk, Reply as ChannelReply, RequestId,
    ToWorker, Verbatim,
};
use halsup::protocol::control::{
    LAST_MAX, LOG_FILTER_BYTES_MAX, LOG_LINES_MAX, Request, SCALE_COUNT_MAX, SEND_BYTES_MAX, SHUTDOWN_TIMEOUT_MS_MAX,
};
use halsup::protocol::notify::{self, DATAGRAM_BYTES_MAX, DURATION_MAX, STATUS_CHARS_MAX};
use halsup::protocol::varlink::{Call, Decoder, FRAME_BYTES_MAX, FrameError, Reply};

use super::spec::is_pool_name;

/// The most that a decoder may hold.
const WAITING_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;
/// A stream is read from a socket in pieces of at most this.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// The longest reply to a call or a frame that was refused: it may quote its sender, but not at length.
const REFUSAL_BYTES_MAX: usize = 4_096;

/// A control connection: the first byte says in which pieces the rest arrives, or that it is a flood.
pub fn control_frame(data: &[u8]) {
    let Some((&how, stream)) = data.split_first() else { return };
    // 3 and 5 pieces are below and above a frame's limit, 15 and 17 below and above what may wait.
    let pieces = match how {
        0xfc => 3,
        0xfd => 5,
        0xfe => 15,
        0xff => 17,
        _ => {
            let frames = frames_in_pieces(stream, 1 + usize::from(how) * 7);
            return frames.iter().for_each(|frame| control_call(frame));
        }
    };
    // A block of 4 KiB that is repeated: its beginning is what a fuzzer should play with, its length is not.
    let block = stream.iter().copied().take(64).chain(std::iter::repeat(b' ')).take(4_096).collect::<Vec<u8>>();
    let flood = block.repeat(pieces * PIECE_BYTES_MAX / block.len());
    frames_in_pieces(&flood, PIECE_BYTES_MAX);
    frames_at_once(&flood);
}

/// Pushes `stream` piece by piece, taking out after each what is there, as the daemon does.
fn frames_in_pieces(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let (mut decoder, mut frames, mut failed) = (Decoder::new(), Vec::new(), None);
    for bytes in stream.chunks(piece) {
        decoder.push(bytes);
        assert!(decoder.waiting_bytes() <= FRAME_BYTES_MAX + piece, "more waits than one frame and one piece");
        while failed.is_none() {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            assert_eq!(decoder.next_frame(), Err(error), "a stream that failed has a meaning again");
            assert_eq!(decoder.waiting_bytes(), 0, "a stream that failed is kept");
        }
    }
    // The same by hand: frames are what stands between NULs, up to the first that is too long.
    let mut expected: Vec<&[u8]> = stream.split(|byte| *byte == 0).collect();
    let too_long = expected.iter().position(|frame| frame.len() > FRAME_BYTES_MAX);
    let rest = expected.pop().unwrap_or_default();
    if let Some(at) = too_long {
        expected.truncate(at);
        assert_eq!(failed, Some(FrameError::TooLong { bytes_max: FRAME_BYTES_MAX }));
    } else {
        assert_eq!((failed, decoder.waiting_bytes()), (None, rest.len()));
    }
    assert!(frames == expected, "the frames are not what stands between the NULs");
    frames
}

/// Pushes all of `stream` before anything is taken out, as a peer that is faster than the daemon would.
fn frames_at_once(stream: &[u8]) {
    let mut decoder = Decoder::new();
    for bytes in stream.chunks(PIECE_BYTES_MAX) {
        decoder.push(bytes);
        assert!(decoder.waiting_bytes() <= WAITING_BYTES_MAX, "more waits than the limit");
    }
    let overrun = stream.len() > WAITING_BYTES_MAX;
    let first = stream.split(|byte| *byte == 0).next().unwrap_or_default();
    let next = decoder.next_frame();
    assert_eq!(next.is_err(), overrun || first.len() > FRAME_BYTES_MAX, "{next:?}");
    if let Err(error) = next {
        assert_eq!(decoder.next_frame(), Err(error));
        refusal(&error.reply());
    }
}

fn control_call(frame: &[u8]) {
    let call = match Call::decode(frame) {
        Ok(call) => call,
        Err(error) => return refusal(&error.reply()),
    };
    let written = call.encode();
    assert_eq!(written.iter().position(|byte| *byte == 0), Some(written.len() - 1), "one NUL, at the end");
    let more = call.more;
    let again = Call::decode(&written[..written.len() - 1]).expect("a call that was read can be read again");
    // Their values may differ in the last digit of a fraction, which no method takes.
    assert!(call.method == again.method && call.parameters.keys().eq(again.parameters.keys()));
    assert_eq!((call.oneway, more, call.upgrade), (again.oneway, again.more, again.upgrade));
    match Request::decode(call) {
        Ok(request) => accepted(&request, more),
        Err(error) => refusal(&error.to_reply()),
    }
}

/// Of a request that the daemon would carry out.
fn accepted(request: &Request, more: bool) {
    assert!(more || !request.follows(), "follows for a caller that takes one reply");
    let mut call = request.to_call();
    call.more = more;
    let written = call.encode();
    let read = Call::decode(&written[..written.len() - 1]).expect("a request can be sent");
    assert_eq!(Request::decode(read).as_ref(), Ok(request), "a request means something else when it is sent on");
    if let Some(pool) = request.object().pool() {
        assert!(is_pool_name(pool.as_str()), "{pool:?}");
    }
    if let Request::Kill(kill) = request {
        assert!(kill.signal.is_none_or(|signal| (1..=64).contains(&signal)));
    }
    if let Request::Scale(scale) = request {
        assert!(scale.count <= SCALE_COUNT_MAX);
    }
    if let Request::Logs(logs) = request {
        assert!(logs.lines() <= LOG_LINES_MAX);
    }
    if let Request::Send(send) = request {
        assert!((1..=SEND_BYTES_MAX).contains(&send.text.len()));
    }
    if let Request::Exec(exec) = request {
        let words = exec.command.iter().chain(exec.env.iter().flatten());
        assert!(exec.command.first().is_some_and(|program| !program.is_empty()));
        assert!(words.clone().count() <= 2_048 && words.clone().all(|word| !word.contains('\0')));
        assert!(exec.env.iter().flatten().all(|variable| variable.find('=').is_some_and(|at| at > 0)));
        assert!([exec.columns, exec.rows].iter().flatten().all(|cells| (1..=CELLS_MAX).contains(cells)));
    }
    if let Request::Events(events) = request {
        assert!(events.last() <= LAST_MAX);
    }
    if let Request::Certificates(certificates) = request {
        assert!(certificates.last() <= LAST_MAX);
    }
    if let Request::Shutdown(shutdown) = request {
        assert!(shutdown.timeout_ms.is_none_or(|timeout| timeout <= SHUTDOWN_TIMEOUT_MS_MAX));
    }
    if let Request::SetLog(log) = request {
        assert!(log.filter.len() <= LOG_FILTER_BYTES_MAX && !log.filter.contains(char::is_control));
    }
}

/// Of an answer that says no: it is an error, a client can read it, and it is short.
fn refusal(reply: &Reply) {
    let written = reply.encode();
    assert!(written.len() <= REFUSAL_BYTES_MAX, "a refusal of {} bytes", written.len());
    let read = Reply::decode(&written[..written.len() - 1]).expect("a client can read the refusal");
    assert_eq!(&read, reply);
    assert!(read.error.is_some() && !read.continues, "a refusal is the last reply and an error");
}

/// A message on the channel, read as each side would; then frames with numbers from the same bytes, there and back.
pub fn channel_frame(data: &[u8]) {
    let (from, to) = (FromWorker::decode(data), ToWorker::decode(data));
    if data.len() > channel::FRAME_BYTES_MAX {
        assert!(matches!(from, Err(ChannelError::TooLong)) && matches!(to, Err(ChannelError::TooLong)));
    }
    match (&from, &to) {
        (Ok(FromWorker::Hello { protocol: said, .. }), Ok(ToWorker::Hello { protocol: heard })) => {
            assert_eq!(said, heard);
        }
        (Ok(FromWorker::Unsupported(said)), Ok(ToWorker::Unsupported(heard))) => assert_eq!(said, heard),
        // What goes both ways is the same both ways; only a chunk towards a worker may be the last.
        (Ok(FromWorker::Credit(said)), Ok(ToWorker::Credit(heard))) => assert_eq!(said, heard),
        (Ok(FromWorker::Chunk(said)), Ok(ToWorker::Chunk(heard))) => {
            assert_eq!((said.id, &said.data, said.payload), (heard.id, &heard.data, heard.payload));
        }
        (Ok(FromWorker::Unsupported(_)), Err(_)) | (Err(_), Ok(ToWorker::Unsupported(_))) => {
            panic!("reserved on one side alone")
        }
        (Ok(_), Ok(_)) => panic!("{from:?} is also {to:?}"),
        (Err(error), _) | (_, Err(error)) => {
            assert!(error.to_string().len() <= 2_000, "an error of {} bytes", error.to_string().len());
        }
    }
    if let Ok(frame) = &from {
        from_worker_in_range(frame);
        let written = frame.encode().expect("what was read can be written");
        assert_eq!(&FromWorker::decode(&written).expect("a frame can be sent on"), frame);
    }
    if let Ok(frame) = &to {
        to_worker_in_range(frame);
        let written = frame.encode().expect("what was read can be written");
        assert_eq!(&ToWorker::decode(&written).expect("a frame can be sent on"), frame);
    }

    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(data.iter().skip(at)).for_each(|(byte, given)| *byte = *given);
        u64::from_le_bytes(bytes)
    };
    let (id, low) = (number(0), u32::try_from(number(1) & 0xffff_ffff).unwrap_or_default());
    sent_from_worker(&FromWorker::Hello { protocol: low, pid: data.first().map(|_| low.rotate_left(7)) });
    sent_from_worker(&FromWorker::Pong { id });
    sent_to_worker(&ToWorker::Hello { protocol: low });
    sent_to_worker(&ToWorker::Ping { id });
    sent_to_worker(&ToWorker::Cancel { id: RequestId::new(id) });
    passed_on(data, RequestId::new(id));
}

/// A caller's value on its way to a worker, and a worker's on its way back: what is taken goes on byte for byte, whatever
/// stands around it.
fn passed_on(data: &[u8], id: RequestId) {
    let Ok(value) = Verbatim::parse(data) else { return };
    let inside = data.trim_ascii();
    assert!(value.text().as_bytes() == inside, "a value is changed on its way");
    // Whoever reads it at the end builds a tree of it.
    let tree: serde_json::Value = serde_json::from_str(value.text()).expect("what is passed on is JSON");
    assert_eq!(value.is_object(), tree.is_object());
    let answer = Answer { id, result: Some(value.clone()), payload: None };
    let payload = Some(ChunkPayload { bytes: id.number() });
    let chunk = Chunk { id, data: Some(value.clone()), payload };
    let input = InputChunk { id, data: Some(value.clone()), payload, end: id.number().is_multiple_of(2) };
    sent_to_worker(&ToWorker::Chunk(input));
    sent_from_worker(&FromWorker::Result(answer));
    sent_from_worker(&FromWorker::Chunk(chunk));
    sent_to_worker(&ToWorker::Reply(ChannelReply { call: id.number(), result: Some(value), error: None }));
}

fn sent_from_worker(frame: &FromWorker) {
    let Some(written) = sent(frame.encode()) else { return };
    assert_eq!(&FromWorker::decode(&written).expect("a frame can be sent"), frame);
}

fn sent_to_worker(frame: &ToWorker) {
    let Some(written) = sent(frame.encode()) else { return };
    assert_eq!(&ToWorker::decode(&written).expect("a frame can be sent"), frame);
}

/// A frame that is refused on the way out says so shortly; one that is not fits.
fn sent(encoded: Result<Vec<u8>, ChannelError>) -> Option<Vec<u8>> {
    match encoded {
        Ok(written) => {
            assert!(written.len() <= channel::FRAME_BYTES_MAX);
            Some(written)
        }
        Err(error) => {
            assert!(error.to_string().len() <= 2_000, "an error of {} bytes", error.to_string().len());
            None
        }
    }
}

/// Of a frame of a worker that the daemon would act on: every text and number is in its range, whatever it was written as.
fn from_worker_in_range(frame: &FromWorker) {
    let name = |text: &str| (1..=channel::NAME_BYTES_MAX).contains(&text.len());
    let at_most = |text: &Option<String>, bytes_max: usize| text.iter().all(|text| text.len() <= bytes_max);
    match frame {
        FromWorker::Result(answer) => {
            assert!(answer.payload.is_none_or(|payload| payload.bytes <= channel::PAYLOAD_BYTES_MAX));
            assert_eq!(frame.has_descriptor(), answer.payload.is_some_and(|payload| !payload.in_request));
        }
        FromWorker::Chunk(chunk) => {
            assert!(chunk.payload.is_none_or(|payload| payload.bytes <= channel::PAYLOAD_BYTES_MAX));
            assert_eq!(frame.has_descriptor(), chunk.payload.is_some());
        }
        FromWorker::Error(failed) => {
            let error = &failed.error;
            assert!(error.message.len() <= channel::MESSAGE_BYTES_MAX);
            assert!(at_most(&error.traceback, channel::TRACEBACK_BYTES_MAX));
            assert!([&error.reason, &error.category].iter().all(|one| at_most(one, channel::REASON_BYTES_MAX)));
        }
        FromWorker::Credit(credit) => assert!((1..=channel::CREDIT_MAX).contains(&credit.count)),
        FromWorker::Call(call) => assert!(name(&call.tool)),
        FromWorker::Event(event) => {
            assert!(name(&event.event));
            assert!([&event.measurements, &event.metadata].into_iter().flatten().all(Verbatim::is_object));
        }
        FromWorker::Hello { .. } | FromWorker::Ready | FromWorker::Pong { .. } | FromWorker::Unsupported(_) => {}
    }
}

/// The same of a frame of the daemon.
fn to_worker_in_range(frame: &ToWorker) {
    if let ToWorker::Request(request) = frame {
        let names = [Some(&request.command), request.session.as_ref(), request.correlation.as_ref()];
        assert!(names.into_iter().flatten().all(|name| (1..=channel::NAME_BYTES_MAX).contains(&name.len())));
        assert!(request.credit <= channel::CREDIT_MAX && (request.stream || request.credit == 0));
        assert_eq!(frame.has_descriptor(), request.payload.is_some());
    }
    if let ToWorker::Chunk(chunk) = frame {
        assert!(chunk.payload.is_none_or(|payload| payload.bytes <= channel::PAYLOAD_BYTES_MAX));
        assert_eq!(frame.has_descriptor(), chunk.payload.is_some());
    }
    if let ToWorker::Credit(credit) = frame {
        assert!((1..=channel::CREDIT_MAX).contains(&credit.count));
    }
    if let ToWorker::Reply(reply) = frame {
        assert!(reply.result.is_none() || reply.error.is_none());
    }
}

/// A datagram of sd_notify.
pub fn sd_notify(data: &[u8]) {
    let said = notify::parse(data);
    let lines = data.split(|byte| *byte == b'\n').count();
    assert!(usize::try_from(said.junk_lines + said.unused_lines).is_ok_and(|counted| counted <= lines));
    assert!(said.status.as_ref().is_none_or(|status| status.chars().count() <= STATUS_CHARS_MAX));
    assert!(said.errno.is_none_or(|errno| (1..=4_095).contains(&errno)));
    assert!(said.watchdog_interval.is_none_or(|interval| !interval.is_zero() && interval <= DURATION_MAX));
    assert!(said.extend_timeout.is_none_or(|extend| extend <= DURATION_MAX));
    let nothing = notify::Notification { junk_lines: 1, ..notify::Notification::default() };
    if data.strip_suffix(b"\0").unwrap_or(data).len() > DATAGRAM_BYTES_MAX {
        assert_eq!(said, nothing, "too long, and yet something was understood");
    }
    if !data.ends_with(b"\0") {
        let with_nul = [data, b"\0"].concat();
        assert_eq!(notify::parse(&with_nul), said, "a C string's NUL changes what is said");
    }
    // One more line says one thing more and takes nothing back.
    let longer = [data, b"\nREADY=1"].concat();
    if !data.is_empty() && !data.contains(&0) && !data.ends_with(b"\n") && longer.len() <= DATAGRAM_BYTES_MAX {
        assert_eq!(notify::parse(&longer), notify::Notification { ready: true, ..said.clone() });
    }
    let spoken = spoken(&said);
    if spoken.len() <= DATAGRAM_BYTES_MAX && !spoken.is_empty() {
        let known = notify::Notification { unused_lines: 0, junk_lines: 0, ..said };
        assert_eq!(notify::parse(&spoken), known, "what was understood means something else when it is said again");
    }
}

/// What was understood, as a program would say it.
fn spoken(said: &notify::Notification) -> Vec<u8> {
    let usec = |time: Duration| time.as_micros();
    let lines = [
        said.ready.then(|| "READY=1".to_owned()),
        said.reloading.then(|| "RELOADING=1".to_owned()),
        said.stopping.then(|| "STOPPING=1".to_owned()),
        said.status.as_ref().map(|status| format!("STATUS={status}")),
        said.errno.map(|errno| format!("ERRNO={errno}")),
        said.watchdog.map(|watchdog| match watchdog {
            notify::Watchdog::Beat => "WATCHDOG=1".to_owned(),
            notify::Watchdog::Trigger => "WATCHDOG=trigger".to_owned(),
        }),
        said.watchdog_interval.map(|time| format!("WATCHDOG_USEC={}", usec(time))),
        said.extend_timeout.map(|time| format!("EXTEND_TIMEOUT_USEC={}", usec(time))),
        said.monotonic.map(|time| format!("MONOTONIC_USEC={}", usec(time))),
    ];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n").into_bytes()
}
