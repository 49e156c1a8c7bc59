//! Whole configurations: what they become.

mod mistakes;
mod of_gateway;
mod of_snakepit;
mod of_tasks;
mod sources;

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::spec::{
    Bind, Cpuset, DaemonSpec, Grantee, Heartbeat, HeartbeatSource, Identity, Limit, LimitsMode, Listen, Net,
    OnSupervisorDeath, PoolSpec, Probe, Ready, Restart, Role, RoleGrant, Root, Seccomp, Size, VolumeMount, VolumeName,
};

fn no_variables() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(text: &str) -> Config {
    parse_config(text, &no_variables()).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// A pool `web` with a command and `more`.
fn pool(more: &str) -> PoolSpec {
    parse(&format!("[pool.web]\ncommand = [\"true\"]\n{more}")).pools.remove(0)
}

fn errors(text: &str) -> String {
    parse_config(text, &no_variables()).map_or_else(|errors| errors.to_string(), |_| format!("no error in {text}"))
}

/// The error of a pool `web` with a command and `more`, which is line 3.
fn pool_error(more: &str) -> String {
    errors(&format!("[pool.web]\ncommand = [\"true\"]\n{more}"))
}

fn asked<T>(value: T) -> Option<Limit<T>> {
    Some(Limit { value, asked: true })
}

#[test]
fn nothing_written_is_a_daemon_without_pools() {
    let config = parse("");
    assert!(config.pools.is_empty());
    let expected = DaemonSpec {
        instance: crate::spec::InstanceName::default(),
        runtime_dir: "/run/halsup".into(),
        state_dir: "/var/lib/halsup".into(),
        home: "/var/lib/halsup".into(),
        cgroup: None,
        limits: LimitsMode::Auto,
        log_level: "info".to_owned(),
        log_format: crate::spec::LogFormat::Text,
        uid_base: 1_879_048_192,
        roles: Vec::new(),
        shutdown_timeout: Duration::from_secs(30),
        image_import_timeout: Duration::from_secs(3_600),
        image_allow: Vec::new(),
        image_pull: crate::spec::ImagePull::First,
    };
    assert_eq!(config.daemon, expected);
}

#[test]
fn a_pool_with_only_a_command_has_the_defaults() {
    let spec = pool("");
    assert_eq!(spec, PoolSpec::with_defaults(spec.name.clone(), vec!["true".to_owned()]));
    assert_eq!(spec.policy.size, Size { min: 1, max: 1 });
    assert_eq!(spec.limits.memory_bytes, Some(Limit { value: 4 << 30, asked: false }));
    assert_eq!(spec.limits.cpu_millis, Some(Limit { value: 2000, asked: false }));
    assert_eq!(spec.limits.pids, Some(Limit { value: 100, asked: false }));
    assert_eq!(spec.limits.swap_bytes, Some(Limit { value: 0, asked: false }));
    assert!(spec.limits.oom_group && spec.policy.heartbeat.is_none() && !spec.policy.startup.waits_for_ready);
}

/// The defaults that the reference prints are the ones that are used: writing them changes nothing.
#[test]
fn printed_defaults_are_true() {
    let unasked = |mut spec: PoolSpec| {
        let limits = &mut spec.limits;
        let written = [&mut limits.memory_bytes, &mut limits.swap_bytes, &mut limits.cpu_millis, &mut limits.pids];
        written.into_iter().flatten().for_each(|limit| limit.asked = false);
        spec
    };
    let plain = pool("");
    let mut seen = 0;
    for key in pool_keys::KEYS.iter().filter(|key| !key.default.is_empty()) {
        assert_eq!(unasked(pool(&format!("{} = {}", key.name, key.default))), plain, "{}", key.name);
        seen += 1;
    }
    for key in pool_tables::RESTART_KEYS {
        assert_eq!(pool(&format!("restart = {{ {} = {} }}", key.name, key.default)), plain, "{}", key.name);
        seen += 1;
    }
    for key in pool_tables::LOG_KEYS {
        assert_eq!(pool(&format!("log = {{ {} = {} }}", key.name, key.default)), plain, "{}", key.name);
        seen += 1;
    }
    let beating = pool("heartbeat.source = \"channel\"");
    for key in pool_tables::HEARTBEAT_KEYS.iter().filter(|key| !key.default.is_empty()) {
        let text = format!("heartbeat = {{ source = \"channel\", {} = {} }}", key.name, key.default);
        assert_eq!(pool(&text), beating, "{}", key.name);
        seen += 1;
    }
    for key in daemon::KEYS.iter().filter(|key| !key.default.is_empty()) {
        assert_eq!(parse(&format!("[daemon]\n{} = {}", key.name, key.default)), parse(""), "{}", key.name);
        seen += 1;
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn every_key_of_a_pool() {
    let spec = pool(
        r#"
        min = 2
        max = 4
        env = { A = "{slot}", B_2 = "{{}}" }
        base_port = 9000
        root = "/srv//rootfs/"
        net = "/run/netns/blue"
        terminal = true
        identity = "host:www-data"
        link = ["/srv/data/*.db", "/etc/motd"]
        bind = ["/srv", "/a:/b", "/c:/d:ro", "/e:/f:rw"]
        volumes = ["hal9000-chromadb:/data", "plugins:/plugins:ro"]
        memory = "512M"
        memory_high = 104857600
        swap = "1g"
        oom_group = false
        cpus = 1.5
        cpu_weight = 200
        pids = 50
        cpuset = "0-1,4"
        rlimits = { nofile = 1024, core = 0, as = "1g", nproc = "unlimited" }
        seccomp = "/etc/halsup/strict.json"
        ready = "file:state/ready"
        ready_timeout = "5s"
        startup_batch_size = 3
        startup_batch_delay_ms = 750
        heartbeat = false
        stop_signal = "SIGINT"
        stop_grace = "0s"
        kill_timeout = "1s"
        listen = ["tcp:127.0.0.1:9900", "unix:/run/web.sock", "tcp:[::1]:9900"]
        log = { max_size = "1m", keep = 0, json = true }
        on_supervisor_death = "0s"
        [pool.web.restart]
        enabled = false
        delay = "1s"
        delay_max = "2s"
        jitter_percent = 0
        stable_after = "3s"
        max_restarts = 0
        window_seconds = 90
        "#,
    );
    let expected = expected_of_every_key();
    assert_eq!(spec, expected);
}

fn expected_of_every_key() -> PoolSpec {
    let mut spec = PoolSpec::with_defaults(PoolName::parse("web").unwrap(), vec!["true".to_owned()]);
    let bind = |source: &str, target: &str, writable| Bind { source: source.into(), target: target.into(), writable };
    spec.policy.size = Size { min: 2, max: 4 };
    spec.env = variables(&[("A", "{slot}"), ("B_2", "{{}}")]);
    spec.base_port = Some(9000);
    spec.root = Root::Directory("/srv/rootfs".into());
    spec.terminal = true;
    spec.net = Net::Path("/run/netns/blue".into());
    spec.identity = Identity::Host("www-data".to_owned());
    spec.link = vec!["/srv/data/*.db".to_owned(), "/etc/motd".to_owned()];
    spec.binds =
        vec![bind("/srv", "/srv", false), bind("/a", "/b", false), bind("/c", "/d", false), bind("/e", "/f", true)];
    spec.volumes = vec![
        VolumeMount { name: VolumeName::parse("hal9000-chromadb").unwrap(), target: "/data".into(), writable: true },
        VolumeMount { name: VolumeName::parse("plugins").unwrap(), target: "/plugins".into(), writable: false },
    ];
    spec.limits.memory_bytes = asked(512 << 20);
    spec.limits.memory_high_bytes = asked(104_857_600);
    spec.limits.swap_bytes = asked(1 << 30);
    spec.limits.oom_group = false;
    spec.limits.cpu_millis = asked(1500);
    spec.limits.cpu_weight = asked(200);
    spec.limits.pids = asked(50);
    spec.limits.cpuset = asked(Cpuset::parse("0-1,4").unwrap());
    let rlimits = [("nofile", 1024), ("core", 0), ("as", 1 << 30), ("nproc", u64::MAX)];
    spec.rlimits = rlimits.map(|(name, value)| (name.to_owned(), value)).into();
    spec.seccomp = Seccomp::Profile("/etc/halsup/strict.json".into());
    spec.ready = Ready::File("state/ready".into());
    spec.policy.startup.ready_timeout = Duration::from_secs(5);
    spec.policy.startup.batch_size = 3;
    spec.policy.startup.batch_delay = Duration::from_millis(750);
    spec.policy.startup.waits_for_ready = true;
    spec.policy.stop.signal = 2;
    spec.policy.stop.grace = Duration::ZERO;
    spec.policy.stop.kill_timeout = Duration::from_secs(1);
    spec.listen = vec![
        Listen::Tcp("127.0.0.1:9900".parse().unwrap()),
        Listen::Unix("/run/web.sock".into()),
        Listen::Tcp("[::1]:9900".parse().unwrap()),
    ];
    spec.log = crate::spec::LogSpec { max_bytes: 1 << 20, keep: 0, json: true };
    spec.on_supervisor_death = OnSupervisorDeath::EndAfter(Duration::ZERO);
    spec.policy.restart = Restart {
        enabled: false,
        delay: Duration::from_secs(1),
        delay_max: Duration::from_secs(2),
        jitter_percent: 0,
        stable_after: Duration::from_secs(3),
        max_restarts: 0,
        window: Duration::from_secs(90),
    };
    spec
}

#[test]
fn every_key_of_the_daemon() {
    let config = parse(
        r#"
        [daemon]
        instance = "blue"
        runtime_dir = "/tmp/run"
        limits = "require"
        log_level = "warn,heartbeat=debug"
        log_format = "json"
        uid_base = 0x10000
        shutdown_timeout = "1m"
        roles = [{ uid = 1000, role = "admin" }, { gid = 5, role = "observe", pool = "web" }]
        [service.web]
        command = ["true"]
        "#,
    );
    let daemon = config.daemon;
    assert_eq!((daemon.instance.as_str(), daemon.uid_base), ("blue", 65536));
    assert_eq!(daemon.runtime_dir, std::path::Path::new("/tmp/run"));
    assert_eq!(daemon.state_dir, std::path::Path::new("/var/lib/halsup-blue"));
    let grants = [
        RoleGrant { grantee: Grantee::Uid(1000), role: Role::Admin, pool: None },
        RoleGrant { grantee: Grantee::Gid(5), role: Role::Observe, pool: Some(PoolName::parse("web").unwrap()) },
    ];
    assert_eq!(daemon.roles, grants);
    assert!(config.pools.iter().all(|pool| pool.service));
}

#[test]
fn no_limit_is_only_had_by_the_word() {
    let limits = pool("memory = \"max\"\nswap = \"unlimited\"\ncpus = \"max\"\npids = \"max\"").limits;
    assert_eq!((limits.memory_bytes, limits.swap_bytes, limits.cpu_millis, limits.pids), (None, None, None, None));
    for more in ["memory = 0", "memory = \"\"", "memory = \"none\"", "cpus = 0", "pids = 0", "pids = -1", "memory = -1"]
    {
        assert!(pool_error(more).starts_with("line 3: pool.web."), "{more}");
    }
}

#[test]
fn heartbeats_follow_readiness() {
    let defaults = |source| Heartbeat {
        source,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(10),
        max_missed: 3,
        initial_delay: Duration::ZERO,
        dependent: true,
    };
    let http = Probe::Http { path: "/up".to_owned() };
    let table: [(&str, Option<Heartbeat>, Option<Probe>); 13] = [
        ("ready = \"channel\"", Some(defaults(HeartbeatSource::Channel)), None),
        ("ready = \"channel\"\nheartbeat = false", None, None),
        ("ready = \"channel\"\nheartbeat.enabled = false", None, None),
        ("ready = \"channel\"\nheartbeat.source = \"none\"", None, None),
        ("ready = \"notify\"", None, None),
        ("ready = \"notify\"\nheartbeat = true", Some(defaults(HeartbeatSource::Notify)), None),
        ("ready = \"notify\"\nheartbeat = {}", Some(defaults(HeartbeatSource::Notify)), None),
        ("heartbeat.source = \"notify\"", Some(defaults(HeartbeatSource::Notify)), None),
        ("heartbeat.source = \"channel\"", Some(defaults(HeartbeatSource::Channel)), None),
        ("ready = \"tcp\"\nbase_port = 1", None, None),
        ("ready = \"tcp\"\nbase_port = 1\nheartbeat = true", Some(defaults(HeartbeatSource::Probe)), Some(Probe::Tcp)),
        ("base_port = 1\nheartbeat.source = \"http:/up\"", Some(defaults(HeartbeatSource::Probe)), Some(http.clone())),
        ("base_port = 1\nready = \"http:/up\"\nheartbeat = {}", Some(defaults(HeartbeatSource::Probe)), Some(http)),
    ];
    for (more, heartbeat, probe) in table {
        let spec = pool(more);
        assert_eq!((spec.policy.heartbeat, spec.heartbeat_probe), (heartbeat, probe), "{more}");
    }
    let written = pool(
        "ready = \"channel\"\n[pool.web.heartbeat]\nping_interval_ms = 500\ntimeout_ms = 700\nmax_missed_heartbeats = 9\ninitial_delay_ms = 10\ndependent = false",
    );
    let expected = Heartbeat {
        source: HeartbeatSource::Channel,
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(700),
        max_missed: 9,
        initial_delay: Duration::from_millis(10),
        dependent: false,
    };
    assert_eq!(written.policy.heartbeat, Some(expected));
}

#[test]
fn a_terminals_program_is_asked_to_end_as_by_its_terminal() {
    let signal = |more: &str| pool(more).policy.stop.signal;
    assert_eq!((signal("terminal = false"), signal("terminal = true")), (15, 1));
    assert_eq!(signal("terminal = true\nstop_signal = \"TERM\""), 15);
}

#[test]
fn each_name_means_one_key() {
    fn names<T>(keys: &[keys::Key<T>]) {
        let mut names: Vec<_> = keys.iter().flat_map(|key| std::iter::once(&key.name).chain(key.aliases)).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
    names(daemon::KEYS);
    names(daemon::ROLE_KEYS);
    names(pool_keys::KEYS);
    names(pool_tables::RESTART_KEYS);
    names(pool_tables::HEARTBEAT_KEYS);
    names(pool_tables::LOG_KEYS);
}
