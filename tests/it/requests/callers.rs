//! Callers that are careless or hostile: what they send is refused in one sentence, nothing of it is kept, others are served.

use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, parameters, refused, result};
use crate::needs::needs;
use crate::peer::{Peer, call};

const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
const IMMUTABLE: SealFlags = FIXED.union(SealFlags::WRITE);

fn memory(size: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("payload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("make memory");
    ftruncate(&fd, size).expect("give it a size");
    fcntl_add_seals(&fd, seals).expect("seal it");
    fd
}

fn opened(path: &str, flags: OFlags) -> OwnedFd {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap_or_else(|error| panic!("open {path}: {error}"))
}

/// Says this with descriptors beside its first byte.
#[track_caller]
fn pass(peer: &Peer, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(&peer.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).expect("send");
    assert_eq!(sent, bytes.len());
}

/// A call that announces a payload.
fn announced(command: &str, bytes: u64, shared: bool) -> Vec<u8> {
    let payload = if shared { json!({ "bytes": bytes, "shared": true }) } else { json!({ "bytes": bytes }) };
    call("Execute", &parameters("work", command, &json!(null), &json!({ "payload": payload })))
}

/// What there is instead of memory.
fn bad() -> Vec<(&'static str, OwnedFd)> {
    let (pipe, _) = rustix::pipe::pipe().expect("make a pipe");
    let (socket, _) = std::os::unix::net::UnixStream::pair().expect("make a pair");
    let file = tempfile::tempfile().expect("make a file");
    file.set_len(100).expect("give it a size");
    vec![
        ("pipe", pipe),
        ("socket", socket.into()),
        ("file", file.into()),
        ("directory", opened("/", OFlags::RDONLY)),
        ("/dev/zero", opened("/dev/zero", OFlags::RDWR)),
        ("/proc/self/mem", opened("/proc/self/mem", OFlags::RDWR)),
        ("/proc/self/status", opened("/proc/self/status", OFlags::RDONLY)),
        ("O_PATH", opened("/proc/self/exe", OFlags::PATH)),
        ("unsealed", memory(100, SealFlags::empty())),
        ("may shrink", memory(100, IMMUTABLE.difference(SealFlags::SHRINK))),
        ("may grow", memory(100, IMMUTABLE.difference(SealFlags::GROW))),
        ("may be sealed", memory(100, IMMUTABLE.difference(SealFlags::SEAL))),
        ("short", memory(9, IMMUTABLE)),
        ("empty", memory(0, IMMUTABLE)),
    ]
}

#[test]
fn what_is_no_payload_is_refused_in_one_sentence() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "");
    let baseline = scene.descriptors();
    let mut peer = Peer::connect(&scene);
    for shared in [false, true] {
        for (kind, fd) in bad() {
            pass(&peer, &announced("reverse", 10, shared), &[fd.as_fd()]);
            let reply = peer.reply();
            let sentence = refused(&reply);
            assert!(sentence.contains("payload"), "{kind}: {sentence}");
        }
    }
    // Memory that can be written is none that is nobody's, and the other way round it cannot be answered in.
    pass(&peer, &announced("reverse", 10, false), &[memory(100, FIXED).as_fd()]);
    assert!(refused(&peer.reply()).contains("not sealed against writing"));
    let lent = memory(100, FIXED);
    let read_only = opened(&format!("/proc/self/fd/{}", lent.as_raw_fd()), OFlags::RDONLY);
    pass(&peer, &announced("reverse", 10, true), &[read_only.as_fd()]);
    assert!(refused(&peer.reply()).contains("cannot be both read and written"));
    for (bytes, sentence) in [(1 << 41, "at most"), (u64::MAX, "at most")] {
        pass(&peer, &announced("reverse", bytes, false), &[memory(1 << 42, IMMUTABLE).as_fd()]);
        assert!(refused(&peer.reply()).contains(sentence), "{bytes}");
    }
    peer.say(&announced("reverse", 10, false));
    assert_eq!(refused(&peer.reply()), "a payload was announced and no descriptor came with the call");
    assert_eq!(*result(&peer.ask("Execute", &parameters("work", "echo", &json!(1), &json!({})))), json!(1));
    let queue = scene.queue("work");
    assert_eq!((&queue["requests"], &queue["desks"][0]["failures"]), (&json!(1), &json!(0)), "{queue}");
    drop(peer);
    scene.wait_descriptors(baseline);
}

#[test]
fn too_many_descriptors_or_none_wanted_are_let_go_of() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "");
    let baseline = scene.descriptors();
    let mut peer = Peer::connect(&scene);
    let fds: Vec<OwnedFd> = (0..100).map(|_| memory(100, IMMUTABLE)).collect();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    for _ in 0..20 {
        pass(&peer, &announced("reverse", 10, false), &fds);
        assert_eq!(refused(&peer.reply()), "a payload was announced and no descriptor came with the call");
        // Beside a request that speaks of none.
        pass(&peer, &call("Execute", &parameters("work", "echo", &json!(1), &json!({}))), &fds[..1]);
        assert_eq!(*result(&peer.reply()), json!(1));
    }
    // Nor is what comes with a call that never has any use for it kept until the next one.
    pass(&peer, &call("Ping", &json!({})), &fds[..1]);
    assert_eq!(peer.reply(), json!({ "parameters": {} }));
    scene.wait_descriptors(baseline + 1);
    // What came with an earlier call is not a later one's.
    pass(&peer, &call("Execute", &parameters("work", "echo", &json!(1), &json!({}))), &fds[..1]);
    assert_eq!(*result(&peer.reply()), json!(1));
    peer.say(&announced("reverse", 10, false));
    assert_eq!(refused(&peer.reply()), "a payload was announced and no descriptor came with the call");
    drop(peer);
    scene.wait_descriptors(baseline);
}

#[test]
fn memory_that_is_held_for_a_user_is_counted_as_large_as_it_is_and_bounded() {
    needs!(Root, CgroupTree, Python3);
    const GIB: u64 = 1 << 30;
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "size = 2", "queue_timeout = '60s'\ncancel_grace = '60s'");
    let mut scene = Scene::begin(shared, &config, 2);
    let (holder, mut other) = (Peer::connect(&scene), Peer::connect(&scene));
    // Whatever is said of it; nothing of it is there until somebody writes it.
    pass(&holder, &announced("gate", 10, false), &[memory(10 * GIB, IMMUTABLE).as_fd()]);
    scene.wait_noted("in ", 1);
    pass(&other, &announced("reverse", 10, false), &[memory(7 * GIB, IMMUTABLE).as_fd()]);
    let reply = other.reply();
    assert!(refused(&reply).contains("held for this user"), "{reply}");
    // What fits beside it is let through, and what has no memory anyway.
    pass(&other, &announced("reverse", 10, false), &[memory(6 * GIB, IMMUTABLE).as_fd()]);
    let reply = other.reply();
    assert_eq!(reply["parameters"]["payload"]["bytes"], 10, "{reply}");
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
    // It is held no longer than somebody waits for the answer.
    drop(holder);
    scene.wait_queue("work", &json!({ "abandoned": 1 }));
    pass(&other, &announced("reverse", 10, false), &[memory(7 * GIB, IMMUTABLE).as_fd()]);
    let reply = other.reply();
    assert_eq!(reply["parameters"]["payload"]["bytes"], 10, "{reply}");
    gate.open(1);
    scene.wait_noted("out ", 1);
}

#[test]
fn calls_that_are_sent_at_once_have_each_its_own_payload() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "");
    let baseline = scene.descriptors();
    let mut peer = Peer::connect(&scene);
    for number in 1..=3_u8 {
        let fd = memfd_create("payload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("make memory");
        rustix::io::write(&fd, &[number, 0]).expect("fill it");
        fcntl_add_seals(&fd, IMMUTABLE).expect("seal it");
        // Between two that bring something is one that does not.
        peer.call("Execute", &parameters("work", "echo", &json!(number), &json!({})));
        pass(&peer, &announced("reverse", 2, false), &[fd.as_fd()]);
    }
    for number in 1..=3 {
        assert_eq!(*result(&peer.reply()), json!(number));
        let reply = peer.reply();
        assert_eq!(reply["parameters"]["payload"]["bytes"], 2, "{reply}");
    }
    drop(peer);
    scene.wait_descriptors(baseline);
}

#[test]
fn half_a_call_with_a_descriptor_holds_it_no_longer_than_its_time() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "");
    let baseline = scene.descriptors();
    let fd = memory(100, IMMUTABLE);
    let whole = announced("reverse", 10, false);
    let mut peers: Vec<Peer> = (0..10)
        .map(|_| {
            let peer = Peer::connect(&scene);
            pass(&peer, &whole[..whole.len() / 2], &[fd.as_fd()]);
            peer
        })
        .collect();
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1), "others are served meanwhile");
    for peer in &mut peers {
        let replies = peer.until_closed();
        assert!(refused(&replies[0]).contains("the rest of a message did not come"), "{replies:?}");
    }
    drop(peers);
    scene.wait_descriptors(baseline);
    assert_eq!(scene.queue("work")["requests"], 1);
}

#[test]
fn what_a_request_may_not_be_is_refused_before_anybody_waits_for_it() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let mut peer = Peer::connect(&scene);
    let reply = peer.ask("Execute", &parameters("work", "echo", &json!("x".repeat(64_000)), &json!({})));
    assert!(refused(&reply).contains("pass more as a payload"), "{reply}");
    for (more, parameter) in [
        (json!({ "command": "" }), "command"),
        (json!({ "command": "a\nb" }), "command"),
        (json!({ "timeout_ms": 0 }), "timeout_ms"),
        (json!({ "queue_timeout_ms": 1_u64 << 40 }), "queue_timeout_ms"),
        (json!({ "session": "" }), "session"),
    ] {
        let reply = peer.ask("Execute", &parameters("work", "echo", &json!(1), &more));
        assert_eq!(reply["parameters"]["parameter"], parameter, "{reply}");
    }
    let elsewhere = peer.ask("Execute", &parameters("nowhere", "echo", &json!(1), &json!({})));
    assert_eq!(elsewhere["error"], "io.halsup.Control.NotFound", "{elsewhere}");
    assert_eq!(scene.queue("work")["requests"], 0);
}

#[test]
fn a_pool_that_does_not_dispatch_says_so() {
    needs!(Root, CgroupTree);
    let shared = Shared::new();
    let scene = Scene::begin(shared, "[pool.work]\ncommand = ['sleep', 'infinity']\n", 1);
    let reply = scene.ask("echo", &json!(1), &json!({}));
    assert_eq!(failed(&reply), ("not_dispatched", "never_started"));
    let opened = Peer::connect(&scene).ask("OpenSession", &json!({ "pool": "work" }));
    assert!(refused(&opened).contains("`dispatch = true`"), "{opened}");
    let called = scene.cli(&["call", "work", "echo"]);
    assert_eq!(called.status, 1, "{called:?}");
}

#[test]
fn who_says_no_more_still_hears_the_answer_and_who_is_gone_does_not() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "", "capacity = 4\nqueue_timeout = '60s'");
    let mut scene = Scene::begin(shared, &config, 1);
    let baseline = scene.descriptors();
    let mut half = scene.send("gate", &json!("half"), &json!({}));
    half.stream.shutdown(std::net::Shutdown::Write).expect("say no more");
    let gone = scene.send("gate", &json!("gone"), &json!({}));
    scene.wait_noted("in ", 2);
    drop(gone);
    scene.wait_queue("work", &json!({ "abandoned": 1, "in_flight": 2 }));
    gate.open(2);
    let replies: Vec<Value> = half.until_closed();
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!(*result(&replies[0]), json!("half"));
    scene.wait_queue("work", &json!({ "in_flight": 0, "answered": 1 }));
    scene.wait_descriptors(baseline);
    assert!(fs::metadata(scene.path("run/control.sock")).is_ok());
}
