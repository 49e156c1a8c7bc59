//! Tests of the requests: every method there and back, every wrong parameter by its name, roles and scopes.

use serde_json::json;

use super::super::super::seeded::Seeded;
use super::*;
use crate::protocol::control::{AffinityMode, DRAINED_MAX, LeaseOutcome, SentPayload, TOOLS_MAX, ToolRefusal};
use crate::spec::ImageName;

fn call(method: &str, parameters: Value) -> Call {
    let Value::Object(parameters) = parameters else { panic!("object") };
    Call { method: method.into(), parameters, oneway: false, more: false, upgrade: false }
}

fn volume() -> crate::spec::VolumeName {
    crate::spec::VolumeName::parse("hal9000-chromadb").unwrap()
}

fn one_of_each() -> Vec<Request> {
    let web = PoolName::parse("web").unwrap();
    let target = TargetRequest { target: Target::Worker(web.clone(), 3) };
    vec![
        Request::GetInfo(NoParameters {}),
        Request::GetInterfaceDescription(InterfaceRequest { interface: "a.b".into() }),
        Request::Ping(NoParameters {}),
        Request::Status(NoParameters {}),
        Request::List(ListRequest { pool: Some(web.clone()) }),
        Request::WaitPool(WaitPoolRequest { pool: Some(web.clone()), complete: Some(true) }),
        Request::Inspect(target.clone()),
        Request::Start(target.clone()),
        Request::Stop(target.clone()),
        Request::Restart(TargetRequest { target: Target::All }),
        Request::Kill(KillRequest { target: Target::All, signal: Some(15) }),
        Request::Reset(target.clone()),
        Request::Scale(ScaleRequest { pool: web.clone(), count: 5 }),
        Request::Claim(Box::new(ClaimRequest { pids: Some(7), ..ClaimRequest::of(web.clone()) })),
        Request::Release(ReleaseRequest { target: target.target, reset: Some(true), session: None }),
        Request::Warm(PoolRequest { pool: web.clone() }),
        Request::Tune(TuneRequest {
            pool: web.clone(),
            min: Some(1),
            max: None,
            idle_timeout_seconds: Some(60),
            check_interval_seconds: None,
        }),
        Request::Pause(PauseRequest { pool: web.clone(), paused: true }),
    ]
    .into_iter()
    .chain(of_requests(&web))
    .chain(of_the_rest(web))
    .chain(of_tasks())
    .collect()
}

fn of_requests(web: &PoolName) -> Vec<Request> {
    vec![
        Request::Execute(Box::new(ExecuteRequest {
            args: Some(serde_json::json!({ "x": [1, 2.5, null] })),
            session: Some("site".into()),
            affinity: Some(AffinityMode::StrictFailFast),
            timeout_ms: Some(10),
            queue_timeout_ms: Some(5),
            idempotent: Some(true),
            payload: Some(SentPayload { bytes: 7, shared: Some(true) }),
            stream: Some(false),
            bill: Some(true),
            input: Some(true),
            ..ExecuteRequest::of(web.clone(), "echo".into())
        })),
        Request::SendChunk(SendChunkRequest {
            chunk: Some(json!([1])),
            payload: Some(SentPayload { bytes: 7, shared: None }),
            end: Some(true),
        }),
        Request::Lease(Box::new(LeaseRequest {
            not: Some(vec!["web.1".into()]),
            fingerprint: Some("f".into()),
            upgrade: Some(true),
            ..LeaseRequest::of(web.clone())
        })),
        Request::EndLease(EndLeaseRequest { lease: "0123456789abcdef".repeat(2), outcome: LeaseOutcome::ServerError }),
        Request::OpenSession(OpenSessionRequest { pool: web.clone(), session: None, ttl_ms: Some(1) }),
        Request::CloseSession(CloseSessionRequest { pool: web.clone(), session: "site".into() }),
        Request::ListSessions(ListRequest { pool: Some(web.clone()) }),
        Request::RequestStatus(RequestStatusRequest { pool: Some(web.clone()), request: "mine".into() }),
        Request::PoolStats(PoolStatsRequest { pool: Some(web.clone()) }),
        Request::ResetBreakers(ResetBreakersRequest { target: Target::All }),
        Request::ServeTools(ServeToolsRequest { pool: web.clone(), tools: vec!["add".into(), "a tool".into()] }),
        Request::ReplyTool(ReplyToolRequest {
            pool: web.clone(),
            call: "0123456789abcdef".repeat(2),
            result: None,
            error: Some(ToolRefusal { reason: "full".into(), message: "it is full".into() }),
        }),
    ]
}

fn of_tasks() -> Vec<Request> {
    let task = || "x".to_owned();
    let metadata = json!({ "a": [1] }).as_object().cloned();
    vec![
        Request::RunTask(Box::new(RunTaskRequest {
            prompt: "ls\r\u{1b}".into(),
            task: Some(task()),
            worker_id: Some("w".into()),
            priority: Some(7),
            metadata,
            timeout_ms: Some(1),
        })),
        Request::ListTasks(NoParameters {}),
        Request::InspectTask(InspectTaskRequest { task: task(), output_bytes: Some(0) }),
        Request::CancelTask(TaskRequest { task: task() }),
        Request::FollowTask(FollowTaskRequest { task: task(), after: Some(7) }),
        Request::TaskStatus(NoParameters {}),
        Request::SwitchExecutor(SwitchExecutorRequest { executor: "stub".into() }),
    ]
}

fn of_the_rest(web: PoolName) -> Vec<Request> {
    vec![
        Request::Logs(LogsRequest { worker: Target::Pool(web), lines: Some(100), follow: Some(false), session: None }),
        Request::Attach(AttachRequest { target: Target::All, steal: Some(true), replay: Some(false) }),
        Request::Watch(WatchRequest { target: Target::All, replay: None }),
        Request::Send(SendRequest { target: Target::All, text: "ls\r\u{1b}".into() }),
        Request::Exec(ExecRequest {
            target: Target::All,
            command: vec!["ls".into(), "-l".into()],
            env: Some(vec!["A=".into()]),
            terminal: Some(true),
            columns: Some(80),
            rows: Some(24),
        }),
        Request::Sessions(ListRequest { pool: None }),
        Request::Events(EventsRequest { last: Some(5), pool: PoolName::parse("web").ok(), ..EventsRequest::default() }),
        Request::Stats(StatsRequest { target: Some(Target::All) }),
        Request::Certificates(CertificatesRequest { target: Some(Target::All), last: Some(1) }),
        Request::Reload(NoParameters {}),
        Request::Upgrade(UpgradeRequest { binary: Some("/usr/bin/halsup".into()) }),
        Request::Shutdown(ShutdownRequest { timeout_ms: Some(10), keep_workers: Some(true) }),
        Request::SetLog(SetLogRequest { filter: "info,heartbeat=debug".into() }),
        Request::Drain(DrainRequest { draining: Some(true), pools: Some(vec!["web".into()]) }),
        Request::Identify(IdentifyRequest { token: Some("halsup_00".into()) }),
        Request::CreateToken(CreateTokenRequest {
            name: "ci".into(),
            role: Role::Operate,
            pool: PoolName::parse("web").ok(),
            seconds: Some(60),
        }),
        Request::ListTokens(NoParameters {}),
        Request::RevokeToken(RevokeTokenRequest { name: "ci".into() }),
        Request::Doctor(NoParameters {}),
        Request::GetConfig(NoParameters {}),
        Request::ListVolumes(ListVolumesRequest { name: Some(volume()), usage: Some(true) }),
        Request::CreateVolume(VolumeRequest { name: volume() }),
        Request::RepairVolume(VolumeRequest { name: volume() }),
        Request::HoldVolumes(HoldVolumesRequest { names: vec!["hal9000-chromadb".into()] }),
        Request::RemoveVolume(VolumeRequest { name: volume() }),
        Request::ImageImport(ImageImportRequest {
            name: ImageName::parse("alpine").ok(),
            default_name: None,
            replace: Some(true),
        }),
        Request::ImageList(NoParameters {}),
        Request::ImageInspect(ImageRequest { image: "alpine".into() }),
        Request::ImageRemove(ImageRequest { image: "alpine".into() }),
    ]
}

#[test]
fn every_request_survives_the_way_there_and_back() {
    let requests = one_of_each();
    let methods: Vec<_> = requests.iter().map(Request::method).collect();
    assert_eq!(methods, Request::METHODS, "one of each, in order");
    for request in requests {
        let frame = Call { more: true, ..request.to_call() }.encode();
        let call = Call::decode(&frame[..frame.len() - 1]).unwrap();
        assert_eq!(Request::decode(call).unwrap(), request);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let invalid = |parameter: &str| ServiceError::InvalidParameter { parameter: parameter.into() };
    for (method, parameters, expected) in [
        ("io.halsup.Control.Stop", json!({}), invalid("target")),
        ("io.halsup.Control.Stop", json!({"target": 3}), invalid("target")),
        ("io.halsup.Control.Stop", json!({"target": null}), invalid("target")),
        ("io.halsup.Control.Stop", json!({"target": "../etc"}), invalid("target")),
        ("io.halsup.Control.Stop", json!({"target": "web\n"}), invalid("target")),
        ("io.halsup.Control.Stop", json!({"target": "web", "force": true}), invalid("force")),
        ("io.halsup.Control.Ping", json!({"x": 1}), invalid("x")),
        ("io.halsup.Control.List", json!({"pool": "a/b"}), invalid("pool")),
        ("io.halsup.Control.Kill", json!({"target": "all", "signal": 0}), invalid("signal")),
        ("io.halsup.Control.Kill", json!({"target": "all", "signal": 65}), invalid("signal")),
        ("io.halsup.Control.Kill", json!({"target": "all", "signal": "TERM"}), invalid("signal")),
        ("io.halsup.Control.Scale", json!({"pool": "web"}), invalid("count")),
        ("io.halsup.Control.Scale", json!({"pool": "web", "count": -1}), invalid("count")),
        ("io.halsup.Control.Scale", json!({"pool": "web", "count": 2.5}), invalid("count")),
        ("io.halsup.Control.Scale", json!({"pool": "web", "count": 10_001}), invalid("count")),
        ("io.halsup.Control.Logs", json!({"worker": "web", "lines": 10_001}), invalid("lines")),
        ("io.halsup.Control.Send", json!({"target": "web", "text": ""}), invalid("text")),
        ("io.halsup.Control.Send", json!({"target": "web", "text": "x".repeat(SEND_BYTES_MAX + 1)}), invalid("text")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": []}), invalid("command")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": [""]}), invalid("command")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": ["a\u{0}b"]}), invalid("command")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": ["a"], "env": ["=x"]}), invalid("env")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": ["a"], "env": ["x"]}), invalid("env")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": ["a"], "rows": 0}), invalid("rows")),
        ("io.halsup.Control.Exec", json!({"target": "web", "command": ["a"], "columns": 4097}), invalid("columns")),
        ("io.halsup.Control.Attach", json!({"target": "web", "replay": 1}), invalid("replay")),
        ("io.halsup.Control.Events", json!({"last": 1_001}), invalid("last")),
        ("io.halsup.Control.Events", json!({"telemetry": true, "follow": true, "pool": "web"}), invalid("pool")),
        ("io.halsup.Control.Certificates", json!({"last": 1_001}), invalid("last")),
        ("io.halsup.Control.Shutdown", json!({"timeout_ms": 86_400_001}), invalid("timeout_ms")),
        ("io.halsup.Control.ImageImport", json!({"name": "../x"}), invalid("name")),
        ("io.halsup.Control.ImageInspect", json!({"image": "A"}), invalid("image")),
        ("io.halsup.Control.ImageRemove", json!({"image": "sha256:../.."}), invalid("image")),
        ("io.halsup.Control.SetLog", json!({"filter": "x".repeat(1_025)}), invalid("filter")),
        ("io.halsup.Control.Drain", json!({"draining": true, "pools": ["a/b"]}), invalid("pools")),
        ("io.halsup.Control.Drain", json!({"draining": true, "pools": vec!["a"; DRAINED_MAX + 1]}), invalid("pools")),
        ("io.halsup.Control.SetLog", json!({"filter": "in\u{1b}fo"}), invalid("filter")),
        ("io.halsup.Control.Logs", json!({"worker": "web", "follow": true}), ServiceError::ExpectedMore {}),
        ("io.halsup.Control.RemoveVolume", json!({"name": "../x"}), invalid("name")),
        ("io.halsup.Control.ListVolumes", json!({"name": "a/b"}), invalid("name")),
        ("io.halsup.Control.Nope", json!({}), ServiceError::MethodNotFound { method: "io.halsup.Control.Nope".into() }),
        ("io.halsup.Other.Ping", json!({}), ServiceError::InterfaceNotFound { interface: "io.halsup.Other".into() }),
        ("Ping", json!({}), ServiceError::MethodNotFound { method: "Ping".into() }),
    ] {
        assert_eq!(Request::decode(call(method, parameters.clone())), Err(expected), "{method} {parameters}");
    }
    let mut upgrade = call("io.halsup.Control.Ping", json!({}));
    upgrade.upgrade = true;
    assert!(matches!(Request::decode(upgrade), Err(ServiceError::MethodNotImplemented { .. })));
}

#[test]
fn what_is_wrong_with_tools_and_questions_is_named() {
    let invalid = |parameter: &str| ServiceError::InvalidParameter { parameter: parameter.into() };
    let many_names: Vec<String> = (0..=TOOLS_MAX).map(|number| format!("tool {number}")).collect();
    let call_number = "a".repeat(32);
    let error = |reason: &str, length: usize| json!({ "reason": reason, "message": "m".repeat(length) });
    for (method, parameters, expected) in [
        ("io.halsup.Control.RequestStatus", json!({"request": ""}), invalid("request")),
        ("io.halsup.Control.RequestStatus", json!({"pool": "web"}), invalid("request")),
        ("io.halsup.Control.ServeTools", json!({"pool": "web", "tools": ["a"]}), ServiceError::ExpectedMore {}),
        ("io.halsup.Control.ServeTools", json!({"pool": "web", "tools": []}), invalid("tools")),
        ("io.halsup.Control.ServeTools", json!({"pool": "web", "tools": ["a", "a"]}), invalid("tools")),
        ("io.halsup.Control.ServeTools", json!({"pool": "web", "tools": ["a\n"]}), invalid("tools")),
        ("io.halsup.Control.ServeTools", json!({"pool": "web", "tools": ["x".repeat(257)]}), invalid("tools")),
        ("io.halsup.Control.ServeTools", json!({"pool": "web", "tools": many_names}), invalid("tools")),
        ("io.halsup.Control.ReplyTool", json!({"pool": "web", "call": "1"}), invalid("call")),
        ("io.halsup.Control.SendChunk", json!({"payload": {"bytes": 1, "shared": true}}), invalid("payload")),
        ("io.halsup.Control.SendChunk", json!({"end": 1}), invalid("end")),
        ("io.halsup.Control.SendChunk", json!({"request": "x"}), invalid("request")),
        ("io.halsup.Control.ReplyTool", json!({"pool": "web", "call": "A".repeat(32)}), invalid("call")),
        (
            "io.halsup.Control.ReplyTool",
            json!({"pool": "web", "call": call_number, "error": error(&"a".repeat(129), 1)}),
            invalid("error"),
        ),
        (
            "io.halsup.Control.ReplyTool",
            json!({"pool": "web", "call": call_number, "error": error("a", 16_385)}),
            invalid("error"),
        ),
        ("io.halsup.Control.ReplyTool", json!({"pool": "web", "call": call_number, "error": {}}), invalid("error")),
    ] {
        assert_eq!(Request::decode(call(method, parameters.clone())), Err(expected), "{method} {parameters}");
    }
}

#[test]
fn what_is_wrong_with_tasks_is_named() {
    let invalid = |parameter: &str| ServiceError::InvalidParameter { parameter: parameter.into() };
    for (method, parameters, expected) in [
        ("io.halsup.Control.RunTask", json!({}), invalid("prompt")),
        ("io.halsup.Control.RunTask", json!({"prompt": ""}), invalid("prompt")),
        ("io.halsup.Control.RunTask", json!({"prompt": "x", "task": "../x"}), invalid("task")),
        ("io.halsup.Control.RunTask", json!({"prompt": "x", "metadata": []}), invalid("metadata")),
        ("io.halsup.Control.RunTask", json!({"prompt": "x", "priority": 256}), invalid("priority")),
        ("io.halsup.Control.InspectTask", json!({"task": "x", "output_bytes": 1_048_577}), invalid("output_bytes")),
        ("io.halsup.Control.FollowTask", json!({"task": "x"}), ServiceError::ExpectedMore {}),
        ("io.halsup.Control.SwitchExecutor", json!({"executor": "magic"}), invalid("executor")),
    ] {
        assert_eq!(Request::decode(call(method, parameters.clone())), Err(expected), "{method} {parameters}");
    }
}

#[test]
fn null_and_absent_are_the_same_where_a_parameter_may_be_missing() {
    for parameters in [json!({}), json!({"last": null, "follow": null})] {
        let request = Request::decode(call("io.halsup.Control.Events", parameters)).unwrap();
        assert_eq!(request, Request::Events(EventsRequest::default()));
    }
    let request = Request::decode(call("io.halsup.Control.List", json!({"pool": null}))).unwrap();
    assert_eq!(request, Request::List(ListRequest::default()));
}

#[test]
fn what_changes_something_needs_more_than_observe() {
    for request in one_of_each() {
        let (_, name) = request.method();
        let of_workers = ["Start", "Stop", "Restart", "Kill", "Reset", "Release", "Attach", "Send", "Exec"];
        let of_pools = [
            "Scale",
            "Claim",
            "Warm",
            "Tune",
            "Pause",
            "Execute",
            "Lease",
            "OpenSession",
            "CloseSession",
            "ResetBreakers",
            "ServeTools",
            "ReplyTool",
        ];
        let changes = of_workers.contains(&name) || of_pools.contains(&name);
        let admin = [
            "Reload",
            "Upgrade",
            "Shutdown",
            "SetLog",
            "Drain",
            "GetConfig",
            "CreateToken",
            "ListTokens",
            "RevokeToken",
            "RepairVolume",
            "HoldVolumes",
            "RemoveVolume",
            "ImageImport",
            "ImageRemove",
        ]
        .contains(&name);
        let expected = if admin {
            Role::Admin
        } else if changes || ["CreateVolume", "RunTask", "CancelTask", "SwitchExecutor"].contains(&name) {
            Role::Operate
        } else {
            Role::Observe
        };
        assert_eq!(request.role(), expected, "{name}");
        if changes {
            assert!(!matches!(request.object(), Object::Protocol | Object::Daemon), "{name}");
            assert!(request.target().is_some(), "{name}");
        }
    }
    let web = PoolName::parse("web").unwrap();
    let one = Request::Stop(TargetRequest { target: Target::Worker(web.clone(), 1) });
    assert_eq!((one.object().pool(), one.target()), (Some(&web), Some(Target::Worker(web.clone(), 1))));
    let all = Request::Stop(TargetRequest { target: Target::All });
    assert_eq!((all.object().pool(), all.target()), (None, Some(Target::All)));
    let pool = Request::Scale(ScaleRequest { pool: web.clone(), count: 1 });
    assert_eq!((pool.object().pool(), pool.target()), (Some(&web), Some(Target::Pool(web.clone()))));
    let every = Request::Certificates(CertificatesRequest::default());
    assert_eq!((every.object(), every.target()), (Object::EveryPool, None));
}

#[test]
fn no_frame_makes_it_panic() {
    for seed in 0..3_000 {
        let mut seeded = Seeded::new(seed);
        let requests = one_of_each();
        let frame = requests[seeded.below(requests.len())].to_call().encode();
        if let Ok(call) = Call::decode(&seeded.mutated(&frame[..frame.len() - 1])) {
            drop(Request::decode(call));
        }
    }
}
