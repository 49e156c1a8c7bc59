//! Rows of requests, for people or for programs.

use serde_json::{Value, json};

use crate::report::{Samples, Verdict};

/// Where rows go.
pub struct Rows {
    json: bool,
}

/// What was measured of one conversation.
#[derive(Default)]
pub struct Row {
    /// How long each took.
    pub samples: Samples,
    /// How long all of them took together, in nanoseconds; 0 where that says nothing.
    pub wall: u64,
    /// How many there were, where there are not as many samples.
    pub counted: Option<u64>,
}

impl Row {
    /// How many in a second; 0 where that says nothing.
    pub fn per_second(&self) -> f64 {
        let count = self.counted.map_or(self.samples.len() as f64, |count| count as f64);
        if self.wall == 0 { 0.0 } else { count * 1e9 / self.wall as f64 }
    }
}

impl Rows {
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn head(&self, title: &str) {
        if !self.json {
            println!("\n{title:<58} {:>8} {:>8} {:>9}  target", "p50 µs", "p99 µs", "per s");
        }
    }

    /// One row, how it was met, and what else is known of it.
    pub fn row(&self, name: &str, row: &Row, verdicts: &[Verdict], more: &[(&str, f64)]) {
        let (p50, p99) = (row.samples.quantile(50), row.samples.quantile(99));
        if self.json {
            let mut object = json!({ "row": name, "p50_us": p50, "p99_us": p99, "per_second": row.per_second() });
            for (key, value) in more {
                object[*key] = json!(value);
            }
            let told = verdicts.iter().map(|verdict| json!({ "target": verdict.target, "met": verdict.met }));
            object["targets"] = Value::Array(told.collect());
            return println!("{object}");
        }
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |us| format!("{us:.0}"));
        let verdicts: Vec<String> = verdicts.iter().map(ToString::to_string).collect();
        let rate = row.per_second();
        let (p50, p99) = (number(p50), number(p99));
        println!("{name:<58} {p50:>8} {p99:>8} {rate:>9.1}  {}", verdicts.join(" · "));
        for (key, value) in more {
            println!("    {}: {value:.2}", key.replace('_', " "));
        }
    }
}
