//! Measures halsup's spawning beside the kernel's floor and its peers, in one interleaved run; and, as `workers`, a daemon
//! with a thousand workers. Prints every row with its target of DESIGN.md section 9.
//!
//! `cargo run --release --manifest-path benches/spawn/Cargo.toml -- [--runs N] [--quick] [--steps] [--descriptors N] [workers [--count N]]`

mod daemon;
mod floor;
mod library;
mod peers;
mod place;
mod report;
mod spawning;
mod workers;

use std::process::ExitCode;

/// The bench stops at the first thing that goes wrong.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What is asked for.
pub struct Options {
    /// Samples of each paced row.
    pub runs: u32,
    /// Whether to show what each step of the library's spawn takes.
    pub steps: bool,
    /// Further descriptors that the bench holds open, as a daemon with many workers does.
    pub descriptors: u32,
    /// Workers of `workers`.
    pub count: u32,
    /// Whether `workers` is asked for.
    pub workers: bool,
}

fn options() -> std::result::Result<Options, String> {
    let mut options = Options { runs: 300, steps: false, descriptors: 0, count: 1000, workers: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = |what: &str| {
            let text = arguments.next().unwrap_or_default();
            text.parse::<u32>()
                .ok()
                .filter(|n| (1..=100_000).contains(n))
                .ok_or(format!("{what}: a number, 1 to 100000"))
        };
        match argument.as_str() {
            "--runs" => options.runs = number("--runs")?,
            "--count" => options.count = number("--count")?,
            "--descriptors" => options.descriptors = number("--descriptors")?,
            "--quick" => options.runs = 50,
            "--steps" => options.steps = true,
            "workers" => options.workers = true,
            other => {
                return Err(format!(
                    "{other:?} is not an option: --runs N, --quick, --steps, --descriptors N, workers, --count N"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == "halsup") {
        return halsup::cli::main();
    }
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let done = if options.workers { workers::run(&options) } else { spawning::run(&options) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let mut cause = error.source();
            while let Some(next) = cause {
                eprintln!("  {next}");
                cause = next.source();
            }
            ExitCode::FAILURE
        }
    }
}
