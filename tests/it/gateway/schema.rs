//! What `/openapi.json` says is held against the gateway by a public tool, Schemathesis: whatever it makes up that the document
//! allows, and whatever it does not, is answered by what the document says, and never by 500.

#![expect(clippy::disallowed_types, reason = "Schemathesis is a program of its own")]

use std::process::Command;

use super::Served;
use crate::needs::{needs, schemathesis_python};
use crate::place::directory;

/// Requests of each operation that are made up at random, beside those that are listed.
const EXAMPLES: &str = "6";

/// Has these operations tried; what is said of it.
#[track_caller]
fn tried(served: &Served, token: &str, which: &[&str]) {
    let dir = directory();
    let ran = Command::new(schemathesis_python().expect("an interpreter"))
        .args(["-m", "schemathesis.cli", "run", &format!("http://127.0.0.1:{}/openapi.json", served.port)])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--checks", "not_a_server_error,status_code_conformance,response_schema_conformance"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1", "--no-shrink"])
        .args(["--generation-deterministic", "--request-timeout", "20", "--warnings", "off", "--no-color"])
        .args(["--suppress-health-check", "all"])
        .args(which)
        .current_dir(dir.path())
        .output()
        .expect("run Schemathesis");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    // What was not tried says nothing.
    assert!(said.contains("No issues found"), "{said}");
}

#[test]
fn everything_is_answered_as_the_document_says() {
    needs!(Root, CgroupTree, SchemathesisPython);
    let served = Served::start(
        "[pool.web]\ncommand = ['sleep', 'infinity']\n[pool.agents]\n[pool.agents.claims]\nmin = 1\n\
         [tasks]\npool = 'agents'\ncommand = ['true']\ntimeout = '5s'\n",
    );
    let token = served.token("tries", &["--scope", "admin"]);
    // What goes on without end is tried by `streams`; what refuses everything else from then on comes last.
    tried(&served, &token, &["--exclude-path-regex", "^/(events|api/watch|api/logs/.*|drain)$"]);
    tried(&served, &token, &["--include-path", "/drain"]);
    assert_eq!(served.json("/livez")["status"], "ok");
}
