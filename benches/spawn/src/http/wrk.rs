//! wrk, which asks: run for some seconds, and what it has counted.
//!
//! By a script it tells each latency that it has seen, not quantiles alone: so slices can be put together. As `--latency` prints
//! them, latencies are corrected for what was not asked while an answer was late; so there can be more of them than answers.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::Result;
use crate::place::Place;
use crate::rows::Row;

const SCRIPT: &str = r#"
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("sum %d %d %d %d\n", summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
  for at = 1, #latency do
    local us, count = latency(at)
    io.write(string.format("at %d %d\n", us, count))
  end
end
"#;

/// What was answered, and what was not.
#[derive(Default)]
pub struct Tally {
    pub row: Row,
    /// Answers whose status is none of 2xx and 3xx.
    pub refused: u64,
    /// Connections that could not be made, broke, or were silent for ten seconds.
    pub broken: u64,
}

/// One that runs.
pub struct Wrk {
    pub child: Child,
    said: PathBuf,
}

impl Drop for Wrk {
    fn drop(&mut self) {
        // It has ended by itself, unless something went wrong.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("end wrk: {error}");
        }
    }
}

/// Whether it is installed.
pub fn find() -> Result<()> {
    // It has no option that does nothing, and fails whenever it asks nobody.
    let tried = Command::new("wrk").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.map(|_| ()).map_err(|error| format!("wrk asks, but cannot be run: {error}").into())
}

impl Wrk {
    pub fn start(place: &Place, url: &str, connections: usize, seconds: u32) -> Result<Self> {
        let (script, said) = (place.path("wrk.lua"), place.path("wrk.said"));
        fs::write(&script, SCRIPT)?;
        let mut command = Command::new("wrk");
        command.arg("--threads=1").arg(format!("--connections={connections}")).arg(format!("--duration={seconds}"));
        command.args(["--timeout=10", "--latency"]).arg("--script").arg(script).arg(url);
        let child = command.stdout(File::create(&said)?).spawn()?;
        Ok(Self { child, said })
    }

    /// Waits for its end, and adds what it has counted.
    pub fn end(mut self, tally: &mut Tally) -> Result<()> {
        let status = self.child.wait()?;
        let said = fs::read_to_string(&self.said)?;
        if !status.success() {
            return Err(format!("wrk: {status}\n{said}").into());
        }
        let mut is_summed = false;
        for line in said.lines() {
            let mut words = line.split(' ');
            let kind = words.next();
            let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
            match (kind, numbers.as_slice()) {
                (Some("sum"), &[requests, us, refused, broken]) => {
                    is_summed = true;
                    tally.row.counted = Some(tally.row.counted.unwrap_or(0) + requests);
                    tally.row.wall += us * 1000;
                    tally.refused += refused;
                    tally.broken += broken;
                }
                (Some("at"), &[us, count]) => tally.row.samples.add_many(us * 1000, usize::try_from(count)?),
                _ => {}
            }
        }
        if is_summed { Ok(()) } else { Err(format!("wrk has counted nothing:\n{said}").into()) }
    }
}
