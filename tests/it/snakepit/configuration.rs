//! Configurations in both of Snakepit's shapes, tried by the program, and each of Snakepit's names for a mistake.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::fixture::Daemon;
use crate::look::wait_healthy;
use crate::needs::needs;
use crate::place::{Output, directory, halsup};

/// What `halsup check` says of this file.
fn check(text: &str) -> Output {
    let dir = directory();
    let file = dir.path().join("snakepit.toml");
    fs::write(&file, text).expect("write a configuration");
    halsup(&["check", file.to_str().expect("ASCII")])
}

#[test]
fn both_shapes_are_accepted_as_they_are() {
    let older = check(
        "[snakepit]\npooling_enabled = true\nadapter_module = 'Snakepit.Adapters.GRPCPython'\npool_size = 100\n\
         [snakepit.pool_config]\nstartup_batch_size = 8\nstartup_batch_delay_ms = 750\nmax_workers = 1000\n",
    );
    assert_eq!((older.status, older.stdout.contains("ok, 1 pool, 100 workers")), (0, true), "{older:?}");
    let newer = halsup(&[
        "check",
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/snakepit.toml").to_str().expect("ASCII"),
    ]);
    assert_eq!((newer.status, newer.stdout.contains("ok, 3 pools, 64 workers")), (0, true), "{newer:?}");
    let off = check("[snakepit]\npool_size = 100\n");
    assert_eq!((off.status, off.stdout.contains("ok, 0 pools, 0 workers")), (0, true), "{off:?}");
}

#[test]
fn each_mistake_is_named_as_snakepit_names_it() {
    for (said, named) in [
        ("pools = 'all'", "invalid_pools_config"),
        ("pools = ['default']", "invalid_pool_config"),
        ("pools = [{ pool_size = 3 }]", "missing_required_fields: name"),
        ("pools = [{ name = 'a' }, { name = 'a' }]", "duplicate_pool_names: a"),
        ("pools = [{ name = 'a', worker_profile = ':fibre' }]", "must be :process or :thread"),
        ("worker_profile = 'fibre'", "invalid_profile"),
        ("pool_size = -1", "invalid_pool_size: found the integer -1; must be positive integer"),
        ("capacity_strategy = ':greedy'", "invalid_capacity_strategy"),
        ("affinity = 'sticky'", "invalid_affinity"),
        ("worker_ttl = [5, 'fortnights']", "invalid_worker_ttl"),
        (
            "worker_max_requests = 'many'",
            "invalid_worker_max_requests: found the string \"many\"; must be :infinity or positive integer",
        ),
        ("grpc_listener = 50051", "invalid_grpc_listener_config"),
        ("grpc_listener = { mode = 'outside' }", "invalid_grpc_listener_config: invalid_mode"),
        ("grpc_listener = { mode = 'external', port = 1 }", "invalid_grpc_listener_config: missing_host"),
        ("grpc_listener = { mode = 'external', host = 'h' }", "invalid_grpc_listener_config: missing_port"),
        ("grpc_listener = { mode = 'external_pool', host = 'h' }", "invalid_grpc_listener_config: missing_base_port"),
        ("grpc_listener = { pool_size = 0 }", "invalid_grpc_listener_config: invalid_pool_size"),
    ] {
        let output = check(&format!("[snakepit]\npooling_enabled = true\n{said}\n"));
        assert_eq!(output.status, 2, "{said}: {output:?}");
        assert!(output.stderr.contains("line 3: snakepit.") && output.stderr.contains(named), "{said}: {output:?}");
    }
}

#[test]
fn a_pool_of_snakepits_is_dispatched_to_where_its_workers_speak_on_the_channel() {
    needs!(Root, CgroupTree, Python3);
    let sdk = directory();
    let path = sdk.path().to_str().expect("ASCII");
    fs::set_permissions(sdk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open the directory");
    fs::write(sdk.path().join("halsup.py"), include_str!("../../../examples/sdk/halsup.py")).expect("write the SDK");
    let worker = "from halsup import serve, tool\nimport os, sys\n@tool\ndef seen(context, args):\n    \
                  return [sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['HALSUP_CAPACITY']]\nserve()\n";
    fs::write(sdk.path().join("worker.py"), worker).expect("write the worker");
    for name in ["halsup.py", "worker.py"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(sdk.path().join(name), mode).expect("let it be read");
    }
    let mut daemon = Daemon::start(&format!(
        "[snakepit]\npooling_enabled = true\npool_startup_timeout = 60000\npool_max_queue_size = 3\nbind = ['{path}:/srv']\n\
         command = ['python3', '-B', '/srv/worker.py']\nheartbeat = {{ ping_interval_ms = 5000 }}\n\
         [[snakepit.pools]]\nname = ':default'\npool_size = 1\nadapter_args = ['--config', '{{\"a\": 1}}']\n\
         [[snakepit.pools]]\nname = ':ml_inference'\nworker_profile = ':thread'\npool_size = 1\nthreads_per_worker = 4\n\
         adapter_env = [['OMP_NUM_THREADS', '8']]\n"
    ));
    wait_healthy(&mut daemon, 2);
    let first = daemon.cli(&["call", "default", "seen", "--json"]).json();
    assert_eq!(first["result"], json!([["--config", "{\"a\": 1}"], "1", "1"]), "{first}");
    let second = daemon.cli(&["call", "ml-inference", "seen", "--json"]).json();
    assert_eq!(second["result"], json!([[], "8", "4"]), "{second}");
}
