//! A gRPC server of Snakepit's kind, which knows nothing of halsup, runs as it is: started with Snakepit's flags and variables,
//! ready when it has written its port, watched by what its port says, and called there by a client that is not halsup's.

#![expect(clippy::disallowed_types, reason = "the client is a program of its own")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::look::{pid, signal, wait_certificate, wait_healthy, worker};
use crate::needs::{grpc_python, needs};
use crate::place::{Output, directory, run};

const SERVER: &str = include_str!("server.py");
const CLIENT: &str = "import sys, grpc
with grpc.insecure_channel('127.0.0.1:' + sys.argv[1]) as channel:
    call = channel.unary_unary('/snakepit.bridge.BridgeService/' + sys.argv[2])
    print(call(b'hello', timeout=float(sys.argv[3]), wait_for_ready=True).decode())
";

/// Where the interpreter with gRPC has its packages.
fn packages() -> String {
    let python = grpc_python().expect("the need is met");
    let say = "import grpc, os; print(os.path.dirname(os.path.dirname(grpc.__file__)))";
    let said = run(Command::new(python).args(["-c", say]));
    assert_eq!(said.status, 0, "{said:?}");
    said.stdout.trim().to_owned()
}

/// Calls a server.
fn call(port: &Value, method: &str, seconds: u32) -> Output {
    let python = grpc_python().expect("the need is met");
    run(Command::new(python).args(["-c", CLIENT, &port.to_string(), method, &seconds.to_string()]))
}

/// What a server says of how it was started.
fn told(port: &Value) -> Value {
    call(port, "Tell", 60).json()
}

struct Scene {
    daemon: Daemon,
    _programs: tempfile::TempDir,
}

/// Two servers in a pool.
fn start(more: &str) -> Scene {
    let programs = directory();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
    let script = programs.path().join("grpc_server.py");
    fs::write(&script, SERVER).expect("write the server");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).expect("let it be read");
    let mut daemon = Daemon::start(&format!(
        "[snakepit]\npooling_enabled = true\nadapter_module = 'Snakepit.Adapters.GRPCPython'\npool_size = 2\n\
         pool_startup_timeout = 60000\nscript = '/srv/grpc_server.py'\nbind = ['{}:/srv', '{}:/opt']\n\
         on_supervisor_death = '10m'\n{more}\n\
         [snakepit.pool_config]\nadapter_args = ['--adapter', 'a.b.C']\nadapter_env = [['PYTHONPATH', '/opt']]\n",
        programs.path().display(),
        packages(),
    ));
    wait_healthy(&mut daemon, 2);
    Scene { daemon, _programs: programs }
}

#[test]
fn a_server_runs_unmodified_and_says_its_port() {
    needs!(Root, CgroupTree, GrpcPython);
    let mut scene = start("grpc_port = 4711\nheartbeat = { ping_interval_ms = 5000, max_missed_heartbeats = 4 }");
    let ports: Vec<Value> = ["default.0", "default.1"].map(|name| worker(&scene.daemon, name)["port"].clone()).into();
    assert!(ports.iter().all(|port| port.as_u64().is_some_and(|port| port > 0)) && ports[0] != ports[1], "{ports:?}");
    let told = told(&ports[1]);
    assert_eq!(
        (&told["port"], &told["adapter"], &told["request"]),
        (&json!(0), &json!("a.b.C"), &json!("hello")),
        "{told}"
    );
    let instance = scene.daemon.instance().to_owned();
    for (name, value) in [
        ("elixir_address", "localhost:4711"),
        ("snakepit_run_id", instance.as_str()),
        ("snakepit_instance_name", instance.as_str()),
        ("snakepit_instance_token", "default.1"),
    ] {
        assert_eq!(told[name], value, "{told}");
    }
    let beats = json!({ "enabled": true, "ping_interval_ms": 5000, "timeout_ms": 10000, "max_missed_heartbeats": 4,
        "initial_delay_ms": 0, "dependent": true });
    assert_eq!(told["beats"], beats, "{told}");
    let env: Vec<&str> = told["env"].as_object().expect("variables").keys().map(String::as_str).collect();
    let expected = ["SNAKEPIT_HEARTBEAT_CONFIG", "SNAKEPIT_PROCESS_GROUP", "SNAKEPIT_PYTHON", "SNAKEPIT_READY_FILE"];
    assert_eq!(env, expected, "{told}");
    // The next daemon knows the port that was said to this one.
    signal(i32::try_from(scene.daemon.pid()).expect("a pid"), Signal::KILL);
    scene.daemon.start_again();
    wait_healthy(&mut scene.daemon, 2);
    let after: Vec<Value> = ["default.0", "default.1"].map(|name| worker(&scene.daemon, name)["port"].clone()).into();
    assert_eq!(after, ports);
    assert_eq!(self::told(&after[1])["pid"], told["pid"], "it is the same server");
    // It ends as Snakepit has it end: by SIGTERM, in time.
    let stopped = scene.daemon.cli(&["stop", "default.0"]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    let certificate = wait_certificate(&mut scene.daemon, "default.0", 1);
    assert_eq!(certificate["cause"], "requested", "{certificate}");
}

#[test]
fn a_server_that_stands_still_is_replaced_though_its_port_accepts() {
    needs!(Root, CgroupTree, GrpcPython);
    let mut scene = start("heartbeat = { ping_interval_ms = 500, timeout_ms = 5000, max_missed_heartbeats = 2 }");
    let before = worker(&scene.daemon, "default.0");
    signal(pid(&before), Signal::STOP);
    let certificate = wait_certificate(&mut scene.daemon, "default.0", 1);
    assert_eq!(certificate["cause"], "heartbeat", "{certificate}");
    wait_healthy(&mut scene.daemon, 2);
    let after = worker(&scene.daemon, "default.0");
    assert!(after["restarts"] == 1 && after["pid"] != before["pid"], "{after}");
    assert_eq!(told(&after["port"])["snakepit_instance_token"], "default.0");
}

#[test]
fn what_a_server_writes_that_is_no_port_makes_it_not_ready() {
    needs!(Root, CgroupTree);
    let script = "echo none > \"$SNAKEPIT_READY_FILE\"; echo written; read line < /dev/fd/0; exec sleep 1000";
    let config = format!(
        "[pool.web]\nready = 'port-file:said'\nready_timeout = '3s'\nrestart = false\n\
         env = {{ SNAKEPIT_READY_FILE = '{{dir}}/said' }}\ncommand = ['sh', '-c', '{}']\n",
        script.replace('{', "{{").replace('}', "}}")
    );
    let mut daemon = Daemon::start(&config);
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "start-failed", "{certificate}");
    assert!(certificate["last_output"].as_str().is_some_and(|text| text.contains("written")), "{certificate}");
}
