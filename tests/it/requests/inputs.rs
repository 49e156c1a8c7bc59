//! What callers send to requests piece by piece: all of it, in its order, no faster than it is taken, and cleaned up when nobody
//! sends or takes it any more.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, parameters, result};
use crate::look::{certificates, pid, worker};
use crate::needs::needs;
use crate::peer::{INTERFACE, Peer, call, flagged};

const LIAR: &str = include_str!("liar.py");

/// A chunk as it is said.
fn chunk(said: &Value) -> Vec<u8> {
    flagged("SendChunk", said, &json!({ "oneway": true }))
}

/// A caller that will send something, and has sent nothing.
#[track_caller]
fn begin(scene: &Scene, pool: &str, command: &str, args: &Value, more: &Value) -> Peer {
    let mut peer = Peer::connect(scene);
    let mut parameters = parameters(pool, command, args, more);
    parameters["input"] = json!(true);
    peer.call("Execute", &parameters);
    peer
}

/// Numbers from 0 on, each with so many bytes beside it.
fn numbers(count: u32, ballast: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(move |number| chunk(&json!({ "chunk": [number, "x".repeat(ballast)] })))
}

fn end() -> Vec<u8> {
    chunk(&json!({ "end": true }))
}

/// Sends chunks of so many bytes until nobody has taken one for a while; how many were taken, of a thousand.
fn send_until_it_stalls(peer: &mut Peer, ballast: usize) -> usize {
    peer.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("set a deadline");
    for (sent, message) in numbers(1000, ballast).enumerate() {
        match peer.stream.write_all(&message) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
            Err(error) => panic!("send a chunk: {error}"),
        }
    }
    1000
}

#[test]
fn ten_thousand_chunks_go_up_in_order() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "capacity = 2");
    let file = scene.path("numbers");
    let mut text = String::new();
    (0..10_000).for_each(|number| writeln!(text, "{number}").expect("write to text"));
    std::fs::write(&file, &text).expect("write a file");
    let path = file.to_str().expect("text");
    for command in ["gather", "gather_async"] {
        let called = scene.cli(&["call", "work", command, "--input", path]);
        assert_eq!((called.status, called.stdout.as_str(), called.stderr.as_str()), (0, "10000\n", ""), "{command}");
    }
    // There and back at once, and what no frame holds as well.
    let long = format!("{text}\"{}\"", "y".repeat(100_000));
    std::fs::write(&file, &long).expect("write a file");
    let called = scene.cli(&["call", "work", "mirror", "--input", path, "--stream"]);
    assert_eq!((called.status, called.stderr.as_str()), (0, ""));
    assert!(called.stdout == format!("{long}\n\"mirrored\"\n"), "{} bytes", called.stdout.len());
    let client = "
import asyncio, sys
from halsup import Answer, AsyncClient, Client
with Client(sys.argv[1]) as client:
    assert client.call('work', 'gather', input=range(10_000)).result == 10_000
    given = [None, {'a': 1}, b'bytes', Answer('both', b'more'), 'y' * 100_000, b'']
    with client.stream('work', 'mirror', input=iter(given)) as stream:
        got = [(chunk.data, None if chunk.payload is None else bytes(chunk.payload)) for chunk in stream]
    expected = [(None, None), ({'a': 1}, None), (None, b'bytes'), ('both', b'more'), ('y' * 100_000, None), (None, b'')]
    assert got == expected, got
    assert client.call('work', 'gather', input=()).result == 0

async def numbers(count):
    for number in range(count):
        yield number

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        both = await asyncio.gather(
            client.call('work', 'gather_async', input=numbers(10_000)),
            client.call('work', 'gather', input=range(10_000)),
        )
        assert [reply.result for reply in both] == [10_000] * 2, both
        async with await client.stream('work', 'mirror', input=numbers(1000)) as stream:
            assert [chunk.data async for chunk in stream] == list(range(1000))
            assert stream.reply.result == 'mirrored'

asyncio.run(main())
print('all')
";
    let output = scene.python(client);
    assert_eq!((output.status, output.stdout.as_str()), (0, "all\n"), "{}", output.stderr);
    assert_eq!(scene.queue("work")["desks"][0]["failures"], 0);
}

#[test]
fn a_worker_that_takes_nothing_holds_up_its_own_input_alone() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "capacity = 3");
    let baseline = scene.descriptors();
    let mut stalled = begin(&scene, "work", "take", &json!(2), &json!({}));
    let sent = send_until_it_stalls(&mut stalled, 30_000);
    // What it was granted, what a decoder and two sockets hold.
    assert!((10..100).contains(&sent), "{sent} chunks of 30 kB");
    scene.wait_noted("took 2", 1);
    let mut never = begin(&scene, "work", "hold", &json!(0), &json!({}));
    let sent = send_until_it_stalls(&mut never, 30_000);
    assert!(sent < 50, "{sent} chunks to who takes none");
    let mut other = begin(&scene, "work", "gather", &Value::Null, &json!({}));
    numbers(2000, 10).for_each(|message| assert!(other.say(&message)));
    assert!(other.say(&end()));
    assert_eq!(*result(&other.reply()), json!(2000));
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
    assert_eq!(scene.queue("work")["in_flight"], 2);
    drop((stalled, never));
    scene.wait_noted("left 2", 1);
    scene.wait_noted("released 0", 1);
    scene.wait_queue("work", &json!({ "in_flight": 0, "abandoned": 2, "available": 1 }));
    drop(other);
    scene.wait_descriptors(baseline);
}

#[test]
fn an_input_that_breaks_off_is_given_up_and_frees_its_worker() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let before = pid(&worker(&scene, "work.0"));
    for round in 1..=4 {
        let mut caller = begin(&scene, "work", "drain", &Value::Null, &json!({}));
        numbers(20, 0).for_each(|message| assert!(caller.say(&message)));
        scene.wait_noted("took 20", round);
        if round % 2 == 0 {
            // Without its end it is none, whatever the caller would still hear.
            caller.stream.shutdown(Shutdown::Write).expect("say no more");
            assert_eq!(caller.until_closed(), [Value::Null; 0]);
        }
        drop(caller);
        assert_eq!(*result(&scene.ask("echo", &json!(round), &json!({}))), json!(round));
        assert_eq!(scene.shared.noted("left 20"), round);
    }
    assert_eq!(pid(&worker(&scene, "work.0")), before, "it was not killed for it");
    scene.wait_queue("work", &json!({ "in_flight": 0, "abandoned": 4, "answered": 4 }));
}

#[test]
fn what_is_sent_when_the_answer_is_there_is_passed_over_and_the_connection_goes_on() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let mut caller = begin(&scene, "work", "early", &json!(3), &json!({}));
    numbers(200, 100).for_each(|message| assert!(caller.say(&message)));
    let taken: Vec<Value> =
        result(&caller.reply()).as_array().expect("chunks").iter().map(|one| one[0].clone()).collect();
    assert_eq!(taken, [0, 1, 2]);
    numbers(200, 100).for_each(|message| assert!(caller.say(&message)));
    assert!(caller.say(&end()));
    assert_eq!(caller.ask("Ping", &json!({})), json!({ "parameters": {} }));
    // A deadline ends it as an answer does.
    let mut late = parameters("work", "drain", &Value::Null, &json!({ "timeout_ms": 2000, "input": true }));
    assert!(caller.call("Execute", &late));
    numbers(5, 0).for_each(|message| assert!(caller.say(&message)));
    scene.wait_noted("took 5", 1);
    assert_eq!(failed(&caller.reply()), ("worker_timeout", "in_doubt"));
    scene.wait_noted("left 5", 1);
    // One that waited for a worker in vain never began, and none of it has gone anywhere.
    let held = scene.send("hold", &json!(1), &json!({}));
    scene.wait_noted("holding 1", 1);
    late["queue_timeout_ms"] = json!(50);
    assert!(caller.call("Execute", &late));
    numbers(5, 0).for_each(|message| assert!(caller.say(&message)));
    assert_eq!(failed(&caller.reply()), ("queue_timeout", "never_started"));
    drop(held);
    // The next input on the connection begins with its own first chunk.
    assert!(caller.call("Execute", &parameters("work", "gather", &Value::Null, &json!({ "input": true }))));
    numbers(100, 0).for_each(|message| assert!(caller.say(&message)));
    assert!(caller.say(&end()));
    assert_eq!(*result(&caller.reply()), json!(100));
}

#[test]
fn an_input_is_given_to_no_second_worker_whatever_it_may() {
    needs!(Root, CgroupTree, Python3);
    let dispatch = "queue_timeout = '60s'\nattempts = 3\nquarantine = 0\nworker_breaker = { failures = 0 }";
    let scene = Scene::start(2, dispatch);
    let mut caller = begin(&scene, "work", "die", &json!("input"), &json!({ "idempotent": true }));
    caller.say(&end());
    let answer = caller.reply();
    assert_eq!(failed(&answer), ("worker_exit", "in_doubt"));
    assert_eq!((&answer["parameters"]["attempts"], scene.shared.noted("died input")), (&json!(1), 1));
}

#[test]
fn what_is_no_chunk_ends_the_connection_that_says_it() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let baseline = scene.descriptors();
    let mut nobody = Peer::connect(&scene);
    nobody.say(&chunk(&json!({ "chunk": 1 })));
    let (error, reason) = {
        nobody.say(&call("SendChunk", &json!({ "chunk": 1 })));
        nobody.refusal()
    };
    assert_eq!(error, format!("{INTERFACE}.Refused"));
    assert!(reason.contains("no request that takes input"), "{reason}");
    drop(nobody);
    let long = json!({ "chunk": "x".repeat(70_000) });
    let unbound = json!({ "payload": { "bytes": 10 } });
    let wrong: [(&str, Vec<u8>); 7] = [
        ("at most", chunk(&long)),
        ("no descriptor", chunk(&unbound)),
        ("nothing but sound SendChunk", chunk(&json!({ "payload": { "bytes": 1, "shared": true } }))),
        ("nothing but sound SendChunk", chunk(&json!({ "request": "0".repeat(32) }))),
        ("nothing but sound SendChunk", call("Ping", &json!({}))),
        ("\"oneway\"", call("SendChunk", &json!({ "chunk": 1 }))),
        ("", b"{\0".to_vec()),
    ];
    for (round, (expected, message)) in wrong.into_iter().enumerate() {
        let mut caller = begin(&scene, "work", "drain", &Value::Null, &json!({}));
        numbers(3, 0).for_each(|good| assert!(caller.say(&good)));
        scene.wait_noted("took 3", round + 1);
        caller.say(&message);
        let (error, reason) = caller.refusal();
        assert_eq!(error, format!("{INTERFACE}.Refused"), "{reason}");
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(caller.until_closed(), [Value::Null; 0]);
        scene.wait_noted("left 3", round + 1);
    }
    // Behind the last there is no further one: what comes is passed over when the answer is there.
    let mut caller = begin(&scene, "work", "gather", &Value::Null, &json!({}));
    numbers(3, 0).for_each(|good| assert!(caller.say(&good)));
    caller.say(&chunk(&json!({ "chunk": [3], "end": true })));
    caller.say(&chunk(&json!({ "chunk": [4] })));
    caller.say(&end());
    assert_eq!(*result(&caller.reply()), json!(4));
    assert_eq!(caller.ask("Ping", &json!({})), json!({ "parameters": {} }));
    drop(caller);
    scene.wait_descriptors(baseline);
}

/// A pool `lies` with a liar beside a pool `work`.
fn lying() -> (Scene, Gate) {
    let shared = Shared::new();
    shared.program("liar.py", LIAR);
    let gate = Gate::new(&shared);
    let config = shared.pool("lies", "liar.py", "", "worker_breaker = { failures = 0 }")
        + &shared.pool("work", "worker.py", "", "capacity = 4");
    (Scene::begin(shared, &config, 2), gate)
}

#[test]
fn a_worker_that_grants_more_than_it_reads_is_waited_for_and_loses_nothing() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = lying();
    let baseline = scene.descriptors();
    let mut caller = begin(&scene, "lies", "take", &Value::Null, &json!({ "timeout_ms": 100_000 }));
    scene.wait_noted("granted", 1);
    let sent = send_until_it_stalls(&mut caller, 30_000);
    assert!((10..100).contains(&sent), "{sent} chunks of 30 kB");
    // Nobody else waits.
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
    let mut other = begin(&scene, "work", "gather", &Value::Null, &json!({}));
    numbers(500, 10).for_each(|message| assert!(other.say(&message)));
    assert!(other.say(&end()));
    assert_eq!(*result(&other.reply()), json!(500));
    gate.open(1);
    // The message that had gone in part cannot be told from here: whoever stalls so gives the request up.
    drop(caller);
    scene.wait_queue("lies", &json!({ "abandoned": 1 }));
    assert_eq!(scene.cli(&["kill", "lies.0"]).status, 0);
    scene.daemon.wait_until("the next one", |daemon| (certificates(daemon, "lies.0").len() == 1).then_some(()));
    scene.wait_queue("lies", &json!({ "available": 1 }));
    // With a caller that waits, all of it comes.
    let mut caller = begin(&scene, "lies", "take", &Value::Null, &json!({ "timeout_ms": 100_000 }));
    scene.wait_noted("granted", 2);
    let writes = std::thread::scope(|scope| {
        let mut writer = caller.stream.try_clone().expect("a second handle");
        let writes =
            scope.spawn(move || numbers(300, 30_000).chain([end()]).try_for_each(|message| writer.write_all(&message)));
        scene.daemon.wait_until("that it stalls", |daemon| {
            let told = daemon.cli(&["queue", "lies", "--json"]).json();
            (told["pools"][0]["in_flight"] == 1).then_some(())
        });
        gate.open(1);
        let answer = caller.reply();
        assert!(*result(&answer) == (0..300).collect::<Value>(), "{answer}");
        writes.join().expect("the writer")
    });
    writes.expect("all was taken");
    drop((caller, other));
    scene.wait_descriptors(baseline);
}

#[test]
fn what_is_not_a_workers_to_grant_is_granted_by_nobody() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = lying();
    // An honest worker's request that takes nothing; its very name is known to the liar.
    let mut held = begin(&scene, "work", "named", &json!(7), &json!({}));
    scene.wait_noted("named ", 1);
    let ledger = scene.shared.ledger();
    let name = ledger.iter().find_map(|line| line.strip_prefix("named ")).expect("its name");
    for input in [true, false] {
        let mut liar = Peer::connect(&scene);
        liar.call("Execute", &parameters("lies", "grant", &json!({ "of": [name] }), &json!({ "input": input })));
        assert_eq!(*result(&liar.reply()), json!({ "of": [name] }));
    }
    let sent = send_until_it_stalls(&mut held, 30_000);
    assert!(sent < 50, "{sent} chunks to who takes none");
    gate.open(1);
    assert_eq!(*result(&held.reply()), json!(7));
    assert_eq!(certificates(&scene, "work.0").len() + certificates(&scene, "lies.0").len(), 0);
}
