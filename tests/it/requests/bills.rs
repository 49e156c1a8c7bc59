//! What a request has used, for whoever asks.

use rustix::fs::statfs;
use serde_json::{Value, json};

use super::{Scene, Shared, failed, result};
use crate::needs::needs;

/// A file system that has no device.
const TMPFS: i64 = 0x0102_1994;

/// A worker that uses what it is told to use.
const SPENDER: &str = "
import os, subprocess, time
from halsup import ToolError, serve, tool

@tool
def burn(context, seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@tool
def burn_and_fail(context, seconds):
    burn_for = time.process_time() + seconds
    while time.process_time() < burn_for:
        pass
    raise ToolError('no', reason='no')

@tool
def eat(context, megabytes):
    # Touched, page by page, and given back.
    return len(bytearray(megabytes << 20))

@tool
def write(context, megabytes):
    # A file of its own: of one that others have begun, the kernel counts the writing for them.
    with open('/mnt/written', 'xb') as file:
        file.write(b'x' * (megabytes << 20))
        file.flush()
        os.fsync(file.fileno())

@tool
def leave(context, count):
    for _ in range(count):
        subprocess.Popen(['sleep', '1000'], stdin=subprocess.DEVNULL, start_new_session=True)

serve()
";

fn scene(dispatch: &str) -> Scene {
    let shared = Shared::new();
    shared.program("spender.py", SPENDER);
    let config = shared.pool("work", "spender.py", "", dispatch);
    Scene::begin(shared, &config, 1)
}

/// What a request has used.
#[track_caller]
fn bill(scene: &Scene, command: &str, args: &Value) -> Value {
    let reply = scene.ask(command, args, &json!({ "bill": true }));
    assert_eq!(reply["error"], Value::Null, "{reply}");
    reply["parameters"]["bill"].clone()
}

fn number(bill: &Value, name: &str) -> u64 {
    bill[name].as_u64().unwrap_or_else(|| panic!("no {name} in {bill}"))
}

#[test]
fn processor_time_and_processes_left_behind_are_the_requests_own() {
    needs!(Root, CgroupTree, Python3);
    let scene = scene("");
    let much = bill(&scene, "burn", &json!(0.4));
    assert!(number(&much, "cpu_usec") >= 400_000, "{much}");
    assert!(number(&much, "user_usec") + number(&much, "system_usec") <= number(&much, "cpu_usec") + 1_000, "{much}");
    let little = bill(&scene, "burn", &json!(0));
    assert!(number(&little, "cpu_usec") < 400_000, "what the one before has used is not this one's: {little}");
    assert_eq!(number(&little, "leaked_processes"), 0, "{little}");
    assert_eq!(number(&bill(&scene, "leave", &json!(3)), "leaked_processes"), 3);
    assert_eq!(number(&bill(&scene, "leave", &json!(1)), "leaked_processes"), 1, "only the new ones");
    // The answer of the application has one too, whatever it is.
    let refused = scene.ask("burn_and_fail", &json!(0.2), &json!({ "bill": true }));
    assert_eq!(failed(&refused), ("no", "answered"));
    assert!(number(&refused["parameters"]["bill"], "cpu_usec") >= 200_000, "{refused}");
    let called = scene.cli(&["call", "work", "burn", "0.2", "--bill"]);
    assert!(called.status == 0 && called.stderr.contains("bill: cpu 2"), "{called:?}");
    assert_eq!(called.stdout, "", "the result alone, which is none: {called:?}");
    let told = scene.cli(&["call", "work", "burn", "0.2", "--bill", "--json"]).json();
    assert!(number(&told["bill"], "cpu_usec") >= 200_000, "{told}");
}

#[test]
fn who_does_not_ask_has_no_bill_and_where_it_cannot_be_known_it_says_why() {
    needs!(Root, CgroupTree, Python3);
    let one = scene("");
    let plain = one.ask("burn", &json!(0), &json!({}));
    assert!(result(&plain).is_null() && plain["parameters"].get("bill").is_none(), "{plain}");
    let several = scene("capacity = 4");
    let shared = bill(&several, "burn", &json!(0.1));
    for name in
        ["cpu_usec", "user_usec", "system_usec", "memory_peak_bytes", "read_bytes", "written_bytes", "leaked_processes"]
    {
        assert!(shared[name].is_null(), "{name} in {shared}");
    }
    assert!(shared["note"].as_str().is_some_and(|note| note.contains("up to 4 requests at once")), "{shared}");
}

/// Whether this kernel lets a peak be counted from now.
fn resets_peaks() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

#[test]
fn memory_and_input_and_output_are_counted_where_there_are_controllers() {
    needs!(Root, CgroupTree, Python3, Cgroup2("memory"), Cgroup2("io"));
    let scene = scene("");
    let much = bill(&scene, "eat", &json!(96));
    let little = bill(&scene, "eat", &json!(1));
    if resets_peaks() {
        assert!(number(&much, "memory_peak_bytes") >= 96 << 20, "{much}");
        assert!(number(&little, "memory_peak_bytes") < 96 << 20, "of this one alone: {little}");
    } else {
        assert!(much["memory_peak_bytes"].is_null(), "one peak for all is nobody's: {much}");
        assert!(much["note"].as_str().is_some_and(|note| note.contains("Linux 6.12")), "{much}");
    }
    let written = bill(&scene, "write", &json!(4));
    number(&written, "read_bytes");
    let device = statfs(scene.shared.seen.path()).expect("look at the file system").f_type != TMPFS;
    assert!(number(&written, "written_bytes") >= if device { 4 << 20 } else { 0 }, "{written}");
    assert!(number(&bill(&scene, "burn", &json!(0)), "written_bytes") < 4 << 20, "of this one alone");
}
