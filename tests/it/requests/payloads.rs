//! Memory that goes beside a request and its answer, without being copied through anybody.

use std::fs;

use serde_json::json;

use super::Scene;
use crate::needs::needs;

#[test]
fn a_file_goes_to_a_worker_and_what_it_makes_comes_back() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let (given, made) = (scene.path("given"), scene.path("made"));
    for bytes in [0, 1, 3_000_001] {
        let content: Vec<u8> = (0..bytes).map(|n: u32| n.to_le_bytes()[usize::from(n.is_multiple_of(3))]).collect();
        fs::write(&given, &content).expect("write a file");
        let (given, made) = (given.to_str().expect("text"), made.to_str().expect("text"));
        let called = scene.cli(&["call", "work", "reverse", "--payload", given, "--output", made, "--json"]);
        assert_eq!(called.json()["payload"], json!({ "bytes": bytes }), "{called:?}");
        let back: Vec<u8> = content.iter().rev().copied().collect();
        assert!(fs::read(made).expect("read what came back") == back, "{bytes} bytes");
    }
}

#[test]
fn memory_that_is_lent_is_answered_in_and_comes_again() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "");
    let baseline = scene.descriptors();
    let client = "
import sys
from halsup import Client
with Client(sys.argv[1]) as client:
    with client.buffer(1 << 20) as buffer:
        for number in range(50):
            data = bytes([number]) + bytes(range(200)) * 5000
            buffer.fill(data)
            reply = client.call('work', 'reverse', payload=buffer)
            assert reply.result == 'in place', reply
            assert bytes(reply.payload) == data[::-1], number
            reply.payload.release()
    # Bytes go in memory that the client lends by itself.
    reply = client.call('work', 'reverse', payload=b'abc' * 100_000)
    assert reply.result == 'in place' and bytes(reply.payload) == b'cba' * 100_000, reply
    # A result too long for a frame comes as memory, and is the result.
    assert client.call('work', 'long', 300_000).result == 'z' * 300_000
    assert client.call('work', 'echo', 'y' * 200_000).result == 'y' * 200_000
    print('all')
";
    let output = scene.python(client);
    assert_eq!((output.status, output.stdout.as_str()), (0, "all\n"), "{}", output.stderr);
    scene.wait_descriptors(baseline);
    let queue = scene.queue("work");
    assert_eq!((&queue["requests"], &queue["answered"], &queue["errors"]), (&json!(53), &json!(53), &json!(0)));
}

#[test]
fn json_that_no_frame_holds_goes_there_and_back_as_any_other() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let long = json!({ "text": "y".repeat(100_000), "marker": { "halsup.payload": "json" } });
    let called = scene.cli(&["call", "work", "echo", &long.to_string()]);
    assert_eq!((called.status, called.stderr.as_str()), (0, ""));
    assert!(serde_json::from_str::<serde_json::Value>(&called.stdout).expect("JSON") == long);
    let whole = scene.cli(&["call", "work", "long", "300000", "--json"]).json();
    assert!(whole["result"] == "z".repeat(300_000) && whole.get("payload").is_none());
    let stream = scene.cli(&["call", "work", "count", "[3, 70000]", "--stream"]);
    let lines: Vec<serde_json::Value> =
        stream.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let chunk = |number: u32| json!([number, "x".repeat(70_000)]);
    assert!(lines == [chunk(0), chunk(1), chunk(2), json!("counted")], "{} lines", lines.len());
}

#[test]
fn a_payload_goes_where_it_is_wanted_and_is_not_lost_silently() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let given = scene.path("given");
    fs::write(&given, "abcdef").expect("write a file");
    let call = |more: &[&str]| {
        let path = given.to_str().expect("text");
        scene.cli(&[&["call", "work", "reverse", "--payload", path], more].concat())
    };
    let printed = call(&["--output", "-"]);
    assert_eq!((printed.status, printed.stdout.as_str(), printed.stderr.as_str()), (0, "fedcba", ""));
    let lost = call(&[]);
    assert_eq!((lost.status, lost.stdout.as_str()), (0, ""), "{lost:?}");
    assert!(lost.stderr.contains("a payload of 6B came back"), "{lost:?}");
    assert_eq!(call(&["--output", "-", "--json"]).status, 2);
    // Pieces of a stream are written one behind the other.
    let all = scene.path("all");
    let path = all.to_str().expect("text");
    let streamed = scene.cli(&["call", "work", "letters", "3", "--stream", "--output", path]);
    assert_eq!((streamed.status, streamed.stderr.as_str()), (0, ""), "{streamed:?}");
    assert_eq!(fs::read_to_string(&all).expect("read it"), "abc");
}
