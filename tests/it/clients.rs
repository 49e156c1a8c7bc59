//! The control socket under clients that are hostile, broken, gone or not allowed: others are served, nothing is leaked.
//!
//! What a client may expect that means well is in `control.rs`.

#![expect(clippy::disallowed_types, reason = "the test starts the program itself, as another user does")]

use std::fs;
use std::io::{ErrorKind, IoSlice, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::input::{NOBODY, assert_refused};
use crate::look::{healthy, pid, wait_healthy, worker};
use crate::needs::needs;
use crate::peer::{INTERFACE, Peer, call, frame};
use crate::place::{Output, command, run};

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";
/// Its worker ends only by the kill after the grace, so that a stop is waited for.
const DEAF: &str = "[pool.web]\nstop_grace = '1s'\ncommand = ['sh', '-c', 'trap \"\" TERM; while :; do sleep 1000; done']\n\
                    [pool.api]\ncommand = ['sleep', 'infinity']\n";
/// A silent client is told to go within this, and then some for a slow machine. (The daemon's limits are 2 and 5 s.)
const PATIENCE: Duration = Duration::from_secs(30);

/// The daemon's open descriptors.
fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("look at the daemon's descriptors").count()
}

/// A daemon with all its workers healthy and its follower connected, and how many descriptors it then has.
#[track_caller]
fn settled(config: &str, workers: usize) -> (Daemon, usize) {
    let mut daemon = Daemon::start(config);
    daemon.wait_event(|_| true);
    wait_healthy(&mut daemon, workers);
    let baseline = descriptors(&daemon);
    (daemon, baseline)
}

/// Waits until the daemon has closed all that clients made it open.
#[track_caller]
fn wait_settled(daemon: &mut Daemon, baseline: usize) {
    daemon.wait_until("the descriptors are closed", |daemon| Some(()).filter(|()| descriptors(daemon) <= baseline));
}

/// The reason that the daemon gives with its refusal.
#[track_caller]
fn refusal(reply: &Value) -> &str {
    assert_eq!(reply["error"], format!("{INTERFACE}.Refused"), "{reply}");
    reply["parameters"]["reason"].as_str().unwrap_or_else(|| panic!("no reason in {reply}"))
}

/// Says one thing on a connection of its own, and expects one refusal with these words, and the end.
#[track_caller]
fn assert_thrown_out(daemon: &Daemon, said: &[u8], words: &str) {
    let mut peer = Peer::connect(daemon);
    peer.stream.set_read_timeout(Some(PATIENCE)).expect("set a deadline");
    peer.say(said);
    let replies = peer.until_closed();
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert!(refusal(&replies[0]).contains(words), "{words:?} is not in {replies:?}");
}

#[test]
fn who_falls_silent_within_a_message_or_before_it_is_disconnected() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(SLEEPER, 1);
    let half = Peer::connect(&daemon);
    let mut mute = Peer::connect(&daemon);
    mute.stream.set_read_timeout(Some(PATIENCE)).expect("set a deadline");
    assert_thrown_out(&daemon, b"{\"method\": \"io.halsup", "the rest of a message did not come within 2 s");
    let replies = mute.until_closed();
    assert!(refusal(&replies[0]).contains("a first message did not come within 5 s"), "{replies:?}");
    drop(half);
    // Who has asked once may be silent as long as he likes, as a user interface is.
    let mut quiet = Peer::connect(&daemon);
    quiet.ask("Ping", &json!({}));
    wait_settled(&mut daemon, baseline + 1);
    assert_eq!(quiet.ask("Ping", &json!({}))["parameters"], json!({}));
}

#[test]
fn a_message_that_is_none_is_refused_in_words() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(SLEEPER, 1);
    let deep = |open: &str, close: &str| {
        let mut message = b"{\"method\": \"io.halsup.Control.Ping\", \"parameters\": ".to_vec();
        message.extend(open.repeat(200_000 / open.len()).into_bytes());
        message.extend(close.repeat(200_000 / open.len()).into_bytes());
        message.extend(b"}\0");
        message
    };
    let mut endless = vec![b' '; 2 << 20];
    endless.push(0);
    for (said, words) in [
        (endless, "longer than 262144 bytes"),
        (deep("[", ""), "nested deeper than 16 levels"),
        (deep("{\"a\":", ""), "nested deeper than 16 levels"),
        (vec![b'['; 200_000], "did not come within"),
        (b"\0".to_vec(), "JSON is not valid"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\0".to_vec(), "JSON is not valid"),
        (b"\xff\xfe\x00".to_vec(), "not UTF-8"),
        (b"[]\0".to_vec(), "expected a JSON object"),
        (b"{\"method\": \"a.B\", \"method\": \"a.C\"}\0".to_vec(), "JSON is not valid"),
        (b"{\"method\": 7}\0".to_vec(), "not a Varlink call"),
        (b"{\"method\": \"a.B\", \"sudo\": true}\0".to_vec(), "sudo"),
        (b"{\"method\": \"a.B\", \"parameters\": []}\0".to_vec(), "not a Varlink call"),
        (b"{}\0".to_vec(), "method"),
    ] {
        assert_thrown_out(&daemon, &said, words);
    }
    wait_settled(&mut daemon, baseline);
    assert_eq!(healthy(&daemon).len(), 1);
}

#[test]
fn noise_of_any_kind_harms_nobody() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(SLEEPER, 1);
    // The same noise in every run: a linear congruence.
    let mut state = 7_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    let good = call("Ping", &json!({}));
    for round in 0..200_usize {
        let mut peer = Peer::connect(&daemon);
        let mut said: Vec<u8> = (0..round * 7).map(|_| byte()).collect();
        let mut broken = good.clone();
        let at = round % broken.len();
        broken[at] = byte();
        said.splice(0..0, broken);
        said.push(0);
        peer.say(&said);
        if round % 2 == 0 {
            // Every broken message is answered, whatever it was.
            assert!(peer.next().is_some());
        }
    }
    wait_settled(&mut daemon, baseline);
    assert_eq!(healthy(&daemon).len(), 1);
}

#[test]
fn what_is_asked_behind_a_call_that_waits_is_answered_after_it() {
    needs!(Root, CgroupTree);
    let (daemon, _) = settled(DEAF, 2);
    let mut peer = Peer::connect(&daemon);
    let mut said = call("Stop", &json!({ "target": "web" }));
    said.extend(call("Ping", &json!({})));
    said.extend(call("List", &json!({ "pool": "web" })));
    peer.say(&said);
    // Others do not wait.
    assert_eq!(worker(&daemon, "api.0")["state"], "healthy");
    assert_eq!(peer.reply()["parameters"], json!({ "achieved": 1, "wanted": 1, "failures": [] }));
    assert_eq!(peer.reply(), json!({ "parameters": {} }));
    assert_eq!(peer.reply()["parameters"]["workers"][0]["state"], "stopped");
}

#[test]
fn who_wants_no_reply_gets_none() {
    needs!(Root, CgroupTree);
    let (mut daemon, _) = settled(SLEEPER, 1);
    let mut peer = Peer::connect(&daemon);
    let oneway = |method: &str, parameters: Value| {
        frame(&json!({ "method": format!("{INTERFACE}.{method}"), "parameters": parameters, "oneway": true }))
    };
    let mut said = oneway("Stop", json!({ "target": "web.0" }));
    said.extend(oneway("Nope", json!({})));
    said.extend(oneway("List", json!({})));
    said.extend(call("Status", &json!({})));
    peer.say(&said);
    assert_eq!(peer.reply()["parameters"]["pid"], daemon.pid());
    daemon.wait_until("stopped", |daemon| Some(()).filter(|()| worker(daemon, "web.0")["state"] == "stopped"));
    assert_eq!(peer.ask("Ping", &json!({})), json!({ "parameters": {} }));
}

#[test]
fn a_wrong_call_is_an_error_by_its_standard_name_and_not_the_end() {
    needs!(Root, CgroupTree);
    let (daemon, _) = settled(SLEEPER, 1);
    let mut peer = Peer::connect(&daemon);
    for (message, error, field, value) in [
        (json!({ "method": "io.halsup.Control.Nope" }), "MethodNotFound", "method", "io.halsup.Control.Nope"),
        (json!({ "method": "Nope" }), "MethodNotFound", "method", "Nope"),
        (json!({ "method": "com.example.Nope" }), "InterfaceNotFound", "interface", "com.example"),
        (
            json!({ "method": "org.varlink.service.GetInterfaceDescription", "parameters": { "interface": "a.b" } }),
            "InterfaceNotFound",
            "interface",
            "a.b",
        ),
        (json!({ "method": "io.halsup.Control.Stop" }), "InvalidParameter", "parameter", "target"),
        (json!({ "method": "io.halsup.Control.Ping", "parameters": { "x": 1 } }), "InvalidParameter", "parameter", "x"),
        (
            json!({ "method": "io.halsup.Control.Scale", "parameters": { "pool": "web", "count": -1 } }),
            "InvalidParameter",
            "parameter",
            "count",
        ),
        (
            json!({ "method": "io.halsup.Control.Kill", "parameters": { "target": "web", "signal": 65 } }),
            "InvalidParameter",
            "parameter",
            "signal",
        ),
        (
            json!({ "method": "io.halsup.Control.Ping", "upgrade": true }),
            "MethodNotImplemented",
            "method",
            "io.halsup.Control.Ping",
        ),
    ] {
        peer.say(&frame(&message));
        let reply = peer.reply();
        assert_eq!(reply["error"], format!("org.varlink.service.{error}"), "{message}: {reply}");
        assert_eq!(reply["parameters"][field], value, "{message}: {reply}");
    }
    let reply = peer.ask("Events", &json!({ "follow": true }));
    assert_eq!(reply["error"], "org.varlink.service.ExpectedMore");
    let reply = peer.ask("Stop", &json!({ "target": "nope" }));
    assert_eq!(reply["error"], format!("{INTERFACE}.NotFound"));
}

#[test]
fn a_client_that_vanishes_while_it_waits_leaves_nothing_and_its_order_holds() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(DEAF, 2);
    for method in ["Stop", "Restart", "Inspect"] {
        let mut peer = Peer::connect(&daemon);
        peer.say(&call(method, &json!({ "target": "web" })));
    }
    let mut followers: Vec<Peer> = (0..5).map(|_| Peer::connect(&daemon)).collect();
    for peer in &mut followers {
        peer.say(&frame(
            &json!({ "method": "io.halsup.Control.Events", "parameters": { "follow": true }, "more": true }),
        ));
        assert_eq!(peer.reply()["continues"], true);
    }
    drop(followers);
    let mut half_closed = Peer::connect(&daemon);
    half_closed.say(&call("Stop", &json!({ "target": "api" })));
    half_closed.stream.shutdown(std::net::Shutdown::Write).expect("say no more");
    assert_eq!(half_closed.until_closed().len(), 1, "who only says no more still hears the answer");
    daemon.wait_until("api is stopped", |daemon| Some(()).filter(|()| worker(daemon, "api.0")["state"] == "stopped"));
    wait_settled(&mut daemon, baseline);
}

#[test]
fn descriptors_that_are_sent_are_not_kept() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(SLEEPER, 1);
    let gift = fs::File::open("/dev/null").expect("open /dev/null");
    let mut peer = Peer::connect(&daemon);
    for _ in 0..50 {
        let gifts = [gift.as_fd(); 100];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&gifts)));
        let ping = call("Ping", &json!({}));
        let sent = sendmsg(&peer.stream, &[IoSlice::new(&ping)], &mut ancillary, SendFlags::empty()).expect("send");
        assert_eq!(sent, ping.len());
        assert_eq!(peer.reply(), json!({ "parameters": {} }));
    }
    assert!(descriptors(&daemon) <= baseline + 1, "{} of {baseline}", descriptors(&daemon));
    drop(peer);
    wait_settled(&mut daemon, baseline);
}

#[test]
fn connections_beyond_the_most_are_told_why_not() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(SLEEPER, 1);
    let mut peers = Vec::new();
    let mut refused = 0;
    for _ in 0..556 {
        let mut peer = Peer::connect(&daemon);
        peer.say(&call("Ping", &json!({})));
        let reply = peer.reply();
        if reply["error"].is_null() {
            peers.push(peer);
        } else {
            assert_eq!(refusal(&reply), "too many clients are connected");
            assert!(peer.next().is_none());
            refused += 1;
        }
    }
    // The fixture's own follower is one of 512; a command line that has just ended may have been another.
    assert!((44..=47).contains(&refused), "{refused} were refused");
    for peer in &mut peers {
        assert_eq!(peer.ask("Ping", &json!({})), json!({ "parameters": {} }));
    }
    assert_refused(&daemon.cli(&["ps"]), 1, "too many clients are connected");
    drop(peers);
    wait_settled(&mut daemon, baseline);
    assert_eq!(healthy(&daemon).len(), 1);
}

#[test]
fn a_flood_of_calls_whose_answers_nobody_reads_is_held_back() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(SLEEPER, 1);
    let mut peer = Peer::connect(&daemon);
    peer.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set a deadline");
    let many = call("Status", &json!({})).repeat(1000);
    let mut taken = 0_usize;
    let held_back = loop {
        match peer.stream.write(&many) {
            Ok(count) => taken += count,
            Err(error) => break error.kind(),
        }
        assert!(taken < 64 << 20, "the daemon reads on and on");
    };
    assert_eq!(held_back, ErrorKind::WouldBlock);
    assert_eq!(healthy(&daemon).len(), 1, "others are served");
    let one = many.len() / 1000;
    for _ in 0..taken / one {
        assert_eq!(peer.reply()["parameters"]["pid"], daemon.pid());
    }
    drop(peer);
    wait_settled(&mut daemon, baseline);
}

#[test]
fn followers_that_never_read_are_let_go_and_others_are_served() {
    needs!(Root, CgroupTree);
    let (mut daemon, baseline) = settled(
        "[pool.web]\ncommand = ['sh', '-c', 'trap : USR1; while :; do sleep 1000 & wait; yes $(seq 300) | head -n 20000; done']\n",
        1,
    );
    let mut peers: Vec<Peer> = (0..10).map(|_| Peer::connect(&daemon)).collect();
    for peer in &mut peers {
        let parameters = json!({ "worker": "web.0", "lines": 0, "follow": true });
        peer.say(&frame(&json!({ "method": "io.halsup.Control.Logs", "parameters": parameters, "more": true })));
        assert_eq!(peer.reply()["continues"], true);
    }
    assert_eq!(daemon.cli(&["kill", "-s", "USR1", "web.0"]).status, 0);
    wait_settled(&mut daemon, baseline);
    let told = peers.remove(0).until_closed();
    assert!(told.iter().all(|reply| reply["continues"] == true), "what was cut off does not look like the end");
    assert_eq!(healthy(&daemon).len(), 1);
}

/// Runs `halsup` as another user against this daemon's socket.
fn as_user(daemon: &Daemon, id: u32, arguments: &[&str]) -> Output {
    let mut command: Command = command();
    command.arg("--socket").arg(daemon.path("run/control.sock")).args(arguments);
    run(command.uid(id).gid(id))
}

fn open_directory(daemon: &Daemon) {
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o711)).expect("open the directory");
}

#[test]
fn who_may_observe_one_pool_may_do_that_alone() {
    needs!(Root, CgroupTree);
    let roles = format!("roles = [{{ uid = {NOBODY}, role = 'observe', pool = 'web' }}]\n");
    let (mut daemon, baseline) = settled(&format!("{roles}{DEAF}"), 2);
    open_directory(&daemon);
    let before: Vec<i32> = healthy(&daemon).iter().map(pid).collect();
    for allowed in [&["ps", "web"][..], &["inspect", "web.0"], &["stats", "web"], &["logs", "web"]] {
        let output = as_user(&daemon, NOBODY, allowed);
        assert_eq!(output.status, 0, "{allowed:?}: {output:?}");
    }
    for denied in [
        &["ps"][..],
        &["ps", "api"],
        &["inspect", "api.0"],
        &["logs", "api"],
        &["status"],
        &["events"],
        &["stop", "web.0"],
        &["restart", "web"],
        &["kill", "web.0"],
        &["scale", "web", "0"],
        &["stop", "api"],
        &["stop", "all"],
        &["daemon", "stop"],
        &["daemon", "reload"],
        &["log", "debug"],
    ] {
        assert_refused(&as_user(&daemon, NOBODY, denied), 1, "permission denied");
        // Not even what needs no pool, without a grant.
        assert_refused(&as_user(&daemon, NOBODY - 1, denied), 1, "permission denied");
    }
    assert_refused(&as_user(&daemon, NOBODY - 1, &["ps", "web"]), 1, "permission denied");
    assert_eq!(healthy(&daemon).iter().map(pid).collect::<Vec<_>>(), before, "nothing has happened");
    wait_settled(&mut daemon, baseline);
}

#[test]
fn an_operator_of_one_pool_stops_that_one() {
    needs!(Root, CgroupTree);
    let roles = format!("roles = [{{ gid = {NOBODY}, role = 'operate', pool = 'web' }}]\n");
    let (daemon, _) = settled(&format!("{roles}{SLEEPER}[pool.api]\ncommand = ['sleep', 'infinity']\n"), 2);
    open_directory(&daemon);
    let output = as_user(&daemon, NOBODY, &["stop", "web.0"]);
    assert_eq!(output.status, 0, "{output:?}");
    assert_refused(&as_user(&daemon, NOBODY, &["stop", "api.0"]), 1, "permission denied");
    assert_eq!(worker(&daemon, "web.0")["state"], "stopped");
    assert_eq!(worker(&daemon, "api.0")["state"], "healthy");
    let asked = daemon.cli(&["events", "-n", "100", "--json"]).stdout;
    assert!(asked.contains(&format!("uid {NOBODY} (pid ")), "{asked}");
}

#[test]
fn without_any_grant_nobody_else_can_even_connect() {
    needs!(Root, CgroupTree);
    let (daemon, _) = settled(SLEEPER, 1);
    open_directory(&daemon);
    let mode = fs::metadata(daemon.path("run/control.sock")).expect("look at the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let output = as_user(&daemon, NOBODY, &["ps"]);
    assert_refused(&output, 1, "permission denied on ");
    assert!(output.stderr.contains("control.sock"), "{output:?}");
}

#[test]
fn many_clients_of_one_user_leave_room_for_others() {
    needs!(Root, CgroupTree, Python3);
    let roles = format!("roles = [{{ uid = {NOBODY}, role = 'observe' }}]\n");
    let (mut daemon, baseline) = settled(&format!("{roles}{SLEEPER}"), 1);
    open_directory(&daemon);
    let script = "import socket, sys
sockets, refused = [], 0
for _ in range(100):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(60)
    try: s.sendall(b'{\"method\": \"io.halsup.Control.Ping\"}\\0')
    except BrokenPipeError: pass
    refused += b'too many clients of this user' in s.recv(4096); sockets.append(s)
print(refused)";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(daemon.path("run/control.sock"));
    let output = run(command.uid(NOBODY).gid(NOBODY));
    assert_eq!((output.status, output.stdout.trim()), (0, "36"), "{output:?}");
    wait_settled(&mut daemon, baseline);
}
