//! What a session's program wrote, and what it is, is told to its owner, root and the daemon's user: every method of the
//! interface is called by everybody who may, while sessions live and when they have ended, and the answers are searched.

#![expect(clippy::disallowed_types, reason = "calls are made by users of their own")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::needs::needs;

/// Who has the sessions, who may operate the pool, who may only look at it, and who may look at everything.
const ALICE: u32 = 4_711;
const BOB: u32 = 4_712;
const CAROL: u32 = 4_713;
const DAVE: u32 = 4_714;

/// What nobody but ALICE and root may be told: parts of a command, of a label, of what is written.
const WORDS: [&str; 3] = ["word-in-command", "word-in-label", "word-in-output"];

/// Makes calls, each on a connection of its own, and prints all that is answered within a moment.
const ASK: &str = r#"
import json, socket, sys
for call in json.load(sys.stdin):
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.connect(sys.argv[1])
    line.settimeout(20)
    call.setdefault('upgrade', False)
    line.sendall(json.dumps(call).encode() + b'\0')
    got = b''
    # An answer that continues is waited for to its end, a terminal until it has said what it is to say.
    while True:
        try: piece = line.recv(1 << 16)
        except TimeoutError: break
        got += piece
        if not piece or b'"error":' in got or call['upgrade'] and b'word-in-output' in got: break
        if got.endswith(b'\0') and not call['upgrade'] and b'"continues":true' not in got.split(b'\0')[-2]: break
    print(json.dumps([call['method'], got.decode('utf-8', 'replace')]))
"#;

/// What a user is answered, method by method.
fn answers(daemon: &Daemon, uid: u32, calls: &[Value]) -> Vec<(String, String)> {
    let mut asks = Command::new("python3");
    asks.args(["-c", ASK]).arg(daemon.path("run/control.sock")).uid(uid).gid(uid);
    let mut asks = asks.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run python");
    let said = Value::from(calls.to_vec()).to_string();
    asks.stdin.take().expect("piped").write_all(said.as_bytes()).expect("say the calls");
    let output = asks.wait_with_output().expect("reap it");
    assert!(output.status.success());
    let told = String::from_utf8(output.stdout).expect("text");
    told.lines().map(|line| serde_json::from_str(line).expect("a pair")).collect()
}

/// Every method that only tells, in every way that it can be asked about this worker, its pool and all.
fn calls(worker: &str) -> Vec<Value> {
    let of_targets = |method: &str, field: &str| -> Vec<(String, Value)> {
        [worker, "work", "all"].iter().map(|target| (method.to_owned(), json!({ field: target }))).collect()
    };
    let mut all: Vec<(String, Value)> = Vec::new();
    for method in
        ["Status", "Doctor", "GetConfig", "ListVolumes", "ImageList", "Stats", "Certificates", "List", "Sessions"]
    {
        all.push((method.into(), json!({})));
    }
    all.push(("Events".into(), json!({ "last": 1000 })));
    for method in ["List", "Sessions", "Events"] {
        all.push((method.into(), json!({ "pool": "work" })));
    }
    for method in ["Inspect", "Stats", "Certificates", "Watch"] {
        all.extend(of_targets(method, "target"));
    }
    all.extend(of_targets("Logs", "worker"));
    let mut calls = Vec::new();
    for (method, parameters) in all {
        let upgrade = method == "Watch";
        for more in [false, true] {
            calls.push(json!({ "method": format!("io.halsup.Control.{method}"), "parameters": parameters,
                "more": more && !upgrade, "upgrade": upgrade }));
        }
    }
    calls
}

/// The methods above, those that speak of the protocol or of what has no sessions, and those that change something: all that
/// the interface has.
#[test]
fn no_method_is_left_out() {
    needs!(Root, CgroupTree);
    const OTHERS: [&str; 50] = [
        "Ping",
        "WaitPool",
        "Start",
        "Stop",
        "Restart",
        "Kill",
        "Reset",
        "Scale",
        "Claim",
        "Release",
        "Warm",
        "Pause",
        "Tune",
        "Execute",
        "SendChunk",
        "OpenSession",
        "CloseSession",
        "ListSessions",
        "RequestStatus",
        "PoolStats",
        "ResetBreakers",
        "ServeTools",
        "ReplyTool",
        "Attach",
        "Send",
        "Exec",
        "Reload",
        "Upgrade",
        "Shutdown",
        "SetLog",
        "Drain",
        "CreateVolume",
        "RepairVolume",
        "HoldVolumes",
        "RemoveVolume",
        "ImageImport",
        "ImageRemove",
        // Of a connection's own caller and lease, and of tokens, which are the administrator's.
        "Lease",
        "EndLease",
        "Identify",
        "CreateToken",
        "ListTokens",
        "RevokeToken",
        // Below.
        "RunTask",
        "ListTasks",
        "InspectTask",
        "CancelTask",
        "FollowTask",
        "TaskStatus",
        "SwitchExecutor",
    ];
    let daemon = Daemon::start("");
    let call = json!({ "method": "org.varlink.service.GetInterfaceDescription", "parameters": { "interface": "io.halsup.Control" } });
    let (_, text) = answers(&daemon, 0, &[call]).remove(0);
    let asked: Vec<String> =
        calls("work.0").iter().map(|call| call["method"].as_str().expect("text").to_owned()).collect();
    let mut left: Vec<&str> = text.split("\\nmethod ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    assert!(left.len() > 30, "{left:?}");
    left.retain(|name| !asked.iter().any(|one| one.ends_with(&format!(".{name}"))) && !OTHERS.contains(name));
    assert_eq!(left, ["ImageInspect"], "it is of images alone");
}

/// Which words each user was told, and by which methods.
fn told(daemon: &Daemon, worker: &str) -> BTreeMap<u32, Vec<(String, &'static str)>> {
    let mut told: BTreeMap<u32, Vec<(String, &'static str)>> = BTreeMap::new();
    for uid in [0, ALICE, BOB, CAROL, DAVE] {
        let words = told.entry(uid).or_default();
        for (method, answer) in answers(daemon, uid, &calls(worker)) {
            let method = method.rsplit('.').next().unwrap_or_default().to_owned();
            words.extend(WORDS.into_iter().filter(|word| answer.contains(word)).map(|word| (method.clone(), word)));
        }
        words.sort();
        words.dedup();
    }
    told
}

/// All certificates, as root is told them.
fn certificates(daemon: &Daemon) -> Vec<Value> {
    let call = json!({ "method": "io.halsup.Control.Certificates", "parameters": {} });
    let (_, told) = answers(daemon, 0, &[call]).remove(0);
    let told: Value = serde_json::from_str(told.trim_end_matches('\0')).expect("an answer");
    told["parameters"]["certificates"].as_array().cloned().expect("a list")
}

#[track_caller]
fn only_owner_and_root(daemon: &Daemon, worker: &str, expected: &[(&str, &str)]) {
    let told = told(daemon, worker);
    for uid in [BOB, CAROL, DAVE] {
        assert_eq!(told[&uid], Vec::new(), "uid {uid} was told");
    }
    let named: Vec<(&str, &str)> = told[&0].iter().map(|(method, word)| (method.as_str(), *word)).collect();
    for one in expected {
        assert!(named.contains(one), "root is not told {one:?}: {named:?}");
    }
    for (method, word) in expected.iter().filter(|(method, _)| *method != "Logs") {
        assert!(told[&ALICE].contains(&((*method).to_owned(), word)), "the owner is not told {word} by {method}");
    }
}

#[test]
fn what_is_a_sessions_own_is_told_to_its_owner_and_to_who_may_do_everything() {
    needs!(Root, CgroupTree, Python3);
    let role = |uid, role, pool| format!("{{ uid = {uid}, role = '{role}'{pool} }}");
    let on_pool = ", pool = 'work'";
    let roles = [
        role(ALICE, "operate", on_pool),
        role(BOB, "operate", on_pool),
        role(CAROL, "observe", on_pool),
        role(DAVE, "observe", ""),
    ];
    let config =
        format!("roles = [{}]\n[pool.work]\nterminal = true\n[pool.work.claims]\nmin = 1\nmax = 2\n", roles.join(", "));
    let mut daemon = Daemon::start(&config);
    std::fs::set_permissions(daemon.path(""), std::fs::Permissions::from_mode(0o711)).expect("let them in");
    let script = ": word-in-command; echo word-in-out''put; kill -USR1 $$; sleep 100000; exit 3";
    let claim = |name: &str, script: &str| {
        json!({ "method": "io.halsup.Control.Claim", "parameters": { "pool": "work", "session": name,
        "labels": ["about=word-in-label"], "command": ["sh", "-c", script] } })
    };
    let claimed = answers(&daemon, ALICE, &[claim("of-alice", &script.replace("kill -USR1 $$; ", ""))]).remove(0).1;
    let claimed: Value = serde_json::from_str(claimed.trim_end_matches('\0')).expect("an answer");
    let worker = claimed["parameters"]["worker"].as_str().expect("a worker").to_owned();
    daemon.wait_until("its output", |daemon| daemon.cli(&["logs", &worker]).stdout.contains(WORDS[2]).then_some(()));
    let living = [
        ("List", WORDS[0]),
        ("List", WORDS[1]),
        ("Inspect", WORDS[0]),
        ("Inspect", WORDS[1]),
        ("Logs", WORDS[2]),
        ("Watch", WORDS[2]),
    ];
    only_owner_and_root(&daemon, &worker, &living);

    // One that ends by itself, one that is given back, and one that ends while there is no daemon.
    assert_eq!(daemon.cli(&["kill", "of-alice"]).status, 0);
    let ended = |daemon: &Daemon, name: &str| {
        let of_it = |one: &Value| one["session"] == name && one["owner"] == ALICE;
        certificates(daemon).into_iter().find(of_it)
    };
    let first = daemon.wait_until("its certificate", |daemon| ended(daemon, "of-alice"));
    assert!(first["last_output"].as_str().is_some_and(|text| text.contains(WORDS[2])), "{first}");
    let after = [("Certificates", WORDS[2])];
    only_owner_and_root(&daemon, &worker, &after);
    let claimed = answers(&daemon, ALICE, &[claim("second", script)]).remove(0).1;
    assert!(claimed.contains("\"session\":\"second\""), "{claimed}");
    daemon.wait_until("its certificate", |daemon| ended(daemon, "second"));
    only_owner_and_root(&daemon, &worker, &after);
    let claimed =
        answers(&daemon, ALICE, &[claim("third", ": word-in-command; echo word-in-out''put; read line; exit 1")])
            .remove(0)
            .1;
    let third: Value = serde_json::from_str(claimed.trim_end_matches('\0')).expect("an answer");
    let (worker, pid) =
        (third["parameters"]["worker"].as_str().expect("a worker").to_owned(), third["parameters"]["pid"].as_i64());
    daemon.wait_until("its output", |daemon| daemon.cli(&["logs", "third"]).stdout.contains(WORDS[2]).then_some(()));
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    crate::look::signal(i32::try_from(pid.expect("its pid")).expect("a pid"), rustix::process::Signal::KILL);
    daemon.start_again();
    daemon.wait_until("its certificate", |daemon| ended(daemon, "third"));
    only_owner_and_root(&daemon, &worker, &[]);
}

#[test]
fn a_task_is_told_to_whoever_asked_for_it_and_ended_by_nobody_else() {
    needs!(Root, CgroupTree, Python3);
    let role = |uid, role| format!("{{ uid = {uid}, role = '{role}' }}");
    let roles = [role(ALICE, "operate"), role(BOB, "operate"), role(DAVE, "observe")].join(", ");
    let config = crate::tasks::config(&["sh", "-c", "echo word-in-out''put; read line; sleep 1000"], "");
    let mut daemon = Daemon::start(&format!("roles = [{roles}]\n{config}"));
    std::fs::set_permissions(daemon.path(""), std::fs::Permissions::from_mode(0o711)).expect("let them in");
    let ask = |daemon: &Daemon, uid: u32, method: &str, parameters: Value| {
        let more = method == "FollowTask";
        let call = json!({ "method": format!("io.halsup.Control.{method}"), "parameters": parameters, "more": more });
        answers(daemon, uid, &[call]).remove(0).1
    };
    let prompt = json!({ "prompt": ": word-in-command", "task": "hers", "worker_id": "word-in-label" });
    assert!(ask(&daemon, DAVE, "RunTask", prompt.clone()).contains("PermissionDenied"), "he may only look");
    assert!(ask(&daemon, ALICE, "RunTask", prompt).contains("\"task\":\"hers\""), "she may");
    daemon.wait_until("its output", |daemon| {
        ask(daemon, ALICE, "InspectTask", json!({ "task": "hers" })).contains(WORDS[2]).then_some(())
    });
    for uid in [BOB, DAVE] {
        for method in ["InspectTask", "CancelTask", "FollowTask"] {
            let answer = ask(&daemon, uid, method, json!({ "task": "hers" }));
            assert!(answer.contains("PermissionDenied"), "{uid} {method}: {answer}");
        }
        let listed = ask(&daemon, uid, "ListTasks", json!({}));
        assert!(listed.contains("\"task\":\"hers\"") && !WORDS.iter().any(|word| listed.contains(word)), "{listed}");
        let log = ask(&daemon, uid, "Logs", json!({ "worker": "all" }));
        assert!(!log.contains(WORDS[2]), "{log}");
    }
    assert!(ask(&daemon, ALICE, "ListTasks", json!({})).contains(WORDS[0]));
    assert!(ask(&daemon, ALICE, "CancelTask", json!({ "task": "hers" })).contains("cancelled"));
    assert!(ask(&daemon, 0, "InspectTask", json!({ "task": "hers" })).contains(WORDS[2]));
}
