//! The Python SDK, `examples/sdk/halsup.py`: its own tests in `tests/sdk`, run by the interpreter of this machine.
//!
//! There a worker is a real process, and halsup's side of its channel and of the control socket is played frame by frame.
//! What the SDK and the daemon do together is in `tests/it`.

#![expect(clippy::disallowed_types, reason = "runs Python; nothing here is supervised")]

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "it/needs.rs"]
mod needs;

use needs::needs;

/// Runs the tests of `module`, a file or a class of one, and passes on what failed; how many there were.
fn python(module: &str) -> usize {
    let output = Command::new("python3")
        .args(["-B", "-W", "error", "-m", "unittest", "--verbose", module])
        .current_dir(package("tests/sdk"))
        .output()
        .expect("run python3");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{module}: {}\n{said}", output.status);
    let ran = said.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok());
    ran.unwrap_or_else(|| panic!("{module} does not say how many tests ran:\n{said}"))
}

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// How many tests a file has, by its text: none may be passed over.
fn written(module: &str) -> usize {
    let file = package("tests/sdk").join(module).with_extension("py");
    let text = std::fs::read_to_string(file).expect("read a file of tests");
    text.lines().filter(|line| line.trim_start().trim_start_matches("async ").starts_with("def test_")).count()
}

#[test]
fn a_worker_answers_streams_cancels_and_ends() {
    needs!(Python3);
    assert_eq!(python("test_worker"), written("test_worker"));
}

#[test]
fn a_worker_takes_memory_and_refuses_what_is_none() {
    needs!(Python3);
    assert_eq!(python("test_payloads"), written("test_payloads"));
}

#[test]
fn a_caller_calls_streams_and_lends_memory() {
    needs!(Python3);
    assert_eq!(python("test_client"), written("test_client"));
}

#[test]
fn the_examples_do_what_they_say() {
    needs!(Python3);
    let ran = python("test_examples.Plain") + python("test_examples.Documents");
    assert_eq!(ran, written("test_examples") - 1, "all but the one that needs numpy");
}

#[test]
fn the_example_with_arrays_does_what_it_says() {
    needs!(Python3, PythonPackage("numpy"));
    assert_eq!(python("test_examples.WithNumpy"), 1);
}
