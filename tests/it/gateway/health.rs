//! When workers were last seen to be well, as their users are told.

use std::time::SystemTime;

use super::Served;
use crate::look::wait_healthy_of;
use crate::needs::needs;
use crate::ports::free_ports;

#[expect(clippy::disallowed_methods, reason = "what a person would compare it with")]
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

#[test]
fn a_last_health_check_is_when_it_was() {
    needs!(Root, CgroupTree, Python3);
    let begun = now();
    let program = include_str!("worker.py").replace('{', "{{").replace('}', "}}");
    let command = |keys: &str| {
        format!(
            "[pool.fdo]\nserve = 'http'\nbase_port = {}\ncommand = ['python3', '-c', '''{program}''', '{{port}}', '{{slot}}']\n{keys}",
            free_ports(1)
        )
    };
    let last = |served: &Served| served.json("/health/pool")["instances"][0]["last_health_check"].as_f64();
    // Each check that it answers.
    let mut served = Served::start(&command("heartbeat = { source = 'http:/', interval = '200ms' }\n"));
    wait_healthy_of(&mut served.daemon, "fdo", 1);
    let first = last(&served).expect("it has answered one");
    assert!(begun - 0.01 <= first && first <= now() + 0.01, "{begun} {first} {}", now());
    let port = served.port;
    let later = served.daemon.wait_until("it answers the next", |_| {
        let told = crate::http::get(port, "/health/pool").json();
        told["instances"][0]["last_health_check"].as_f64().filter(|then| *then > first)
    });
    assert!(later <= now() + 0.01);
    // That it became ready, where nothing is asked afterwards; and nothing where it never was asked.
    let mut served = Served::start(&command(""));
    wait_healthy_of(&mut served.daemon, "fdo", 1);
    let ready = last(&served).expect("its port has answered");
    assert_eq!(last(&served), Some(ready));
    let mut served = Served::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy_of(&mut served.daemon, "web", 1);
    assert_eq!(last(&served), None);
}
