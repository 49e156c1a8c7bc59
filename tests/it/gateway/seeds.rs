//! The lines with `curl` that the documents of ClaudeCluster's worker and AtomForge's pool tell their users to type, typed as
//! they stand there, and every key that those documents show in the answers.
//!
//! Two things differ, as docs/gateway.md says: the port is this test's, and what changes something shows a token.

#![expect(clippy::disallowed_types, reason = "curl is run as its user would")]

use std::process::Command;

use serde_json::{Value, json};

use super::Served;
use crate::look::wait_healthy_of;
use crate::needs::needs;
use crate::ports::free_ports;

/// Types a line into a shell, with the gateway where the document has it, and with a token where one is needed.
#[track_caller]
fn typed(served: &Served, line: &str, token: Option<&str>) -> String {
    let port = served.port.to_string();
    let mut line = line
        .replace("localhost:3001", &format!("localhost:{port}"))
        .replace("localhost:8000", &format!("localhost:{port}"));
    if let Some(token) = token {
        line = line.replacen("curl ", &format!("curl -H 'Authorization: Bearer {token}' "), 1);
    }
    let ran = Command::new("sh").args(["-c", &line.replacen("curl ", "curl --silent --show-error ", 1)]).output();
    let ran = ran.expect("run a shell");
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

#[track_caller]
fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Every key of what a document shows is there, with a value of the same kind, or any where it is null here; where it shows a
/// list, in each of its items.
#[track_caller]
fn holds(answer: &Value, shown: &Value, path: &str) {
    match (answer, shown) {
        (Value::Object(answer), Value::Object(shown)) => {
            for (key, value) in shown {
                let path = format!("{path}.{key}");
                holds(answer.get(key).unwrap_or_else(|| panic!("{path} is missing")), value, &path);
            }
        }
        (Value::Array(answer), Value::Array(shown)) => {
            assert!(!answer.is_empty(), "{path} has items");
            answer.iter().for_each(|item| holds(item, &shown[0], path));
        }
        (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        (_, Value::Null) => {}
        (answer, shown) => panic!("{path}: expected something like {shown}, found {answer}"),
    }
}

#[test]
fn what_claudeclusters_document_types_is_answered() {
    needs!(Root, CgroupTree, Program("curl"));
    let served =
        Served::start("[pool.agents]\n[pool.agents.claims]\nmin = 1\n[tasks]\npool = 'agents'\ncommand = ['sh']\n");
    let token = served.token("runs", &[]);
    let shown = json!({
        "status": "available",
        "timestamp": "2024-01-15T10:30:00.000Z",
        "version": "0.1.0",
        "uptime": 12345,
        "activeTasks": 0,
        "systemInfo": { "nodeVersion": "v18.19.0", "platform": "linux", "arch": "x64" }
    });
    for line in ["curl http://localhost:3001/hello", "curl -f http://localhost:3001/hello || exit 1"] {
        let hello = read(&typed(&served, line, None));
        holds(&hello, &shown, "hello");
        assert_eq!((&hello["status"], &hello["activeTasks"]), (&json!("available"), &json!(0)));
        let time = hello["timestamp"].as_str().expect("text");
        assert!(time.len() == shown["timestamp"].as_str().expect("text").len() && time.ends_with('Z'), "{time}");
    }
    // The document shows no answer: these are the keys of the code behind it.
    let shown = json!({
        "executorType": "pty", "streamingType": "sse", "ptyAvailable": true, "environment": "production",
        "claudeCliPath": "claude", "activeProcesses": 0
    });
    holds(&read(&typed(&served, "curl http://localhost:3001/pty/status", None)), &shown, "pty/status");
    let line = r#"curl -X POST http://localhost:3001/run \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "echo Hello from Claude!",
    "workerId": "test-worker",
    "priority": 5
  }'"#;
    let run = read(&typed(&served, line, Some(&token)));
    holds(&run, &json!({ "taskId": "uuid", "status": "pending", "estimatedDuration": 2_200 }), "run");
    assert_eq!((&run["status"], &run["estimatedDuration"]), (&json!("pending"), &json!(2_200)));
    let story = format!("curl -N http://localhost:3001/stream/{}", run["taskId"].as_str().expect("a name"));
    let cancel = format!("curl -X DELETE http://localhost:3001/tasks/{}", run["taskId"].as_str().expect("a name"));
    // What the prompt has said is there, and the shell that it was typed into waits for more.
    assert_eq!(read(&typed(&served, &cancel, Some(&token)))["message"], "Task cancelled");
    assert!(typed(&served, &story, Some(&token)).contains("event: status"));
    // Without a token, which the document knows nothing of, it is refused, and says what to do.
    let refused = read(&typed(&served, line, None));
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("halsup token create")), "{refused}");
}

#[test]
fn what_atomforges_document_types_is_answered() {
    needs!(Root, CgroupTree, Python3, Program("curl"));
    let first = free_ports(5);
    let mut served = Served::start(&format!(
        "[pool.fdo]\nsize = 5\nbase_port = {first}\nserve = 'http'\nready = 'http:/'\ncommand = ['python3', '-m', 'http.server', '{{port}}', '--bind', '127.0.0.1']\n"
    ));
    let token = served.token("acts", &[]);
    wait_healthy_of(&mut served.daemon, "fdo", 5);
    let health = read(&typed(&served, "curl http://localhost:8000/health", None));
    let shown = json!({
        "status": "healthy",
        "execution_mode": "daemon_pool",
        "pool": { "enabled": true, "size": 5, "healthy_instances": 4, "health_percentage": 80.0 }
    });
    holds(&health, &shown, "health");
    assert_eq!(health["execution_mode"], "daemon_pool");
    let pool = read(&typed(&served, "curl http://localhost:8000/health/pool", None));
    let shown = json!({
        "pool_size": 5,
        "instances_total": 5,
        "instances_healthy": 4,
        "pool_health_percentage": 80.0,
        "total_requests": 1250,
        "failed_requests": 15,
        "daemon_restarts": 2,
        "instances_by_state": { "healthy": 4, "unhealthy": 0, "crashed": 1, "restarting": 0 },
        "instances": [{
            "id": "daemon_0",
            "port": 8080,
            "state": "healthy",
            "restart_count": 0,
            "consecutive_failures": 0,
            "total_requests": 250,
            "failed_requests": 0,
            "circuit_breaker_open": false,
            "last_health_check": null
        }]
    });
    holds(&pool, &shown, "health/pool");
    assert_eq!(pool["instances"].as_array().map(Vec::len), Some(5));
    let line = "curl -X POST http://localhost:8000/pool/reset-circuit-breakers";
    let reset = read(&typed(&served, line, Some(&token)));
    let shown = json!({
        "success": true, "circuit_breakers_reset": 2, "message": "Reset circuit breakers for 2 instance(s)"
    });
    holds(&reset, &shown, "reset");
    assert_eq!(reset["message"], "Reset circuit breakers for 0 instance(s)");
    let page = typed(&served, "curl http://localhost:8000/pool", None);
    assert!(page.starts_with("<!doctype html>"), "{page:.80}");
}
