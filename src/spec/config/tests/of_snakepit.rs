//! What Snakepit's configurations become, in both shapes, and the sentences of their mistakes.

use super::*;
use crate::spec::{Affinity, BudgetKind, DispatchPolicy};

/// A worker of the channel, so that all of `dispatch` is seen.
fn of_channel(more: &str) -> DispatchPolicy {
    let config = parse(&format!("[snakepit]\npooling_enabled = true\ncommand = [\"w\"]\n{more}"));
    config.pools[0].policy.dispatch.unwrap()
}

#[test]
fn the_older_shape_is_one_pool() {
    let config = parse(
        "[snakepit]\npooling_enabled = true\nadapter_module = \"Snakepit.Adapters.GRPCPython\"\npool_size = 100\n\
         [snakepit.pool_config]\nstartup_batch_size = 6\nstartup_batch_delay_ms = 700\nmax_workers = 1000\npool_size = 7\n",
    );
    let [pool] = config.pools.as_slice() else { panic!("{config:?}") };
    assert_eq!((pool.name.as_str(), pool.policy.size), ("default", Size { min: 100, max: 100 }));
    let startup = pool.policy.startup;
    assert_eq!((startup.batch_size, startup.batch_delay), (6, Duration::from_millis(700)));
    assert_eq!((startup.ready_timeout, startup.waits_for_ready), (Duration::from_secs(10), true));
    assert_eq!(pool.policy.stop.grace, Duration::from_secs(6));
    assert_eq!(pool.ready, Ready::PortFile("snakepit_ready".into()));
    assert_eq!((&pool.heartbeat_probe, pool.policy.dispatch), (&Some(Probe::Grpc), None));
    let expected = [
        "python3",
        "/opt/snakepit/priv/python/grpc_server.py",
        "--port",
        "0",
        "--elixir-address",
        "localhost:50051",
        "--snakepit-run-id",
        "{instance}",
        "--snakepit-instance-name",
        "{instance}",
        "--snakepit-instance-token",
        "{worker}",
    ];
    assert_eq!(pool.command, expected);
    for (name, value) in [
        ("SNAKEPIT_READY_FILE", "{dir}/snakepit_ready"),
        ("SNAKEPIT_PROCESS_GROUP", "1"),
        ("SNAKEPIT_PYTHON", "python3"),
        ("OMP_NUM_THREADS", "1"),
        ("GRPC_POLL_STRATEGY", "poll"),
    ] {
        assert_eq!(pool.env[name], value);
    }
    // Nobody is there whom a worker could ask for heartbeats.
    let heartbeats = &pool.env["SNAKEPIT_HEARTBEAT_CONFIG"];
    assert!(heartbeats.starts_with("{{\"enabled\":false,\"ping_interval_ms\":2000,"), "{heartbeats}");
}

#[test]
fn without_pooling_enabled_there_are_no_pools_and_still_mistakes() {
    assert!(parse("[snakepit]\npool_size = 3\n").pools.is_empty());
    assert!(errors("[snakepit]\npool_size = 0\n").contains("invalid_pool_size"));
}

#[test]
fn the_newer_shape_is_many_pools_that_inherit() {
    let config = parse(include_str!("../../../../examples/snakepit.toml"));
    let names: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["default", "ml-inference", "background"]);
    let [first, second, third] = config.pools.as_slice() else { panic!("{names:?}") };
    let size = |pool: &PoolSpec| pool.policy.size.max;
    assert_eq!((size(first), size(second), size(third)), (50, 4, 10));
    let batches = |pool: &PoolSpec| (pool.policy.startup.batch_size, pool.policy.startup.batch_delay.as_millis());
    assert_eq!((batches(first), batches(third)), ((10, 500), (8, 750)));
    let beats = |pool: &PoolSpec| {
        let beat = pool.policy.heartbeat.unwrap();
        (beat.interval.as_secs(), beat.timeout.as_secs(), beat.max_missed, beat.source)
    };
    assert_eq!(beats(first), (5, 15, 3, HeartbeatSource::Probe));
    assert_eq!(beats(second), (10, 60, 2, HeartbeatSource::Probe));
    assert_eq!((first.policy.restart.max_restarts, first.policy.restart.window.as_secs()), (10, 300));
    assert!(first.env["SNAKEPIT_HEARTBEAT_CONFIG"].starts_with("{{\"enabled\":true,"), "Elixir is there, by grpc_port");
    assert_eq!(second.command[1], "/opt/snakepit/priv/python/grpc_server_threaded.py");
    assert_eq!(second.command[2..6], ["--adapter", "myapp.ml.InferenceAdapter", "--max-workers", "8"]);
    assert_eq!((second.env["OMP_NUM_THREADS"].as_str(), second.env.get("NUMEXPR_NUM_THREADS")), ("8", None));
    assert_eq!((first.env["OMP_NUM_THREADS"].as_str(), first.env["NUMEXPR_NUM_THREADS"].as_str()), ("1", "1"));
    assert_eq!(first.limits.memory_high_bytes, asked(3 << 30));
    assert_eq!(config.daemon.log_level, "info,dispatch=warn,heartbeat=warn,pool=info,worker=warn");
    assert!(config.daemon.log_level.split(',').all(|one| one.split('=').count() <= 2));
}

#[test]
fn a_channel_worker_is_dispatched_to_as_snakepit_says() {
    let said = of_channel(
        "worker_profile = \"thread\"\nthreads_per_worker = 16\npool_queue_timeout = 7000\npool_max_queue_size = 5\n\
         default_timeout = 1500\naffinity = \"STRICT_QUEUE\"\nworker_ttl = [30, \"minutes\"]\nworker_max_requests = 9\n\
         memory_threshold_mb = 512\nretry_max_attempts = 4\nretry_backoff_sequence = [250, 500]\nsession_default_ttl = 60\n\
         session_max_sessions = 11\ncircuit_breaker = { enabled = true, failure_threshold = 2, reset_timeout_ms = 900 }\n\
         crash_barrier = { enabled = true, taint_duration_ms = 1000 }\n",
    );
    let ms = Duration::from_millis;
    assert_eq!((said.capacity, said.queue_timeout, said.queue_max, said.timeout), (16, ms(7000), 5, ms(1500)));
    assert_eq!((said.sessions.affinity, said.sessions.ttl, said.sessions.max), (Affinity::StrictQueue, ms(60_000), 11));
    let recycle = said.recycle;
    assert_eq!((recycle.ttl, recycle.requests, recycle.memory_bytes), (Some(ms(1_800_000)), Some(9), Some(512 << 20)));
    assert_eq!((said.attempts_max, said.backoff, said.taint), (4, ms(250), ms(1000)));
    assert_eq!((said.pool_breaker.failures, said.pool_breaker.open_for), (2, ms(900)));
}

#[test]
fn what_is_not_said_is_as_snakepit_has_it() {
    let said = of_channel("");
    assert_eq!(
        (said.capacity, said.queue_timeout.as_secs(), said.queue_max, said.timeout.as_secs()),
        (1, 5, 1000, 300)
    );
    assert_eq!((said.pool_breaker.failures, said.taint.as_secs(), said.budget), (0, 0, None));
    let strict = of_channel("timeout_profile = \"production_strict\"\ndefault_timeout = 1000\n");
    assert_eq!((strict.queue_timeout.as_secs(), strict.timeout.as_secs()), (5, 1), "a key comes before its profile");
    assert_eq!(of_channel("timeout_profile = \"batch\"").timeout.as_secs(), 3600);
}

#[test]
fn pools_of_one_profile_share_what_the_largest_could_have() {
    let text = "[snakepit]\npooling_enabled = true\ncommand = [\"w\"]\ncapacity_strategy = \"profile\"\npools = [\n\
                { name = \"a\", pool_size = 2 }, { name = \"b\", pool_size = 6 },\n\
                { name = \"c\", worker_profile = \"thread\", pool_size = 2, threads_per_worker = 5, capacity_strategy = \"hybrid\" }]\n";
    let config = parse(text);
    let budgets: Vec<_> = config.pools.iter().map(|pool| pool.policy.dispatch.unwrap().budget.unwrap()).collect();
    assert_eq!(
        budgets.iter().map(|budget| (budget.max, budget.kind)).collect::<Vec<_>>(),
        [(6, BudgetKind::Shared), (6, BudgetKind::Shared), (10, BudgetKind::Hybrid)]
    );
    assert!(budgets[0].id == budgets[1].id && budgets[1].id != budgets[2].id);
}

#[test]
fn what_elixir_would_take_literally_is_literal_here() {
    let config = parse(
        "[snakepit]\npooling_enabled = true\nscript = \"/s{{x}}.py\"\nadapter_env = [[\"J\", \"{\\\"a\\\": 1}\"]]\n\
         [snakepit.pool_config]\nadapter_args = [\"--port=7\", \"--config\", \"{port}\", \"--elixir-addresses\"]\n",
    );
    let command = &config.pools[0].command;
    assert_eq!(command[1..6], ["/s{{{{x}}}}.py", "--port=7", "--config", "{{port}}", "--elixir-addresses"]);
    assert_eq!(command.iter().filter(|word| word.starts_with("--port")).count(), 1, "not written again");
    assert!(command.contains(&"--elixir-address".to_owned()), "a longer flag is another one");
    assert_eq!(config.pools[0].env["J"], "{{\"a\": 1}}");
}

#[test]
fn the_environment_names_the_interpreter() {
    let text = "[snakepit]\npooling_enabled = true\npython_executable = \"/of/file\"\n";
    let config = parse_config(text, &variables(&[("SNAKEPIT_PYTHON", "/of/env"), ("SNAKEPIT_INSTANCE_NAME", "me")]));
    let pool = config.unwrap().pools.remove(0);
    assert_eq!((pool.command[0].as_str(), pool.env["SNAKEPIT_PYTHON"].as_str()), ("/of/env", "/of/env"));
    let at = pool.command.iter().position(|word| word == "--snakepit-instance-name").unwrap();
    assert_eq!(pool.command[at + 1], "me");
}

/// The sentence of each mistake in `[snakepit]`, line 2.
const MISTAKES: &[(&str, &str)] = &[
    ("pools = 3", "line 2: snakepit.pools: invalid_pools_config: found the integer 3; must be a list of pools"),
    ("pools = [3]", "line 2: snakepit.pools[0]: invalid_pool_config: found the integer 3; must be a table"),
    ("pools = [{}]", "line 2: snakepit.pools[0]: missing_required_fields: name; expected the name of the pool"),
    (
        "pools = [{ name = \"a_b\" }, { name = \"a-b\" }]",
        "line 2: snakepit.pools[1].name: duplicate_pool_names: a-b; expected another name",
    ),
    (
        "worker_profile = \"fiber\"",
        "line 2: snakepit.worker_profile: invalid_profile: found the string \"fiber\"; must be :process or :thread",
    ),
    ("pool_size = 0", "line 2: snakepit.pool_size: invalid_pool_size: found the integer 0; must be positive integer"),
    (
        "capacity_strategy = \"all\"",
        "line 2: snakepit.capacity_strategy: invalid_capacity_strategy: found the string \"all\"; must be :pool, :profile or :hybrid",
    ),
    (
        "affinity = \"strict\"",
        "line 2: snakepit.affinity: invalid_affinity: found the string \"strict\"; must be :hint, :strict_queue or :strict_fail_fast",
    ),
    (
        "worker_ttl = [0, \"seconds\"]",
        "line 2: snakepit.worker_ttl: invalid_worker_ttl: found a list; must be :infinity or {value, :seconds | :minutes | :hours}",
    ),
    (
        "worker_ttl = 60",
        "line 2: snakepit.worker_ttl: invalid_worker_ttl: found the integer 60; must be :infinity or {value, :seconds | :minutes | :hours}",
    ),
    (
        "worker_max_requests = 0",
        "line 2: snakepit.worker_max_requests: invalid_worker_max_requests: found the integer 0; must be :infinity or positive integer",
    ),
    (
        "grpc_listener = 1",
        "line 2: snakepit.grpc_listener: invalid_grpc_listener_config: found the integer 1; must be a table",
    ),
    (
        "grpc_listener = { mode = \"x\" }",
        "line 2: snakepit.grpc_listener.mode: invalid_grpc_listener_config: invalid_mode: found the string \"x\"; must be :internal, :external or :external_pool",
    ),
    (
        "grpc_listener = { mode = \"external\", port = 1 }",
        "line 2: snakepit.grpc_listener: invalid_grpc_listener_config: missing_host; expected host",
    ),
    (
        "grpc_listener = { mode = \"external\", host = \"a\" }",
        "line 2: snakepit.grpc_listener: invalid_grpc_listener_config: missing_port; expected port",
    ),
    (
        "grpc_listener = { mode = \"external_pool\", host = \"a\" }",
        "line 2: snakepit.grpc_listener: invalid_grpc_listener_config: missing_base_port; expected base_port",
    ),
    (
        "grpc_listener = { mode = \"external_pool\", host = \"a\", base_port = 1, pool_size = 0 }",
        "line 2: snakepit.grpc_listener.pool_size: invalid_grpc_listener_config: invalid_pool_size: found the integer 0; must be positive integer",
    ),
    ("pool_sise = 3", "line 2: snakepit.pool_sise: unknown key; did you mean \"pool_size\"?"),
    ("dispatch = true", "line 2: snakepit.dispatch: unknown key"),
    (
        "process_registry_dets_flush_interval_ms = \"x\"",
        "line 2: snakepit.process_registry_dets_flush_interval_ms: found the string \"x\"; expected a duration such as \"30s\" or \"500ms\", 0s to 1day",
    ),
    (
        "adapter_env = [[\"LD_PRELOAD\", \"x\"]]",
        "line 2: snakepit.adapter_env[0][1]: reserved; expected another name than NOTIFY_SOCKET, LISTEN_*, WATCHDOG_*, HALSUP_* and LD_*",
    ),
    (
        "python_runtime = { strategy = \"venv\" }",
        "line 2: snakepit.python_runtime.strategy: python_executable is missing; expected that of the virtual environment",
    ),
    (
        "log_categories = { zoo = \"info\" }",
        "line 2: snakepit.log_categories.zoo: no category; expected pool, worker, heartbeat, grpc, bridge, session, telemetry, startup or shutdown",
    ),
    (
        "memory = \"4x\"",
        "line 2: snakepit.memory: found the string \"4x\"; expected a size such as \"4g\" or \"512M\", 1m to 1024t",
    ),
    ("pools = [{ name = \"a\", grpc_port = 1 }]", "line 2: snakepit.pools[0].grpc_port: unknown key"),
];

#[test]
fn mistakes_have_the_names_that_snakepit_has_for_them() {
    for (said, sentence) in MISTAKES {
        assert_eq!(errors(&format!("[snakepit]\n{said}\n")), *sentence);
    }
}

#[test]
fn each_name_of_snakepits_means_one_key() {
    let whole = snakepit::WHOLE_KEYS.iter().chain(snakepit::SHARED_KEYS).chain(snakepit::KEPT_KEYS);
    let names = whole.flat_map(|key| std::iter::once(&key.name).chain(key.aliases)).chain(&snakepit::BESIDE);
    let mut names: Vec<_> = names.collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(snakepit::BESIDE.iter().all(|name| pool_keys::KEYS.iter().any(|key| key.name == *name)));
}
