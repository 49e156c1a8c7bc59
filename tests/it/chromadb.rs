//! ChromaDB itself beside the pools: `[service.chromadb]` without a command, with what variables say of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::fixture::Daemon;
use crate::look::{pid, signal, wait_certificate, wait_healthy};
use crate::needs::needs;
use crate::ports::free_ports;

/// Where `examples/install-chromadb.sh` puts it.
pub(crate) const PROGRAM: &str = "/opt/chromadb/bin/chroma";
const COLLECTIONS: &str = "/api/v2/tenants/default_tenant/databases/default_database/collections";

/// What it answers to one request.
fn ask(port: u16, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to ChromaDB");
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let request = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("ask ChromaDB");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read its answer");
    answer
}

/// The addresses at which somebody listens on this port, as the kernel writes them.
fn listeners(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/tcp").expect("read /proc/net/tcp");
    let here = format!(":{port:04X}");
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = fields.filter(|fields| fields.get(3) == Some(&"0A") && fields[1].ends_with(&here));
    listening.map(|fields| fields[1].to_owned()).collect()
}

#[test]
fn the_service_is_reached_at_its_variables_port_and_keeps_what_it_was_given() {
    needs!(Root, CgroupTree, Program(PROGRAM));
    let port = free_ports(1);
    let told = format!("CHROMADB_PORT={port}");
    let wrapper = ["env", told.as_str(), "CHROMADB_DATA_DIR=/data/vectors"];
    let mut daemon = Daemon::start_under(&wrapper, "[service.chromadb]\n");
    let service = wait_healthy(&mut daemon, 1).remove(0);
    assert_eq!((&service["name"], &service["port"]), (&"chromadb".into(), &port.into()));
    assert!(ask(port, "GET", "/api/v2/heartbeat", "").contains("heartbeat"));
    assert_eq!(
        listeners(port),
        [format!("0100007F:{port:04X}")],
        "no other host reaches what asks nobody who they are"
    );
    let made = ask(port, "POST", COLLECTIONS, "{\"name\": \"kept\"}");
    assert!(made.contains("\"name\":\"kept\""), "{made}");
    assert!(daemon.path("state/volumes/hal9000-chromadb/data/chroma.sqlite3").exists(), "its data is in the volume");

    signal(pid(&service), Signal::KILL);
    wait_certificate(&mut daemon, "chromadb", 1);
    wait_healthy(&mut daemon, 1);
    assert!(ask(port, "GET", COLLECTIONS, "").contains("\"name\":\"kept\""), "after its own death");

    assert_eq!(daemon.stop(), 0);
    let other = format!("CHROMADB_PORT={}", free_ports(1));
    daemon.start_again_under(&["env", &other, "CHROMADB_HOST=0.0.0.0"]);
    let service = wait_healthy(&mut daemon, 1).remove(0);
    let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    assert_eq!(listeners(port), [format!("00000000:{port:04X}")], "where somebody asks for it by name");
    assert!(ask(port, "GET", COLLECTIONS, "").contains("\"name\":\"kept\""), "after the daemon's");
}
