//! Workers that call back, and clients that serve what they call for: whoever goes, lies or says nothing, each call has a reply,
//! and nothing is left of it.

#![expect(clippy::disallowed_types, reason = "calls are made by users of their own")]

use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, parameters, refused, result};
use crate::look::{certificates, wait_certificate};
use crate::needs::needs;
use crate::peer::{INTERFACE, Peer, flagged};

const LIAR: &str = include_str!("liar.py");

/// A client that serves these tools for a pool, from when this returns.
#[track_caller]
fn serve(scene: &Scene, pool: &str, tools: &[&str]) -> Peer {
    let mut server = Peer::connect(scene);
    server.say(&flagged("ServeTools", &json!({ "pool": pool, "tools": tools }), &json!({ "more": true })));
    assert_eq!(server.reply(), json!({ "parameters": {}, "continues": true }));
    server
}

/// The next call that it is given.
#[track_caller]
fn call(server: &mut Peer) -> Value {
    let said = server.reply();
    assert_eq!((&said["error"], &said["continues"]), (&Value::Null, &json!(true)), "{said}");
    said["parameters"].clone()
}

/// Replies to a call; what is answered.
#[track_caller]
fn reply(scene: &Scene, pool: &str, call: &Value, more: &Value) -> Value {
    let mut said = json!({ "pool": pool, "call": call["call"] });
    for (name, value) in more.as_object().expect("fields") {
        said[name] = value.clone();
    }
    Peer::connect(scene).ask("ReplyTool", &said)
}

#[track_caller]
fn is_over(answer: &Value) {
    assert_eq!(answer["error"], format!("{INTERFACE}.NotFound"), "{answer}");
}

/// What the worker of a request says of its call.
#[track_caller]
fn reason(caller: &mut Peer) -> Value {
    result(&caller.reply())["reason"].clone()
}

#[test]
fn a_client_serves_what_workers_call_back_for() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "capacity = 4");
    let back = |name: &str, args: &Value| json!([name, args]);
    assert_eq!(result(&scene.ask("back", &back("add", &json!(1)), &json!({})))["reason"], "tool_not_found");
    let mut server = serve(&scene, "work", &["add", "other"]);
    let told = json!({ "correlation": "mine", "session": "site", "timeout_ms": 60_000 });
    for command in ["back", "back_async"] {
        let mut caller = scene.send(command, &back("add", &json!({ "a": [1, 2.50] })), &told);
        let called = call(&mut server);
        assert_eq!(
            (&called["tool"], &called["args"], &called["worker"], &called["session"], &called["correlation"]),
            (&json!("add"), &json!({ "a": [1, 2.50] }), &json!("work.0"), &json!("site"), &json!("mine"))
        );
        assert!(called["deadline_ms"].as_u64().is_some_and(|left| 0 < left && left <= 60_000), "{called}");
        assert_eq!(reply(&scene, "work", &called, &json!({ "result": { "sum": 3.5 } })), json!({ "parameters": {} }));
        let answer = caller.reply();
        assert_eq!(*result(&answer), json!({ "result": { "sum": 3.5 } }));
        assert_eq!(called["request"], answer["parameters"]["request"]);
        // It has its reply: a second one is nobody's, and another pool's it never was.
        is_over(&reply(&scene, "work", &called, &json!({ "result": 1 })));
    }
    let mut caller = scene.send("back", &back("other", &Value::Null), &json!({}));
    let called = call(&mut server);
    assert_eq!(called.get("args"), None);
    let error = json!({ "error": { "reason": "full", "message": "the disk is full" } });
    let both = json!({ "result": 1, "error": error["error"] });
    assert_eq!(reply(&scene, "work", &called, &both)["error"], "org.varlink.service.InvalidParameter");
    assert_eq!(reply(&scene, "work", &called, &error), json!({ "parameters": {} }));
    assert_eq!(*result(&caller.reply()), json!({ "reason": "full", "message": "the disk is full" }));
    // What no frame holds is said to both.
    let mut caller = scene.send("back", &back("add", &Value::Null), &json!({}));
    let called = call(&mut server);
    let answer = reply(&scene, "work", &called, &json!({ "result": "x".repeat(70_000) }));
    assert!(refused(&answer).contains("longer than"), "{answer}");
    assert_eq!(reason(&mut caller), "reply_refused");
    for nothing in ["f".repeat(32), "0".repeat(32)] {
        is_over(&reply(&scene, "work", &json!({ "call": nothing }), &json!({})));
    }
}

#[test]
fn a_call_is_over_with_its_server_its_request_or_its_worker() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "capacity = 4\ncancel_grace = '60s'");
    let baseline = scene.descriptors();
    end_each_way(&mut scene);
    scene.wait_descriptors(baseline);
}

fn end_each_way(scene: &mut Scene) {
    let add = json!(["add", null]);
    // Whoever serves it goes.
    let mut server = serve(scene, "work", &["add"]);
    let mut caller = scene.send("back", &add, &json!({}));
    let gone = call(&mut server);
    drop(server);
    assert_eq!(reason(&mut caller), "tool_gone");
    is_over(&reply(scene, "work", &gone, &json!({})));
    // The request has had its time; and the caller goes.
    let mut server = serve(scene, "work", &["add"]);
    let mut caller = scene.send("back", &add, &json!({ "timeout_ms": 200 }));
    let late = call(&mut server);
    assert_eq!(failed(&caller.reply()), ("worker_timeout", "in_doubt"));
    is_over(&reply(scene, "work", &late, &json!({ "result": 1 })));
    scene.wait_noted("called", 2);
    let caller = scene.send("back", &add, &json!({}));
    let abandoned = call(&mut server);
    drop(caller);
    scene.wait_noted("called", 3);
    is_over(&reply(scene, "work", &abandoned, &json!({ "result": 1 })));
    // The worker dies with it.
    let mut caller = scene.send("back", &add, &json!({}));
    let orphan = call(&mut server);
    assert_eq!(scene.cli(&["kill", "work.0"]).status, 0);
    assert_eq!(failed(&caller.reply()), ("worker_exit", "in_doubt"));
    is_over(&reply(scene, "work", &orphan, &json!({ "result": 1 })));
    wait_certificate(scene, "work.0", 1);
    // The worker after it calls the same server.
    let mut caller = scene.send("back", &add, &json!({ "timeout_ms": 60_000 }));
    let called = call(&mut server);
    reply(scene, "work", &called, &json!({ "result": 1 }));
    assert_eq!(result(&caller.reply())["result"], 1);
}

#[test]
fn who_says_no_more_gets_no_more_calls_and_the_last_reply_when_its_own_are_over() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "capacity = 4");
    let add = json!(["add", null]);
    let mut first = serve(&scene, "work", &["add"]);
    let mut caller = scene.send("back", &add, &json!({}));
    let called = call(&mut first);
    first.stream.shutdown(Shutdown::Write).expect("say no more");
    scene.daemon.wait_until("that it gets no more", |daemon| {
        let mut peer = Peer::connect(daemon);
        let answer = peer.ask("Execute", &parameters("work", "back", &add, &json!({})));
        (result(&answer)["reason"] == "tool_not_found").then_some(())
    });
    assert_eq!(reply(&scene, "work", &called, &json!({ "result": 7 })), json!({ "parameters": {} }));
    assert_eq!(result(&caller.reply())["result"], 7);
    assert_eq!(first.until_closed(), [json!({ "parameters": {} })]);
    // One that has none is done at once.
    let mut second = serve(&scene, "work", &["add"]);
    second.stream.shutdown(Shutdown::Write).expect("say no more");
    assert_eq!(second.until_closed(), [json!({ "parameters": {} })]);
}

#[test]
fn several_that_serve_a_tool_share_its_calls() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "capacity = 8");
    let mut servers = [serve(&scene, "work", &["add", "one"]), serve(&scene, "work", &["add"])];
    let mut callers = Vec::new();
    for round in 0..2 {
        for (number, server) in servers.iter_mut().enumerate() {
            callers.push(scene.send("back", &json!(["add", [round, number]]), &json!({})));
            // Whoever has fewer is next.
            let called = call(server);
            assert_eq!(called["args"], json!([round, number]));
        }
    }
    let [_first, second] = servers;
    drop(second);
    assert_eq!(reason(&mut callers[1]), "tool_gone");
    assert_eq!(reason(&mut callers[3]), "tool_gone");
}

/// A pool `lies` with a liar, and one `work` with an honest worker.
fn lying() -> (Scene, Gate, usize) {
    let shared = Shared::new();
    shared.program("liar.py", LIAR);
    let gate = Gate::new(&shared);
    let config = shared.pool("lies", "liar.py", "", "worker_breaker = { failures = 0 }")
        + &shared.pool("work", "worker.py", "", "capacity = 16");
    let scene = Scene::begin(shared, &config, 2);
    let baseline = scene.descriptors();
    (scene, gate, baseline)
}

/// A request to the liar that calls back; it is answered with the reasons that it was told.
#[track_caller]
fn lie(scene: &Scene, what: &Value) -> Peer {
    let mut peer = Peer::connect(scene);
    peer.call("Execute", &parameters("lies", "call back", what, &json!({})));
    peer
}

#[test]
fn more_calls_than_may_wait_are_refused_and_harm_nobody_else() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate, baseline) = lying();
    fill_up(&mut scene);
    assert_eq!(certificates(&scene, "lies.0").len() + certificates(&scene, "work.0").len(), 0);
    scene.wait_descriptors(baseline);
}

fn fill_up(scene: &mut Scene) {
    let mut server = serve(scene, "lies", &["add"]);
    let mut beside = serve(scene, "work", &["add"]);
    let mut liar = lie(scene, &json!({ "count": 100, "replies": 100 }));
    for _ in 0..32 {
        call(&mut server);
    }
    let mut caller = scene.send("back", &json!(["add", null]), &json!({}));
    let called = call(&mut beside);
    reply(scene, "work", &called, &json!({ "result": "as ever" }));
    assert_eq!(result(&caller.reply())["result"], "as ever");
    scene.wait_noted("told too_many_calls", 68);
    drop(server);
    let told = result(&liar.reply()).clone();
    let count = |reason: &str| told.as_array().expect("reasons").iter().filter(|one| **one == reason).count();
    assert_eq!((count("too_many_calls"), count("tool_gone")), (68, 32), "{told}");
    // A server that does not read has as much waiting as may be, and no more.
    let server = serve(scene, "lies", &["add"]);
    let mut liar = lie(scene, &json!({ "count": 32, "size": 60_000, "replies": 33, "last": true }));
    scene.wait_noted("told tool_not_found", 1);
    let mut caller = scene.send("back", &json!(["add", null]), &json!({}));
    let called = call(&mut beside);
    reply(scene, "work", &called, &json!({ "result": "as ever" }));
    assert_eq!(result(&caller.reply())["result"], "as ever");
    drop(server);
    let told = result(&liar.reply()).clone();
    let count = |reason: &str| told.as_array().expect("reasons").iter().filter(|one| **one == reason).count();
    assert_eq!(count("tool_busy") + count("tool_gone"), 32, "{told}");
    assert!(count("tool_gone") > 0 && count("tool_busy") > 0, "{told}");
}

#[test]
fn calls_in_the_name_of_others_are_refused() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate, _) = lying();
    let mut server = serve(&scene, "lies", &["add"]);
    let mut beside = serve(&scene, "work", &["add"]);
    let mut held: Vec<Peer> = (0..3).map(|number| scene.send("gate", &json!(number), &json!({}))).collect();
    scene.wait_noted("in ", 3);
    // None of these is its own request; what it says of its own is heard.
    for distance in [-3, -2, -1, 1, 2, 1000] {
        let mut liar = lie(&scene, &json!({ "count": 1, "distance": distance, "replies": 1 }));
        assert_eq!(*result(&liar.reply()), json!(["request_over"]), "{distance}");
    }
    // Nor is one whose very name it has got hold of.
    held.push(scene.send("named", &json!(3), &json!({})));
    scene.wait_noted("named ", 1);
    let ledger = scene.shared.ledger();
    let name = ledger.iter().find_map(|line| line.strip_prefix("named ")).expect("its name");
    let mut liar = lie(&scene, &json!({ "count": 1, "of": name, "replies": 1 }));
    assert_eq!(*result(&liar.reply()), json!(["request_over"]));
    // One number for two calls: the reply to the first is the reply.
    let before = scene.shared.noted("said all");
    let mut liar = lie(&scene, &json!({ "count": 5, "number": 9, "replies": 1 }));
    let called = call(&mut server);
    // All five have come before the reply does: once it has, the number is good for another call.
    scene.wait_noted("said all", before + 1);
    assert_eq!(Peer::connect(&scene).ask("Ping", &json!({})), json!({ "parameters": {} }));
    // A reply in another pool's name is none.
    is_over(&reply(&scene, "work", &called, &json!({ "result": 1 })));
    reply(&scene, "lies", &called, &json!({ "result": "once" }));
    assert_eq!(*result(&liar.reply()), json!(["once"]));
    // The others of that number were passed over: the next call is a new one's.
    let mut liar = lie(&scene, &json!({ "count": 1, "number": 9, "size": 3, "replies": 1 }));
    let called = call(&mut server);
    assert_eq!(called["args"], "xxx");
    reply(&scene, "lies", &called, &json!({ "result": "anew" }));
    assert_eq!(*result(&liar.reply()), json!(["anew"]));
    // Nothing of it has come to others.
    let mut caller = scene.send("back", &json!(["add", "first"]), &json!({}));
    let called = call(&mut beside);
    assert_eq!((&called["args"], &called["worker"]), (&json!("first"), &json!("work.0")));
    reply(&scene, "work", &called, &json!({}));
    assert_eq!(result(&caller.reply())["result"], Value::Null);
    gate.open(4);
    for (number, peer) in held.iter_mut().enumerate() {
        assert_eq!(*result(&peer.reply()), json!(number));
    }
}

/// Makes one call as a user; what is answered first.
#[track_caller]
fn ask_as(scene: &Scene, uid: u32, method: &str, parameters: &Value) -> Value {
    const ASK: &str = "import socket, sys\nline = socket.socket(socket.AF_UNIX)\nline.settimeout(60)\n\
        line.connect(sys.argv[1])\nline.sendall(sys.argv[2].encode() + b'\\0')\ngot = b''\n\
        while not got.endswith(b'\\0'): got += line.recv(65536)\nprint(got[:-1].decode())";
    let call = json!({ "method": format!("{INTERFACE}.{method}"), "parameters": parameters, "more": true });
    let mut asks = Command::new("python3");
    asks.args(["-c", ASK]).arg(scene.path("run/control.sock")).arg(call.to_string()).uid(uid).gid(uid);
    let output = scene.place().run_bounded(&mut asks);
    assert_eq!(output.status, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).expect("a reply")
}

#[test]
fn tools_are_served_by_who_may_operate_the_pool_and_replied_to_by_who_serves_them() {
    needs!(Root, CgroupTree, Python3);
    const ALICE: u32 = 4_711;
    const CAROL: u32 = 4_713;
    let shared = Shared::new();
    let roles = format!(
        "roles = [{{ uid = {ALICE}, role = 'operate', pool = 'work' }}, {{ uid = {CAROL}, role = 'observe' }}]\n"
    );
    let config =
        roles + &shared.pool("work", "worker.py", "", "capacity = 4") + &shared.pool("api", "worker.py", "", "");
    let scene = Scene::begin(shared, &config, 2);
    std::fs::set_permissions(scene.path(""), std::fs::Permissions::from_mode(0o711)).expect("let them in");
    let tools = |pool: &str| json!({ "pool": pool, "tools": ["add"] });
    let denied = "org.varlink.service.PermissionDenied";
    assert_eq!(ask_as(&scene, ALICE, "ServeTools", &tools("work"))["continues"], true);
    for (uid, pool) in [(ALICE, "api"), (CAROL, "work"), (CAROL, "api"), (4_000, "work")] {
        let answer = ask_as(&scene, uid, "ServeTools", &tools(pool));
        assert_eq!(answer["error"], denied, "{uid} {pool}");
    }
    let mut server = serve(&scene, "work", &["add"]);
    let mut caller = scene.send("back", &json!(["add", null]), &json!({}));
    let called = call(&mut server);
    let said = json!({ "pool": "work", "call": called["call"], "result": "forged" });
    for uid in [ALICE, CAROL] {
        assert_eq!(ask_as(&scene, uid, "ReplyTool", &said)["error"], denied, "{uid}");
    }
    reply(&scene, "work", &called, &json!({ "result": "its own" }));
    assert_eq!(result(&caller.reply())["result"], "its own");
    let audit = scene.cli(&["audit", "query", "--json"]).stdout;
    assert!(audit.contains("order_serve_tools"), "{audit}");
}

#[test]
fn who_serves_a_pool_that_goes_or_a_daemon_that_goes_on_as_another_is_told() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let (work, other) =
        (shared.pool("work", "worker.py", "", "capacity = 4"), shared.pool("other", "worker.py", "", ""));
    let mut scene = Scene::begin(shared, &format!("{work}{other}"), 2);
    let mut server = serve(&scene, "work", &["add"]);
    let mut leaves = serve(&scene, "other", &["add"]);
    scene.place().configure(&work);
    assert_eq!(scene.cli(&["daemon", "reload"]).status, 0);
    let last = leaves.reply();
    assert_eq!((&last["error"], &last["continues"]), (&json!(format!("{INTERFACE}.NotFound")), &Value::Null), "{last}");
    let mut caller = scene.send("back", &json!(["add", null]), &json!({}));
    call(&mut server);
    assert_eq!(scene.cli(&["daemon", "reexec"]).status, 0);
    assert_eq!(failed(&caller.reply()), ("daemon_upgraded", "in_doubt"));
    assert_eq!(server.reply()["error"], format!("{INTERFACE}.Failed"));
    // The worker lets go of it, and calls whoever serves it now.
    scene.wait_noted("called", 1);
    let mut server = serve(&scene, "work", &["add"]);
    let mut caller = scene.send("back", &json!(["add", null]), &json!({ "timeout_ms": 60_000 }));
    let called = call(&mut server);
    reply(&scene, "work", &called, &json!({ "result": 1 }));
    assert_eq!(result(&caller.reply())["result"], 1);
}
