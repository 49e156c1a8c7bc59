//! Scenarios with requests whose callers send their input piece by piece, one of them to a worker that dies of it.
//!
//! Beside what is held against every request: no piece comes twice or out of order, whoever ends has had all of them, and a
//! request whose input has begun goes to no second worker.

use std::collections::BTreeMap;

use serde_json::json;

use crate::checker::{Findings, Invariant};
use crate::requests::{Caller, SERVES, ledger, web_is_up};
use crate::scenarios::{From, Keep, Scenario};
use crate::scene::Scene;
use crate::site::Site;

/// Pieces of one input; its end comes with the last.
const PIECES: u32 = 5;

/// All of them.
pub(crate) const ALL: &[Scenario] = &[Scenario {
    name: "input",
    from: From::Order,
    keep: Keep::Runs,
    config: SERVES,
    prepare: web_is_up,
    act: two_inputs,
}];

fn two_inputs(scene: &mut Scene<'_>) -> Option<()> {
    send(scene, "gather", "gathered")?;
    send(scene, "choke", "choked")?;
    scene.state("web.0", "healthy")
}

fn send(scene: &mut Scene<'_>, command: &str, word: &'static str) -> Option<()> {
    let mut caller = Caller::send(scene, command, word, &json!({ "input": true, "idempotent": true }))?;
    for number in 0..PIECES {
        // Whoever is not there any more takes none; that is heard below.
        if caller.line.tell("SendChunk", &json!({ "chunk": number, "end": number + 1 == PIECES })).is_none() {
            break;
        }
    }
    caller.hear(scene)
}

/// Holds what a worker took of inputs against what was sent.
pub(crate) fn judge(site: &Site, found: &mut Findings) {
    let ledger = ledger(site);
    let mut taken: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (word, number) in ledger.iter().filter_map(|line| line.strip_prefix("took ")?.split_once(' ')) {
        taken.entry(word).or_default().push(number.parse().expect("a number"));
    }
    for (word, numbers) in taken {
        let has_ended = ledger.iter().any(|line| *line == format!("end {word}"));
        if !(0..).zip(&numbers).all(|(at, number)| at == *number) {
            found.add(Invariant::Answers, format!("the pieces of {word} came as {numbers:?}"));
        }
        if has_ended && numbers.len() != PIECES as usize {
            found.add(Invariant::Truth, format!("{word} ended after {numbers:?} of {PIECES} pieces"));
        }
    }
}
