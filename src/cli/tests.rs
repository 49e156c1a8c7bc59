//! Tests of the command line: every verb and option is understood, everything else is refused; tables byte for byte.

use clap::CommandFactory as _;

use super::*;
use crate::protocol::control::{
    Cause, Controllers, DaemonState, PoolInfo, StateCounts, StatusReply, WorkerInfo, WorkerState, WorkerStats,
};

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(std::iter::once("halsup").chain(line.split_whitespace()))
}

#[test]
fn the_arguments_hold_together() {
    Arguments::command().debug_assert();
}

#[test]
fn a_program_without_dashes_is_told_where_they_go() {
    let tip = |line: &str| {
        let mut error = parse(line).unwrap_err();
        suggest_dashes(&mut error);
        error.to_string()
    };
    assert!(tip("up python3 -m http.server").contains("halsup up -- python3"));
    assert!(tip("up --sise 3").contains("'--size'"), "what resembles an option is shown as before");
    assert!(!tip("scale web -1").contains("halsup up"));
}

#[test]
fn the_help_of_up_names_every_way_to_become_ready() {
    let reference = include_str!("../../docs/configuration.md");
    let row = reference.lines().find(|line| line.starts_with("| `ready` |")).unwrap();
    let ways: Vec<&str> = row.split(" | ").nth(3).unwrap().split(", ").collect();
    assert!(ways.len() > 7, "{ways:?}");
    let mut command = Arguments::command();
    let help = command.find_subcommand_mut("up").unwrap().render_long_help().to_string();
    let told: Vec<&str> = help.split_whitespace().map(|word| word.trim_matches([',', '.'])).collect();
    assert_eq!(ways.into_iter().filter(|way| !told.contains(way)).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_wrong_command_line_is_one_line() {
    for (line, sentence) in [
        ("pss", "unrecognized subcommand 'pss'; a similar subcommand exists: 'ps'; usage: halsup [OPTIONS] <COMMAND>"),
        (
            "scale web",
            "the following required arguments were not provided: <COUNT>; usage: halsup scale <POOL> <COUNT>",
        ),
        (
            "completions cobol",
            "invalid value 'cobol' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh]",
        ),
    ] {
        assert_eq!(usage_sentence(parse(line).unwrap_err()), sentence);
    }
    let evil = Arguments::try_parse_from(["halsup", "scale", "web", "1\n\nUsage: \u{1b}[2J"]).unwrap_err();
    let sentence = usage_sentence(evil);
    assert!(sentence.starts_with("invalid value '1\\n\\nUsage: \\x1b[2J' for '<COUNT>'"), "{sentence}");
}

#[test]
fn every_verb_is_understood() {
    for line in [
        "task run hello",
        "task run --timeout 5s --priority 7 --id a-1 --worker-id w --metadata {} --follow --raw -",
        "task ls --json",
        "task show a-1 --bytes 100",
        "task cancel a b",
        "task follow a --after 7 --raw",
        "task status",
        "task switch stub",
        "image import x.tar",
        "image import - --name a/b:c --replace",
        "image pull ghcr.io/hellblazer/hal-9000:worker --replace",
        "image ls --json",
        "image rm alpine alpine:3",
        "image inspect alpine",
        "daemon run",
        "daemon run -c /x",
        "daemon run --background",
        "daemon start --timeout 5s",
        "daemon stop --timeout 500ms",
        "daemon status --json",
        "daemon restart --timeout 1m",
        "daemon reload",
        "up",
        "up /etc/x.toml",
        "up -- python3 -m http.server {port}",
        "up --size 3 --name web --port 8000 -- python3 -m http.server --bind x",
        "up --base-port 8000 --memory 64M --cpus 0.5 --pids 9 --ready tcp -e A=B -e C=D -l /x/* -- true",
        "ps",
        "ps web",
        "--json ps",
        "ps --json --socket /x --instance blue",
        "status",
        "inspect web.3",
        "start all",
        "stop web web.3",
        "restart web",
        "kill web.3",
        "kill -s HUP web",
        "kill --signal 9 web.3",
        "scale web 5",
        "scale web 0",
        "reset all",
        "logs web.3",
        "logs -f -n 100 chroma",
        "attach",
        "attach web.3 --read-only",
        "attach --steal --detach-keys ctrl-],x --no-replay web.3",
        "send web.3 ls -l --enter",
        "send -e web.3 ls",
        "send --keys web.3 C-c Up Enter",
        "broadcast --pool web -e git pull",
        "broadcast -e",
        "capture",
        "capture web.3 --lines 100 --json",
        "capture web.3 --raw",
        "exec web.0 -- ls -l",
        "exec web.0 ls -l",
        "exec -ti -e A=B --env C=D web.0 sh -c exit",
        "sessions",
        "ls web",
        "events -f",
        "events -n 5",
        "stats",
        "stats web",
        "check",
        "check /x",
        "doctor",
        "log info,heartbeat=debug",
        "completions bash",
        "man",
        "man /tmp/x",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn what_is_not_right_is_refused_by_name() {
    for (line, expected) in [
        ("", "Usage"),
        ("nope", "unrecognized subcommand 'nope'"),
        ("stop", "required arguments"),
        ("stop ../etc", "target \"../etc\" is not valid"),
        ("stop web.03", "is not valid"),
        ("scale web", "required arguments"),
        ("scale web.3 1", "is not valid"),
        ("scale web -1", "unexpected argument '-1'"),
        ("scale web 10001", "not in 0..=10000"),
        ("kill -s NOPE web", "a signal such as SIGTERM"),
        ("logs web -n 10001", "not in 0..=10000"),
        ("attach --steal --read-only web.3", "cannot be used with"),
        ("attach --detach-keys ctrl-1 web.3", "keys such as ctrl-p,ctrl-q"),
        ("exec web.3", "required arguments"),
        ("capture web.3 --raw -n 3", "cannot be used with"),
        ("events -n 1001", "not in 0..=1000"),
        ("ps --instance Blue", "is not valid"),
        ("up x.toml -- true", "cannot be used with"),
        ("up --size 3", "required arguments"),
        ("up --size 0 -- true", "not in 1..=10000"),
        ("up --memory 5g", "required arguments"),
        ("daemon", "Usage"),
        ("daemon stop --timeout 5", "a duration with a unit"),
        ("daemon stop --timeout 2d", "at most 1d"),
        ("completions cobol", "invalid value"),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn values_arrive_where_they_belong() {
    let Verb::Kill(kill) = parse("kill -s term web.3 all").unwrap().verb else { panic!() };
    assert_eq!(kill.signal, Some(15));
    assert_eq!(kill.targets, ["web.3", "all"].map(|name| name.parse::<session::Named>().unwrap()));
    let Verb::Up(up) = parse("up --size 3 --port 80 -- prog --size 9 -- x").unwrap().verb else { panic!() };
    assert_eq!((up.size, up.command), (3, ["prog", "--size", "9", "--", "x"].map(String::from).to_vec()));
    let overrides = config::PoolOverrides::from(up.options);
    assert_eq!(overrides.base_port.as_deref(), Some("80"));
    let Verb::Logs(logs) = parse("logs web").unwrap().verb else { panic!() };
    assert_eq!((logs.lines, logs.follow), (10, false));
}

fn worker(name: &str, state: WorkerState) -> WorkerInfo {
    WorkerInfo {
        name: name.into(),
        pool: "web".into(),
        slot: 0,
        state,
        occupancy: None,
        generation: Some(1),
        pid: None,
        init_pid: None,
        uid: None,
        since: "2026-01-01T00:00:00Z".into(),
        age_seconds: 192,
        restarts: 0,
        missed_heartbeats: 0,
        last_health: None,
        restart_in_ms: None,
        port: None,
        cgroup: None,
        work_dir: None,
        status_text: None,
        last_exit: None,
        limits_enforced: true,
        limits_reason: None,
        session: None,
    }
}

#[test]
fn workers_are_a_table() {
    let ready = WorkerInfo {
        pid: Some(4711),
        uid: Some(1_879_048_192),
        port: Some(8000),
        status_text: Some("fine\u{1b}[2J".into()),
        ..worker("web.0", WorkerState::Healthy)
    };
    let waiting = WorkerInfo {
        restarts: 3,
        restart_in_ms: Some(800),
        last_exit: Some(Cause::Exited(1)),
        ..worker("web.1", WorkerState::Restarting)
    };
    let late = WorkerInfo { missed_heartbeats: 2, ..worker("chroma", WorkerState::Unhealthy) };
    let expected = "\
NAME    STATE                  PID   UID         PORT  AGE    RESTARTS  LAST EXIT  STATUS
web.0   healthy                4711  1879048192  8000  3m12s  0         -          fine\\x1b[2J
web.1   restarting (in 800ms)  -     -           -     3m12s  3         exited 1
chroma  unhealthy (2 missed)   -     -           -     3m12s  0         -
";
    assert_eq!(ps::render(&[ready, waiting, late]), expected);
    assert_eq!(ps::render(&[]).lines().count(), 1);
}

#[test]
fn status_says_what_is_not_enforced() {
    let counts = StateCounts { healthy: 2, crashed: 1, ..StateCounts::default() };
    let (root, net) = ("host".into(), "parent".into());
    let pool = PoolInfo {
        name: "web".into(),
        service: false,
        min: 3,
        max: 3,
        wanted: 3,
        root,
        net,
        claims: None,
        counts,
        frozen: 1,
    };
    let status = StatusReply {
        version: "0.1.0".into(),
        protocol: 1,
        pid: 9,
        instance: "default".into(),
        state: DaemonState::Running,
        started: "2026-01-01T00:00:00Z".into(),
        uptime_seconds: 60,
        config_path: None,
        runtime_dir: "/run/halsup".into(),
        state_dir: "/var/lib/halsup".into(),
        cgroup: None,
        controllers: Controllers { available: vec!["pids".into()], missing: vec!["memory".into()] },
        limits_enforced: false,
        limits_reason: Some("controller memory is missing".into()),
        state_trouble: None,
        log_filter: "info".into(),
        counts,
        pools: vec![pool],
    };
    let expected = "\
halsup 0.1.0 (default), running for 1m, pid 9
limits are not enforced: controller memory is missing
POOL  WANTED  HEALTHY       OTHERS
web   3       2 (1 frozen)  1 crashed
";
    assert_eq!(status::render(&status), expected);
    let daemon = status::render_daemon(&status);
    assert!(daemon.contains("missing:      memory\n") && daemon.contains("workers:      2 healthy, 1 crashed\n"));
    let other = StatusReply { protocol: 2, limits_enforced: true, ..status };
    assert!(status::render(&other).contains("its protocol is 2, that of this program 1\n"));
}

#[test]
fn stats_show_what_is_unknown_as_such() {
    let stats = WorkerStats {
        name: "web.0".into(),
        state: WorkerState::Healthy,
        memory_current_bytes: Some(64 << 20),
        memory_peak_bytes: None,
        memory_max_bytes: None,
        cpu_usec: Some(1_500_000),
        cpu_user_usec: None,
        cpu_system_usec: None,
        throttled_usec: None,
        throttled_periods: None,
        pids: Some(3),
        pids_max: Some(100),
        oom_kills: Some(0),
        pids_limit_hits: None,
    };
    let expected = "\
NAME   STATE    MEMORY  PEAK  LIMIT  CPU    THROTTLED  PIDS   OOM  PIDS HITS
web.0  healthy  64M     -     -      1.50s  -          3/100  0    -
";
    assert_eq!(stats::render(&[stats]), expected);
}
