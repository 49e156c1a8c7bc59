//! AtomForge's endpoints, key for key.

use serde_json::{Value, json};

use super::Served;
use crate::look::wait_healthy_of;
use crate::needs::needs;
use crate::ports::free_ports;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn holds(value: &Value, expected: &[&str]) {
    for key in expected {
        assert!(keys(value).contains(key), "{key} in {value}");
    }
}

#[test]
fn a_pool_is_told_of_key_for_key() {
    needs!(Root, CgroupTree, Python3);
    let first = free_ports(3);
    let mut served = Served::start(&format!(
        "[pool.fdo]\nsize = 3\nbase_port = {first}\nready = 'http:/'\ncommand = ['python3', '-m', 'http.server', '{{port}}', '--bind', '127.0.0.1']\n"
    ));
    wait_healthy_of(&mut served.daemon, "fdo", 3);
    let health = served.json("/health");
    holds(&health, &["service", "version", "features", "status", "execution_mode", "release", "pool"]);
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["execution_mode"], "daemon_pool");
    assert_eq!(health["pool"], json!({"enabled": true, "size": 3, "healthy_instances": 3, "health_percentage": 100.0}));
    let pool = served.json("/health/pool");
    let expected = [
        "pool_size",
        "instances_total",
        "instances_healthy",
        "pool_health_percentage",
        "total_requests",
        "failed_requests",
        "daemon_restarts",
        "instances_by_state",
        "instances",
        "concurrent_requests",
        "idle_daemons",
    ];
    holds(&pool, &expected);
    assert_eq!(
        pool["instances_by_state"],
        json!({"initializing": 0, "healthy": 3, "unhealthy": 0, "crashed": 0, "restarting": 0})
    );
    let of_one = [
        "id",
        "port",
        "state",
        "restart_count",
        "consecutive_failures",
        "total_requests",
        "failed_requests",
        "circuit_breaker_open",
        "last_health_check",
        "is_processing",
    ];
    for (slot, instance) in (0..).zip(pool["instances"].as_array().expect("a list")) {
        holds(instance, &of_one);
        assert_eq!(instance["id"], format!("daemon_{slot}"));
        assert_eq!(instance["port"], first + slot);
        assert_eq!(instance["state"], "healthy");
        assert_eq!(instance["circuit_breaker_open"], false);
    }
    let memory = served.json("/health/pool/memory");
    let expected = [
        "pool_size",
        "avg_daemon_memory_mb",
        "avg_launcher_memory_mb",
        "wine_infra_total_mb",
        "wine_infra_per_daemon_mb",
        "per_daemon_total_mb",
        "instances",
        "system_memory_total_mb",
        "system_memory_used_mb",
        "system_memory_available_mb",
        "system_memory_percent",
    ];
    holds(&memory, &expected);
    let of_one = ["id", "port", "daemon_memory_mb", "launcher_memory_mb", "wine_infra_share_mb", "total_memory_mb"];
    memory["instances"].as_array().expect("a list").iter().for_each(|instance| holds(instance, &of_one));
}

#[test]
fn a_killed_daemon_is_seen_and_comes_back() {
    needs!(Root, CgroupTree);
    let mut served = Served::start("[pool.fdo]\nsize = 2\ncommand = ['sleep', 'infinity']\n");
    let workers = wait_healthy_of(&mut served.daemon, "fdo", 2);
    crate::look::signal(crate::look::pid(&workers[0]), rustix::process::Signal::KILL);
    let port = served.port;
    served.daemon.wait_until("its restart is told", |_| {
        let pool = crate::http::get(port, "/health/pool").json();
        Some(()).filter(|()| pool["daemon_restarts"] == 1 && pool["instances_healthy"] == 2)
    });
    assert_eq!(served.json("/health/pool")["instances"][0]["restart_count"], 1);
}

#[test]
fn breakers_are_reset_by_who_may() {
    needs!(Root, CgroupTree);
    let served = Served::start(
        "[pool.fdo]\nsize = 1\ncommand = ['sleep', 'infinity']\n[pool.other]\ncommand = ['sleep', 'infinity']\n",
    );
    assert_eq!(crate::http::get(served.port, "/health/pool").status, 400, "two pools, and none is named");
    drop(served);
    let served = Served::start_with(
        "pool = 'fdo'\n",
        "[pool.fdo]\nsize = 1\ncommand = ['sleep', 'infinity']\ndispatch = true\n[pool.other]\ncommand = ['sleep', 'infinity']\n",
    );
    let reset = "/pool/reset-circuit-breakers";
    assert_eq!(crate::http::ask(served.port, "POST", reset, &[], "").status, 401);
    let looks = served.token("looks", &["--scope", "observe"]);
    assert_eq!(served.ask(&looks, "POST", reset, "").status, 403);
    let acts = served.token("acts", &["--scope", "operate"]);
    let answer = served.ask(&acts, "POST", reset, "");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(
        answer.json(),
        json!({"success": true, "circuit_breakers_reset": 0, "message": "Reset circuit breakers for 0 instance(s)"})
    );
}
