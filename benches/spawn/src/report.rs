//! Samples, their quantiles, and the table with targets.

use std::fmt;

/// Measurements of one row, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<u64>);

impl Samples {
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn add(&mut self, nanoseconds: u64) {
        self.0.push(nanoseconds);
    }

    /// Adds one that was measured so often.
    pub fn add_many(&mut self, nanoseconds: u64, count: usize) {
        self.0.resize(self.0.len() + count, nanoseconds);
    }

    /// By how much each exceeds so many microseconds.
    pub fn beyond(&self, us: f64) -> Self {
        let most = (us * 1000.0) as u64;
        Self(self.0.iter().map(|ns| ns.saturating_sub(most)).collect())
    }

    /// The value that `percent` of the samples do not exceed, in microseconds; `None` without samples.
    pub fn quantile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get(last * percent / 100).map(|&ns| ns as f64 / 1000.0)
    }

    pub fn median(&self) -> Option<f64> {
        self.quantile(50)
    }
}

/// Whether a target is met; `None` where nothing could be measured.
pub struct Verdict {
    pub target: String,
    pub met: Option<bool>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = match self.met {
            Some(true) => "PASS",
            Some(false) => "MISS",
            None => "not measured",
        };
        write!(f, "{}: {met}", self.target)
    }
}

/// Prints one row of the latency table.
pub fn row(name: &str, samples: &Samples, verdicts: &[Verdict]) {
    let number = |percent| samples.quantile(percent).map_or_else(|| "-".to_owned(), |us| format!("{us:.0}"));
    let verdicts: Vec<String> = verdicts.iter().map(ToString::to_string).collect();
    let (p50, p90, p99) = (number(50), number(90), number(99));
    println!("{name:<58} {p50:>8} {p90:>8} {p99:>8}  {}", verdicts.join(" · "));
}

/// The head of the latency table.
pub fn head(title: &str) {
    println!("\n{title:<58} {:>8} {:>8} {:>8}  target", "p50 µs", "p90 µs", "p99 µs");
}

/// Whether half of the samples take at most so many microseconds.
pub fn at_most(samples: &Samples, us: f64) -> Verdict {
    Verdict { target: format!("≤ {us} µs"), met: samples.median().map(|median| median <= us) }
}

/// Whether `percent` of the samples take at most so many microseconds.
pub fn quantile_at_most(samples: &Samples, percent: usize, us: f64) -> Verdict {
    let met = samples.quantile(percent).map(|quantile| quantile <= us);
    Verdict { target: format!("p{percent} ≤ {us} µs"), met }
}
