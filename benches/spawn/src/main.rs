//! Measures halsup's spawning beside the kernel's floor and its peers, in one interleaved run; and, as `workers`, a daemon
//! with a thousand workers, as `claims`, warm claims, as `dispatch`, requests, and as `http`, requests by HTTP. Prints every row with its target of
//! DESIGN.md section 9.
//!
//! `cargo run --release --manifest-path benches/spawn/Cargo.toml -- [--runs N] [--quick] [--steps] [--descriptors N]
//! [workers [--count N] | claims | dispatch [--json] | http [--seconds N] [--json]]`

mod claims;
mod daemon;
mod dispatch;
mod floor;
mod hops;
mod http;
mod library;
mod peers;
mod place;
mod report;
mod rows;
mod spawning;
mod workers;

use std::process::ExitCode;

/// The bench stops at the first thing that goes wrong.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What is measured.
#[derive(Clone, Copy)]
pub enum What {
    Spawning,
    Claims,
    Workers,
    Dispatch,
    Http,
}

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
    /// How long each row of `http` is measured, where that is not as long as usual.
    pub seconds: Option<u32>,
    /// Whether rows of `dispatch` and `http` are printed for programs, one object a line.
    pub json: bool,
    /// What is measured.
    pub what: What,
}

fn options() -> std::result::Result<Options, String> {
    let mut options = Options {
        runs: 300,
        steps: false,
        descriptors: 0,
        count: 1000,
        seconds: None,
        json: false,
        what: What::Spawning,
    };
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
            "--seconds" => options.seconds = Some(number("--seconds")?),
            "--descriptors" => options.descriptors = number("--descriptors")?,
            "--quick" => options.runs = 50,
            "--steps" => options.steps = true,
            "--json" => options.json = true,
            "workers" => options.what = What::Workers,
            "claims" => options.what = What::Claims,
            "dispatch" => options.what = What::Dispatch,
            "http" => options.what = What::Http,
            other => {
                return Err(format!(
                    "{other:?} is not an option: --runs N, --quick, --steps, --descriptors N, --json, workers, --count N, claims, dispatch, \
                     http, --seconds N"
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(served) = dispatch::serve(&arguments).or_else(|| http::serve(&arguments)) {
        return told(served);
    }
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    let done = match options.what {
        What::Spawning => spawning::run(&options),
        What::Claims => claims::run(&options),
        What::Workers => workers::run(&options),
        What::Dispatch => dispatch::run(&options),
        What::Http => http::run(&options),
    };
    told(done)
}

fn told(done: Result<()>) -> ExitCode {
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
