//! The engine against a world with its own clock, its own copy of each promise, and faults.
//!
//! `HALSUP_SIMULATION_SEEDS=N` runs N seeds, `HALSUP_SIMULATION_FIRST=S` begins at seed S; a failure names its seed and shows
//! how it came to it. `planted.sh` beside this file shows that bugs are caught.

mod beats;
mod calls;
mod claims;
mod deaths;
mod dice;
mod idle;
mod operator;
mod place;
mod programs;
mod promises;
mod requests;
mod takeover;
mod tasks;
mod world;

use world::World;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn every_promise_holds_under_every_seed() {
    let first = number("HALSUP_SIMULATION_FIRST", 0);
    let (mut spawns, mut deaths) = (0, 0);
    for seed in first..first + number("HALSUP_SIMULATION_SEEDS", 2000) {
        let mut world = World::new(seed, false);
        if let Err(broken) = world.run() {
            let mut again = World::new(seed, true);
            assert_eq!(again.run(), Err(broken.clone()), "seed {seed} runs differently a second time");
            let trace = again.trace.expect("kept");
            let tail = trace[trace.len().saturating_sub(80)..].join("\n");
            panic!("{tail}\nseed {seed}: {broken}");
        }
        spawns += world.spawns;
        deaths += world.deaths;
    }
    assert!(spawns > 0 && deaths > 0, "the world ran nothing: {spawns} spawns, {deaths} deaths of the daemon");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = |seed| {
        let mut world = World::new(seed, true);
        world.run().expect("checked by the other test");
        world.trace.expect("kept")
    };
    let mut lines = 0;
    for seed in 0..40 {
        let (one, other) = (trace(seed), trace(seed));
        assert_eq!(one, other, "seed {seed}");
        lines += one.len();
    }
    assert!(lines > 1000, "the world is busy: {lines} lines");
}
