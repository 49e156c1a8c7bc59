//! Holds the interface description and the types against each other, so that neither can change alone.
//!
//! A small reader of the description, and one full value of every type: a value's JSON has every field of its type, and
//! must have exactly the fields, and the kinds of values, that the description says. The same value must be read back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

/// A type as the description writes it.
#[derive(Debug, Clone, PartialEq)]
enum Type {
    Bool,
    Int,
    Text,
    Array(Box<Self>),
    Maybe(Box<Self>),
    Named(String),
    Object(BTreeMap<String, Self>),
    Enum(BTreeSet<String>),
}

#[derive(Debug, Default)]
struct Interface {
    types: BTreeMap<String, Type>,
    methods: BTreeMap<String, (Type, Type)>,
    errors: BTreeMap<String, Type>,
}

struct Reader<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        for line in text.lines().map(|line| line.split('#').next().unwrap()) {
            let mut rest = line.trim_start();
            while !rest.is_empty() {
                let length = match rest.as_bytes() {
                    [b'-', b'>', ..] | [b'[', b']', ..] => 2,
                    [b'(' | b')' | b',' | b':' | b'?', ..] => 1,
                    _ => rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len()),
                };
                assert!(length > 0, "{rest}");
                tokens.push(&rest[..length]);
                rest = rest[length..].trim_start();
            }
        }
        Self { tokens, at: 0 }
    }

    fn next(&mut self) -> &'a str {
        self.at += 1;
        self.tokens[self.at - 1]
    }

    fn expect(&mut self, token: &str) {
        assert_eq!(self.next(), token, "at token {}", self.at);
    }

    fn interface(mut self) -> Interface {
        let mut interface = Interface::default();
        self.expect("interface");
        self.expect(INTERFACE);
        while self.at < self.tokens.len() {
            let (what, name) = (self.next(), self.next().to_string());
            assert!(name.chars().next().unwrap().is_ascii_uppercase(), "{name}");
            let first = self.parse_type();
            let doubled = match what {
                "type" => interface.types.insert(name, first).is_some(),
                "error" => interface.errors.insert(name, first).is_some(),
                "method" => {
                    self.expect("->");
                    let reply = self.parse_type();
                    interface.methods.insert(name, (first, reply)).is_some()
                }
                _ => panic!("{what}"),
            };
            assert!(!doubled, "a {what} comes twice");
        }
        interface
    }

    fn parse_type(&mut self) -> Type {
        match self.next() {
            "?" => Type::Maybe(Box::new(self.parse_type())),
            "[]" => Type::Array(Box::new(self.parse_type())),
            "bool" => Type::Bool,
            "int" => Type::Int,
            "string" => Type::Text,
            "(" => self.parse_fields(),
            name => Type::Named(name.into()),
        }
    }

    fn parse_fields(&mut self) -> Type {
        let mut fields = BTreeMap::new();
        let mut words = BTreeSet::new();
        loop {
            let name = self.next();
            if name == ")" {
                break;
            }
            // The grammar of Varlink: a letter first, single underscores inside, none at the end.
            assert!(name.as_bytes()[0].is_ascii_alphabetic() && !name.contains("__") && !name.ends_with('_'), "{name}");
            match self.next() {
                ":" => {
                    assert!(fields.insert(name.to_string(), self.parse_type()).is_none(), "{name} comes twice");
                    match self.next() {
                        "," => {}
                        ")" => break,
                        token => panic!("{token}"),
                    }
                }
                separator => {
                    assert!(words.insert(name.to_string()), "{name} comes twice");
                    if separator == ")" {
                        break;
                    }
                }
            }
        }
        assert!(fields.is_empty() || words.is_empty());
        if words.is_empty() { Type::Object(fields) } else { Type::Enum(words) }
    }
}

impl Interface {
    /// Whether `value`, which has every field that its type has, is exactly of this type.
    fn check(&self, at: &str, value: &Value, expected: &Type) {
        match (expected, value) {
            (Type::Bool, Value::Bool(_)) | (Type::Text, Value::String(_)) => {}
            (Type::Int, Value::Number(number)) => assert!(number.is_i64(), "{at}"),
            (Type::Maybe(inner), value) => {
                assert!(!value.is_null(), "{at}: the test's values are full");
                self.check(at, value, inner);
            }
            (Type::Array(inner), Value::Array(items)) => {
                assert!(!items.is_empty(), "{at}: the test's values are full");
                items.iter().for_each(|item| self.check(at, item, inner));
            }
            (Type::Named(name), value) => self.check(&format!("{at}:{name}"), value, &self.types[name]),
            (Type::Enum(words), Value::String(word)) => assert!(words.contains(word), "{at}: {word}"),
            (Type::Object(fields), Value::Object(map)) => {
                assert!(map.keys().eq(fields.keys().collect::<BTreeSet<_>>()), "{at}: {:?} {:?}", map.keys(), fields);
                map.iter().for_each(|(key, value)| self.check(&format!("{at}.{key}"), value, &fields[key]));
            }
            (expected, value) => panic!("{at}: {value} is no {expected:?}"),
        }
    }

    /// Whether exactly the fields that are not `?` are needed to read the type.
    fn check_optional<T: DeserializeOwned>(&self, at: &str, value: &Value, expected: &Type) {
        let Type::Object(fields) = expected else { panic!("{at}") };
        for (field, kind) in fields {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(field);
            let optional = matches!(kind, Type::Maybe(_));
            assert_eq!(serde_json::from_value::<T>(without).is_ok(), optional, "{at}.{field}");
        }
    }
}

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
    }
}

fn session() -> SessionInfo {
    SessionInfo {
        name: "web.3".into(),
        worker: "web.3".into(),
        pool: "web".into(),
        state: WorkerState::Healthy,
        started: "2026-01-01T00:00:00Z".into(),
        image: Some("/srv/rootfs".into()),
        owner: Some(1000),
        project: Some("/home/x/web".into()),
        columns: Some(80),
        rows: Some(24),
        viewers: 1,
        writer: Some("uid 0 (pid 1)".into()),
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
                paused: false,
                memory_bytes: Some(1),
                cpu_millis: Some(2000),
                pids: Some(100),
            }),
            counts: counts(),
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

#[test]
fn every_reply_is_as_described() {
    let interface = Reader::new(DESCRIPTION).interface();
    let left = interface.methods.keys().map(String::as_str).collect();
    let mut replies = Replies { interface: &interface, left };
    let names = || vec!["web".to_string()];
    replies.hold("Ping", &Empty {});
    replies.hold("Status", &status());
    replies.hold("List", &ListReply { workers: vec![worker()] });
    replies.hold("Inspect", &InspectReply { workers: vec![inspection()] });
    let failures = vec![Failure { worker: "web.3".into(), reason: "exec: not found".into() }];
    let change = ChangeReply { achieved: 1, wanted: 2, failures };
    for method in ["Start", "Stop", "Restart", "Kill", "Reset", "Scale", "Release", "Warm", "Send"] {
        replies.hold(method, &change);
    }
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
    replies.hold("SetLog", &SetLogReply { previous: "info".into() });
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
    let full = json!({
        "target": "web.3", "pool": "web", "worker": "web.3", "signal": 9, "count": 2, "lines": 3, "follow": true,
        "last": 4, "timeout_ms": 5, "keep_workers": true, "binary": "/bin/x", "filter": "info", "steal": true,
        "replay": false, "text": "ls\r", "command": ["ls", "-l"], "env": ["A=b"], "terminal": true, "columns": 80,
        "rows": 24, "session": "site", "name": "data", "project": "/home/x", "project_target": "/w", "project_read_only": true,
        "mounts": ["/a:/b"], "secrets": ["k=v"], "memory_bytes": 1, "cpu_millis": 1, "pids": 1, "labels": ["a=b"],
        "warm_only": true, "detached": true, "paused": true,
        "image": "alpine", "default_name": "a/b:c", "replace": true, "usage": true, "names": ["data"],
    });
    for (method, (parameters, _)) in &interface.methods {
        let Type::Object(fields) = parameters else { panic!("{method}") };
        let mut parameters: serde_json::Map<_, _> =
            fields.keys().map(|field| (field.clone(), full[field].clone())).collect();
        if method.starts_with("Image") && parameters.contains_key("name") {
            parameters.insert("name".into(), "alpine:latest".into());
        }
        interface.check(method, &Value::Object(parameters.clone()), &interface.methods[method].0);
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
        Error::Saturated {},
        Error::ShuttingDown {},
        Error::Failed { operation: text(), object: text(), cause: text() },
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
    let kinds =
        [EventKind::Daemon, EventKind::Pool, EventKind::State, EventKind::Death, EventKind::Limit, EventKind::Order];
    assert_eq!(types["EventKind"], words(&kinds));
    assert!(kinds.iter().all(|kind| json!(kind) == json!(kind.to_string())));
    let Type::Object(counted) = &types["StateCounts"] else { panic!() };
    assert!(counted.keys().eq(WorkerState::ALL.iter().map(|state| state.as_str()).collect::<BTreeSet<_>>()));
}
