//! Holds the interface description and the types against each other, so that neither can change alone.
//!
//! A small reader of the description, and one full value of every type: a value's JSON has every field of its type, and
//! must have exactly the fields, and the kinds of values, that the description says. The same value must be read back.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

mod reader;
mod tasks;
mod tokens;

use reader::{Interface, Reader, Type};

fn counts() -> StateCounts {
    StateCounts { healthy: 3, ..StateCounts::default() }
}

fn certificate() -> DeathCertificate {
    DeathCertificate {
        worker: "web.3".into(),
        generation: 7,
        cause: Cause::StartFailed,
        status: Some(Cause::Exited(1)),
        start_failure: Some(StartFailure { stage: "exec".into(), errno: Some(2), text: "exec /x: not found".into() }),
        started: Some("2026-01-01T00:00:00Z".into()),
        ended: "2026-01-01T00:00:01Z".into(),
        pid: Some(9),
        user_usec: Some(1),
        system_usec: Some(1),
        max_rss_bytes: Some(1),
        memory_peak_bytes: Some(1),
        oom_kills: Some(0),
        leftover_processes: Some(0),
        last_output: "bye".into(),
        asked_by: Some("uid 0 (pid 1)".into()),
        note: Some("ended while no daemon ran".into()),
        session: Some("hal-9000-site".into()),
        owner: Some(1000),
    }
}

fn worker() -> WorkerInfo {
    WorkerInfo {
        name: "web.3".into(),
        pool: "web".into(),
        slot: 3,
        state: WorkerState::Healthy,
        occupancy: Some(Occupancy::Warm),
        generation: Some(7),
        pid: Some(10),
        init_pid: Some(9),
        uid: Some(1_879_048_192),
        since: "2026-01-01T00:00:00Z".into(),
        age_seconds: 5,
        restarts: 1,
        missed_heartbeats: 0,
        last_health: Some("2026-01-01T00:00:00.000Z".into()),
        restart_in_ms: Some(100),
        port: Some(8003),
        cgroup: Some("/halsup/web.3".into()),
        work_dir: Some("/run/halsup/work/web.3".into()),
        status_text: Some("fine".into()),
        last_exit: Some(Cause::Signal(9)),
        limits_enforced: false,
        limits_reason: Some("memory controller is missing".into()),
        session: Some(Claimed {
            name: "hal-9000-web".into(),
            owner: 1000,
            project: Some("/home/x/web".into()),
            created: "2026-01-01T00:00:00Z".into(),
            terminal: true,
            command: vec!["bash".into()],
            labels: vec!["a=b".into()],
        }),
    }
}

fn inspection() -> Inspection {
    Inspection {
        worker: worker(),
        command: vec!["python3".into()],
        identity: "dynamic".into(),
        root: "host".into(),
        net: "parent".into(),
        ready: "tcp".into(),
        heartbeat: Some("http:/health every 2s".into()),
        limits: vec![LimitInfo {
            name: "memory.max".into(),
            value: "67108864".into(),
            asked: true,
            enforced: false,
            reason: Some("memory controller is missing".into()),
        }],
        listen: vec!["127.0.0.1:80".into()],
        stdout_path: Some("/var/lib/halsup/logs/web.3.out".into()),
        stderr_path: Some("/var/lib/halsup/logs/web.3.err".into()),
        certificates: vec![certificate()],
    }
}

fn event() -> Event {
    Event {
        sequence: 1,
        time: "2026-01-01T00:00:00Z".into(),
        kind: EventKind::Death,
        pool: Some("web".into()),
        worker: Some("web.3".into()),
        generation: Some(7),
        state: Some(WorkerState::Restarting),
        cause: Some(Cause::Oom),
        asked_by: Some("uid 0 (pid 1)".into()),
        text: "died".into(),
        name: Some("halsup.worker.crash".into()),
        measurements: Some(serde_json::Map::new()),
        metadata: Some(serde_json::Map::new()),
    }
}

fn session() -> SessionInfo {
    SessionInfo {
        name: "web.3".into(),
        worker: "web.3".into(),
        pool: "web".into(),
        state: WorkerState::Healthy,
        frozen: true,
        started: "2026-01-01T00:00:00Z".into(),
        image: Some("/srv/rootfs".into()),
        owner: Some(1000),
        project: Some("/home/x/web".into()),
        columns: Some(80),
        rows: Some(24),
        viewers: 1,
        writer: Some("uid 0 (pid 1)".into()),
        ended: Some("2026-01-01T00:00:01Z".into()),
        exit: Some(Cause::Exited(3)),
    }
}

fn stats() -> WorkerStats {
    WorkerStats {
        name: "web.3".into(),
        state: WorkerState::Healthy,
        memory_current_bytes: Some(1),
        memory_peak_bytes: Some(1),
        memory_max_bytes: Some(1),
        cpu_usec: Some(1),
        cpu_user_usec: Some(1),
        cpu_system_usec: Some(1),
        throttled_usec: Some(1),
        throttled_periods: Some(1),
        pids: Some(1),
        pids_max: Some(1),
        oom_kills: Some(1),
        pids_limit_hits: Some(1),
    }
}

fn status() -> StatusReply {
    StatusReply {
        version: "0.1.0".into(),
        protocol: PROTOCOL,
        pid: 1,
        instance: "default".into(),
        state: DaemonState::Running,
        started: "2026-01-01T00:00:00Z".into(),
        uptime_seconds: 1,
        config_path: Some("/etc/halsup/halsup.toml".into()),
        runtime_dir: "/run/halsup".into(),
        state_dir: "/var/lib/halsup".into(),
        cgroup: Some("/halsup".into()),
        controllers: Controllers { available: vec!["pids".into()], missing: vec!["memory".into()] },
        limits_enforced: false,
        limits_reason: Some("memory controller is missing".into()),
        state_trouble: Some("write state: No space left on device".into()),
        log_filter: "info".into(),
        counts: counts(),
        pools: vec![PoolInfo {
            name: "web".into(),
            service: false,
            min: 1,
            max: 5,
            wanted: 3,
            root: "host".into(),
            net: "parent".into(),
            claims: Some(ClaimsInfo {
                warm: 2,
                busy: 1,
                sessions_max: 100,
                idle_timeout_seconds: 300,
                check_interval_seconds: 30,
                paused: false,
                memory_bytes: Some(1),
                cpu_millis: Some(2000),
                pids: Some(100),
            }),
            counts: counts(),
            frozen: 1,
        }],
    }
}

/// Holds one reply type against the method's reply, and takes the method off the list.
struct Replies<'a> {
    interface: &'a Interface,
    left: BTreeSet<&'a str>,
}

impl Replies<'_> {
    fn hold<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, method: &str, reply: &T) {
        let (_, expected) = &self.interface.methods[method];
        let value = serde_json::to_value(reply).unwrap();
        self.interface.check(method, &value, expected);
        self.interface.check_optional::<T>(method, &value, expected);
        assert_eq!(&serde_json::from_value::<T>(value).unwrap(), reply);
        self.left.remove(method);
    }
}

fn hold_images(replies: &mut Replies<'_>) {
    let image = ImageInfo {
        names: vec!["alpine:latest".into()],
        digest: format!("sha256:{}", "0".repeat(64)),
        created: Some("2026-01-01T00:00:00Z".into()),
        imported: "2026-01-01T00:00:00Z".into(),
        size_bytes: 1,
        entries: 1,
        used_by: vec!["web".into()],
    };
    let words = || vec!["x".to_string()];
    let config = crate::spec::ImageConfig {
        created: Some("x".into()),
        entrypoint: words(),
        cmd: words(),
        env: words(),
        working_dir: Some("/".into()),
        user: Some("0".into()),
        stop_signal: Some("SIGTERM".into()),
    };
    let imported =
        ImageImportReply { read_bytes: 1, written_bytes: 1, entries: 1, image: Some(image.clone()), notes: words() };
    replies.hold("ImageImport", &imported);
    replies.hold("ImageList", &ImageListReply { images: vec![image.clone()] });
    replies.hold("ImageInspect", &ImageInspectReply { image: image.clone(), config, root: "/x".into() });
    replies.hold("ImageRemove", &ImageRemoveReply { names: image.names, removed: Some(image.digest) });
}

fn bill() -> Bill {
    Bill {
        cpu_usec: Some(3),
        user_usec: Some(2),
        system_usec: Some(1),
        memory_peak_bytes: Some(1),
        read_bytes: Some(1),
        written_bytes: Some(1),
        leaked_processes: Some(1),
        note: Some("x".into()),
    }
}

fn hold_requests_one_by_one(replies: &mut Replies<'_>) {
    let text = || Some("x".to_string());
    let session = CallSessionInfo {
        session: "site".into(),
        pool: "web".into(),
        worker: text(),
        generation: Some(7),
        lost: true,
        requests: 1,
        ttl_ms: 2,
        expires_in_ms: Some(3),
    };
    replies.hold("ListSessions", &ListSessionsReply { sessions: vec![session] });
    let request = RequestInfo {
        request: "x".into(),
        correlation: "x".into(),
        pool: "web".into(),
        state: RequestState::InDoubt,
        reason: text(),
        worker: text(),
        generation: Some(7),
        attempts: 1,
        age_ms: 2,
        ended_ms: Some(1),
    };
    replies.hold("RequestStatus", &RequestStatusReply { requests: vec![request] });
    let called = ServeToolsReply {
        call: text(),
        tool: text(),
        args: Some(json!([1])),
        request: text(),
        worker: text(),
        session: text(),
        correlation: text(),
        deadline_ms: Some(1),
    };
    replies.hold("ServeTools", &called);
    replies.hold("ReplyTool", &Empty {});
}

fn hold_requests(replies: &mut Replies<'_>) {
    let text = || Some("x".to_string());
    let executed = ExecuteReply {
        chunk: Some(json!(1)),
        result: Some(json!({ "a": [1] })),
        payload: Some(MadePayload { bytes: 1, in_request: Some(true) }),
        request: text(),
        worker: text(),
        generation: Some(7),
        attempts: Some(1),
        queued_usec: Some(1),
        usec: Some(1),
        correlation: text(),
        bill: Some(bill()),
    };
    replies.hold("Execute", &executed);
    replies.hold("SendChunk", &Empty {});
    let leased = LeaseReply {
        lease: "x".into(),
        worker: "web.3".into(),
        generation: 7,
        port: 8003,
        attempts: 1,
        attempts_max: 3,
        backoff_ms: 100,
        left_ms: 5,
        head_ms: 5,
        idle_ms: Some(1),
        request_bytes_max: 1,
        answer_bytes_max: Some(1),
        correlation: "x".into(),
    };
    replies.hold("Lease", &leased);
    replies.hold("EndLease", &EndLeaseReply { ended: true });
    replies.hold("OpenSession", &OpenSessionReply { session: "s".into() });
    replies.hold("CloseSession", &Empty {});
    let desk = DeskStats {
        worker: "web.3".into(),
        in_flight: 1,
        requests: 2,
        failed: 3,
        served: 4,
        failures: 5,
        breaker: BreakerPosition::Open,
        probe_in_ms: Some(6),
        retiring: true,
    };
    let pool = PoolRequestStats {
        pool: "web".into(),
        requests: 1,
        queued: 2,
        errors: 3,
        queue_timeouts: 4,
        pool_saturated: 5,
        workers: 6,
        available: 7,
        busy: 8,
        queued_total: 9,
        in_flight: 10,
        answered: 11,
        retries: 12,
        abandoned: 13,
        quarantined: 14,
        recycled: 15,
        sessions: 16,
        breaker: BreakerPosition::HalfOpen,
        desks: vec![desk],
    };
    replies.hold("PoolStats", &PoolStatsReply { pools: vec![pool] });
    replies.hold("ResetBreakers", &ResetBreakersReply { reset: 1 });
}

#[test]
fn every_reply_is_as_described() {
    let interface = Reader::new(DESCRIPTION).interface();
    let left = interface.methods.keys().map(String::as_str).collect();
    let mut replies = Replies { interface: &interface, left };
    let names = || vec!["web".to_string()];
    replies.hold("Ping", &Empty {});
    replies.hold("Status", &status());
    replies.hold("List", &ListReply { workers: vec![worker()] });
    let progress = PoolProgress { pool: "web".into(), wanted: 3, ready: 1, starting: 2 };
    let failures = vec![Failure { worker: "web.3".into(), reason: "exec: not found".into() }];
    replies.hold("WaitPool", &WaitPoolReply { reached: false, pools: vec![progress], failures });
    replies.hold("Inspect", &InspectReply { workers: vec![inspection()] });
    let failures = vec![Failure { worker: "web.3".into(), reason: "exec: not found".into() }];
    let change = ChangeReply { achieved: 1, wanted: 2, failures };
    for method in ["Start", "Stop", "Restart", "Kill", "Reset", "Scale", "Warm", "Tune", "Send"] {
        replies.hold(method, &change);
    }
    let failures = vec![Failure { worker: "web.3".into(), reason: "exec: not found".into() }];
    let released =
        ReleaseReply { achieved: 1, wanted: 1, failures, reset: false, reason: Some("it was ending".into()) };
    replies.hold("Release", &released);
    replies.hold("Pause", &Empty {});
    let claimed =
        ClaimReply { session: "hal-9000-web".into(), worker: "web.3".into(), generation: 7, warm: true, pid: Some(9) };
    replies.hold("Claim", &claimed);
    for method in ["Attach", "Watch", "Exec"] {
        replies.hold(method, &AttachReply { worker: "web.3".into() });
    }
    replies.hold("Sessions", &SessionsReply { sessions: vec![session()] });
    let entry =
        LogEntry { worker: "web.3".into(), stream: Stream::Stderr, time: "2026-01-01".into(), text: "hello".into() };
    replies.hold("Logs", &LogsReply { entries: vec![entry] });
    replies.hold("Events", &EventsReply { events: vec![event()], missed: 0 });
    replies.hold("Stats", &StatsReply { workers: vec![stats()] });
    replies.hold("Certificates", &CertificatesReply { certificates: vec![certificate()] });
    replies.hold("Reload", &ReloadReply { added: names(), changed: names(), removed: names() });
    let upgraded = UpgradeReply { from: "1.0.0".into(), version: "1.1.0".into(), pid: 1, away_usec: 2, workers: 3 };
    replies.hold("Upgrade", &upgraded);
    replies.hold("Shutdown", &ShutdownReply { remaining: 1, stuck: names() });
    replies.hold("Drain", &DrainReply { drained: Some(vec!["web".into()]) });
    replies.hold("SetLog", &SetLogReply { previous: "info".into() });
    tokens::hold_tokens(&mut replies);
    let check = Check { name: "cgroup".into(), ok: false, found: "v1".into(), fix: Some("boot with v2".into()) };
    replies.hold("Doctor", &DoctorReply { checks: vec![check] });
    replies.hold("GetConfig", &ConfigReply { path: Some("/etc/x".into()), text: "[pool.web]".into() });
    let volume = VolumeInfo {
        name: "data".into(),
        created: Some("2026-01-01".into()),
        path: "/x".into(),
        pools: names(),
        mapped: false,
        usage_bytes: Some(1),
        usage_inodes: Some(2),
        foreign_inodes: Some(3),
    };
    let room =
        ListVolumesReply { volumes: vec![volume], total_bytes: 1, free_bytes: 2, total_inodes: 3, free_inodes: 4 };
    replies.hold("ListVolumes", &room);
    replies.hold("CreateVolume", &CreateVolumeReply { created: true, path: "/x".into() });
    replies.hold("RepairVolume", &Empty {});
    replies.hold("HoldVolumes", &HoldVolumesReply { held: 1, cgroups: names() });
    replies.hold("RemoveVolume", &Empty {});
    hold_images(&mut replies);
    tasks::hold_tasks(&mut replies);
    hold_requests(&mut replies);
    hold_requests_one_by_one(&mut replies);
    assert_eq!(replies.left, BTreeSet::new(), "described, but without a type here");

    let worker_fields = serde_json::to_value(worker()).unwrap();
    interface.check_optional::<WorkerInfo>("WorkerInfo", &worker_fields, &interface.types["WorkerInfo"]);
    let fields = serde_json::to_value(certificate()).unwrap();
    interface.check_optional::<DeathCertificate>("DeathCertificate", &fields, &interface.types["DeathCertificate"]);
}

#[test]
fn every_method_has_a_request_with_the_described_parameters() {
    let interface = Reader::new(DESCRIPTION).interface();
    let ours: BTreeSet<_> =
        Request::METHODS.iter().filter(|(name, _)| *name == INTERFACE).map(|(_, method)| *method).collect();
    assert_eq!(ours, interface.methods.keys().map(String::as_str).collect());
    let mut full = json!({
        "target": "web.3", "pool": "web", "worker": "web.3", "signal": 9, "count": 2, "lines": 3, "follow": true,
        "last": 4, "timeout_ms": 5, "keep_workers": true, "binary": "/bin/x", "filter": "info", "steal": true,
        "replay": false, "text": "ls\r", "command": ["ls", "-l"], "env": ["A=b"], "terminal": true, "columns": 80,
        "rows": 24, "session": "site", "name": "data", "project": "/home/x", "project_target": "/w", "project_read_only": true,
        "mounts": ["/a:/b"], "secrets": ["k=v"], "memory_bytes": 1, "cpu_millis": 1, "pids": 1, "labels": ["a=b"],
        "warm_only": true, "detached": true, "paused": true, "reset": true,
        "image": "alpine", "default_name": "a/b:c", "replace": true, "usage": true, "names": ["data"], "complete": true,
    });
    let of_requests = json!({
        "args": { "x": 1 }, "affinity": "strict_queue", "queue_timeout_ms": 5, "idempotent": true, "correlation": "c",
        "payload": { "bytes": 1, "shared": true }, "stream": true, "ttl_ms": 5, "request": "mine", "tools": ["add"],
        "call": "0123456789abcdef".repeat(2), "result": [1], "error": { "reason": "full", "message": "it is full" },
        "telemetry": true, "bill": true, "input": true, "chunk": [1], "end": true,
        "keep": true, "prompt": "x", "task": "x", "worker_id": "w", "priority": 7, "metadata": { "a": [1] }, "after": 7,
        "output_bytes": 9, "executor": "stub", "token": "halsup_00", "role": "observe", "seconds": 60, "not": ["web.3"], "summary": "GET /",
        "fingerprint": "f", "outcome": "server_error", "lease": "0123456789abcdef".repeat(2), "upgrade": true,
        "draining": true, "pools": ["web"],
    });
    full.as_object_mut().unwrap().append(&mut of_requests.as_object().unwrap().clone());
    for (at, number) in ["min", "max", "idle_timeout_seconds", "check_interval_seconds"].into_iter().enumerate() {
        full[number] = json!(at + 1);
    }
    for (method, (parameters, _)) in &interface.methods {
        let Type::Object(fields) = parameters else { panic!("{method}") };
        let mut parameters: serde_json::Map<_, _> =
            fields.keys().map(|field| (field.clone(), full[field].clone())).collect();
        if method == "Execute" {
            parameters.insert("command".into(), "echo".into());
        }
        if method.starts_with("Image") && parameters.contains_key("name") {
            parameters.insert("name".into(), "alpine:latest".into());
        }
        interface.check(method, &Value::Object(parameters.clone()), &interface.methods[method].0);
        // Telemetry is of all pools, and only for who follows.
        if method == "Events" {
            parameters.remove("telemetry");
        }
        // No chunk is in memory that is lent.
        if method == "SendChunk" {
            parameters.insert("payload".into(), json!({ "bytes": 1 }));
        }
        let call = |parameters| super::super::varlink::Call {
            method: format!("{INTERFACE}.{method}"),
            parameters,
            oneway: false,
            more: true,
            upgrade: false,
        };
        let request = Request::decode(call(parameters.clone())).unwrap();
        assert_eq!(request.to_call().parameters, parameters, "{method}");
        for (field, kind) in fields {
            let mut without = parameters.clone();
            without.remove(field);
            let optional = matches!(kind, Type::Maybe(_));
            assert_eq!(Request::decode(call(without)).is_ok(), optional, "{method}.{field}");
        }
    }
}

#[test]
fn every_error_is_as_described() {
    let interface = Reader::new(DESCRIPTION).interface();
    let text = || "x".to_string();
    let errors = [
        Error::NotFound { what: text() },
        Error::Refused { reason: text() },
        Error::Exists { what: text() },
        Error::Saturated {},
        Error::ShuttingDown {},
        Error::Failed { operation: text(), object: text(), cause: text() },
        Error::RequestFailed(Box::new(RequestFailure {
            request: text(),
            outcome: RequestOutcome::InDoubt,
            category: text(),
            reason: text(),
            message: text(),
            details: Some(json!([1])),
            traceback: Some(text()),
            worker: Some(text()),
            attempts: 2,
            correlation: text(),
            bill: Some(bill()),
        })),
    ];
    let mut left: BTreeSet<_> = interface.errors.keys().cloned().collect();
    for error in errors {
        let reply = error.to_reply();
        let name = reply.error.unwrap().strip_prefix("io.halsup.Control.").unwrap().to_string();
        interface.check(&name, &Value::Object(reply.parameters), &interface.errors[&name]);
        left.remove(&name);
    }
    assert_eq!(left, BTreeSet::new());
}

#[test]
fn every_word_of_an_enum_is_described() {
    fn words<T: Serialize>(all: &[T]) -> Type {
        Type::Enum(all.iter().map(|word| serde_json::to_value(word).unwrap().as_str().unwrap().to_string()).collect())
    }
    let types = Reader::new(DESCRIPTION).interface().types;
    assert_eq!(types["WorkerState"], words(&WorkerState::ALL));
    assert!(WorkerState::ALL.iter().all(|state| json!(state) == json!(state.as_str())));
    assert_eq!(types["Occupancy"], words(&[Occupancy::Warm, Occupancy::Busy, Occupancy::Frozen]));
    assert_eq!(types["DaemonState"], words(&[DaemonState::Starting, DaemonState::Running, DaemonState::Stopping]));
    assert_eq!(types["Stream"], words(&[Stream::Stdout, Stream::Stderr]));
    let kinds = [
        EventKind::Daemon,
        EventKind::Pool,
        EventKind::State,
        EventKind::Death,
        EventKind::Limit,
        EventKind::Order,
        EventKind::Request,
        EventKind::Telemetry,
    ];
    assert_eq!(types["EventKind"], words(&kinds));
    let modes = [AffinityMode::Hint, AffinityMode::StrictQueue, AffinityMode::StrictFailFast];
    assert_eq!(types["AffinityMode"], words(&modes));
    let states = [
        RequestState::Queued,
        RequestState::Running,
        RequestState::Answered,
        RequestState::NeverStarted,
        RequestState::InDoubt,
    ];
    assert_eq!(types["RequestState"], words(&states));
    let outcomes = [RequestOutcome::Answered, RequestOutcome::NeverStarted, RequestOutcome::InDoubt];
    assert_eq!(types["RequestOutcome"], words(&outcomes));
    let outcomes = [LeaseOutcome::Done, LeaseOutcome::Failed, LeaseOutcome::ServerError];
    assert_eq!(types["LeaseOutcome"], words(&outcomes));
    let positions = [BreakerPosition::Closed, BreakerPosition::Open, BreakerPosition::HalfOpen];
    assert_eq!(types["BreakerPosition"], words(&positions));
    assert!(kinds.iter().all(|kind| json!(kind) == json!(kind.to_string())));
    let Type::Object(counted) = &types["StateCounts"] else { panic!() };
    assert!(counted.keys().eq(WorkerState::ALL.iter().map(|state| state.as_str()).collect::<BTreeSet<_>>()));
}
