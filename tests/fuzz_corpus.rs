//! Replays what fuzzing knows, without its tools: every file of `fuzz/corpus`, and seeded mutations of them.
//!
//! The promises are those of `fuzz/src`, included here. The same seed gives the same inputs on every machine, so a failure
//! is repeated by running the test again; its message is the input. `fuzz/README.md` says how to look further.

use std::fs;
use std::path::Path;

#[expect(unreachable_pub, reason = "public in the fuzz crate, which includes the same files as a library")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Panics where a promise is broken.
type Check = fn(&[u8]);

/// Every target by the name of its corpus and of its program in `fuzz/fuzz_targets`.
const TARGETS: [(&str, Check); 12] = [
    ("archive", targets::archive),
    ("attach_frame", targets::attach_frame),
    ("birth_record", targets::birth_record),
    ("channel_frame", targets::channel_frame),
    ("config", targets::config),
    ("control_frame", targets::control_frame),
    ("ledger", targets::ledger),
    ("mountinfo", targets::mountinfo),
    ("sd_notify", targets::sd_notify),
    ("seccomp_profile", targets::seccomp_profile),
    ("state", targets::state),
    ("target_names", targets::target_names),
];
const MUTATIONS: usize = 20_000;
const SEED: u64 = 0x6861_6c73_7570;
/// A corpus is to stay readable, and its replay short.
const FILES_MAX: usize = 60;
const BYTES_MAX: usize = 16 * 1024;

/// splitmix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above zero.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("64 bits");
        usize::try_from(self.next() % end).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A piece of `bytes`, at most 32 long.
    fn piece<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let start = self.below(bytes.len() + 1);
        let length = self.below((bytes.len() - start).min(32) + 1);
        &bytes[start..start + length]
    }

    /// One of the corpus, changed in one place or, ever more rarely, in several: most changes should leave it readable.
    fn mutated(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        loop {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.insert(at, self.byte()),
                1 => bytes.truncate(at),
                2 => {
                    let other = &corpus[self.below(corpus.len())];
                    bytes.splice(at..at, self.piece(other).iter().copied());
                }
                3 => {
                    let again = self.piece(&bytes).to_vec();
                    bytes.splice(at..at, again);
                }
                4 => {
                    let end = at + self.below((bytes.len() - at).min(16) + 1);
                    bytes.drain(at..end);
                }
                _ => {
                    let (bit, noise) = (1 << self.below(8), self.byte());
                    let flip = self.below(2) == 0;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = if flip { *byte ^ bit } else { noise };
                    }
                }
            }
            if self.below(2) == 0 {
                return bytes;
            }
        }
    }
}

/// The corpus of a target, in the order of its files' names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("read {}: {error}", directory.display()));
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, fs::read(entry.path()).expect("read a file of the corpus"))
    };
    let mut files: Vec<_> = entries.map(|entry| read(entry.expect("read a directory"))).collect();
    files.sort();
    files
}

fn holds(target: &str, name: &str, check: Check, input: &[u8]) {
    let outcome = std::panic::catch_unwind(|| check(input));
    assert!(outcome.is_ok(), "{target} breaks its promise on {name}: b\"{}\"", input.escape_ascii());
}

fn replay(target: &str) {
    let (_, check) = TARGETS.into_iter().find(|(name, _)| *name == target).expect("a target of the table");
    let files = corpus(target);
    assert!((1..=FILES_MAX).contains(&files.len()), "{target} has {} files", files.len());
    for (name, input) in &files {
        assert!(input.len() <= BYTES_MAX, "{target}/{name} has {} bytes", input.len());
        holds(target, name, check, input);
    }
    let inputs: Vec<Vec<u8>> = files.into_iter().map(|(_, input)| input).collect();
    let mut draw = Draw(SEED);
    for count in 0..MUTATIONS {
        holds(target, &format!("mutation {count}"), check, &draw.mutated(&inputs));
    }
}

#[test]
fn archive() {
    replay("archive");
}

#[test]
fn attach_frame() {
    replay("attach_frame");
}

#[test]
fn birth_record() {
    replay("birth_record");
}

#[test]
fn channel_frame() {
    replay("channel_frame");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn control_frame() {
    replay("control_frame");
}

#[test]
fn ledger() {
    replay("ledger");
}

#[test]
fn mountinfo() {
    replay("mountinfo");
}

#[test]
fn seccomp_profile() {
    replay("seccomp_profile");
}

#[test]
fn sd_notify() {
    replay("sd_notify");
}

#[test]
fn state() {
    replay("state");
}

#[test]
fn target_names() {
    replay("target_names");
}

/// A target without a corpus, a program or a replay would look like one that is tested.
#[test]
fn every_target_has_its_corpus_and_its_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |directory: &str| {
        let entries = fs::read_dir(fuzz.join(directory)).expect("read a directory");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
        let mut names: Vec<String> = entries.map(|entry| name(entry.expect("read a directory"))).collect();
        names.sort();
        names
    };
    let table = TARGETS.map(|(name, _)| name);
    assert_eq!(names("corpus"), table);
    assert_eq!(names("fuzz_targets"), table);
}
