//! OpenMetrics text, version 1.0.0: families with their type and help, samples with escaped labels, and the end.

use std::fmt::{Display, Write as _};

/// What it is served as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, or begins anew; its samples end in `_total`.
    Counter,
    /// Says by its labels; its samples end in `_info` and are 1.
    Info,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Info => "info",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Gauge => "",
            Self::Counter => "_total",
            Self::Info => "_info",
        }
    }
}

/// A text that grows family by family.
#[derive(Debug, Default)]
pub(crate) struct Exposition(String);

/// One family, to which samples are added.
#[derive(Debug)]
pub(crate) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    kind: Kind,
}

impl Exposition {
    /// Begins a family; its name ends in its unit, if it has one.
    pub(crate) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        self.write(format_args!("# TYPE {name} {}\n", kind.word()));
        if let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
            self.write(format_args!("# UNIT {name} {unit}\n"));
        }
        self.write(format_args!("# HELP {name} {}\n", escaped(help)));
        Family { text: &mut self.0, name, kind }
    }

    /// The whole text.
    pub(crate) fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        write(&mut self.0, arguments);
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub(crate) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        write(self.text, format_args!("{}{}", self.name, self.kind.suffix()));
        for (at, (name, value)) in labels.iter().enumerate() {
            write(self.text, format_args!("{}{name}=\"{}\"", if at == 0 { "{" } else { "," }, escaped(value)));
        }
        write(self.text, format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
        self
    }

    /// The same for what may not be known.
    pub(crate) fn known(&mut self, labels: &[(&str, &str)], value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.sample(labels, value),
            None => self,
        }
    }
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string takes everything.
    if text.write_fmt(arguments).is_err() {
        tracing::debug!("write to a string");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

/// Microseconds as seconds.
pub(crate) fn seconds(usec: u64) -> String {
    format!("{}.{:06}", usec / 1_000_000, usec % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_escaped_and_ends() {
        let mut text = Exposition::default();
        let mut family = text.family("a_seconds", Kind::Counter, "Time \"spent\"\nhere.");
        family.sample(&[("pool", "we\"b\\\n"), ("state", "up")], seconds(1_000_002)).known(&[], None::<u64>);
        text.family("b", Kind::Gauge, "B.").sample(&[], 1);
        assert_eq!(
            text.end(),
            "# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds Time \\\"spent\\\"\\nhere.\n\
             a_seconds_total{pool=\"we\\\"b\\\\\\n\",state=\"up\"} 1.000002\n\
             # TYPE b gauge\n# HELP b B.\nb 1\n# EOF\n"
        );
    }
}
