//! The lines of `audit.log` and `security.log`: from facts to text and back. No files, no clock.
//!
//! ```text
//! 2026-01-26T12:00:00.000Z container=default event=worker_spawn user=halsup resource=web.0 pid=4711
//! 2026-01-26T12:00:00.000Z | HIGH | OOM_KILL | container=default worker=web.0 kills=1
//! ```
//!
//! A line is one line whatever is in its values: what could end it, drive a terminal or pass for another field is escaped,
//! and a value with a blank, a quote, `=` or `|` stands in quotes.

use std::borrow::Cow;

use serde::Serialize;

use super::escape;

/// The longest value, in bytes; a longer one is cut.
const VALUE_BYTES_MAX: usize = 512;

/// How grave an entry of the security log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// To be known.
    Low,
    /// To be looked at.
    Medium,
    /// To be acted on.
    High,
}

impl Severity {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "LOW",
            Self::Medium => "MEDIUM",
            Self::High => "HIGH",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Low, Self::Medium, Self::High].into_iter().find(|severity| severity.as_str() == text)
    }
}

/// One line of either log, as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// RFC 3339.
    pub time: String,
    /// Of the security log alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// `worker_spawn`, `OOM_KILL`.
    pub event: String,
    /// Names and values in their order, `container` first; `user` and `resource`, or `worker`, are among them.
    pub fields: Vec<(String, String)>,
}

impl AuditEntry {
    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The line of `audit.log`, with its end.
    #[must_use]
    pub fn audit_line(&self) -> String {
        let mut line = self.time.clone();
        let (container, rest) = self.split();
        push(&mut line, "container", container);
        push(&mut line, "event", &self.event);
        for (name, value) in rest {
            push(&mut line, name, value);
        }
        line.push('\n');
        line
    }

    /// The line of `security.log`, with its end.
    #[must_use]
    pub fn security_line(&self) -> String {
        let severity = self.severity.unwrap_or(Severity::Low).as_str();
        let mut line = format!("{} | {severity} | {} |", self.time, value(&self.event));
        for (name, value) in &self.fields {
            push(&mut line, name, value);
        }
        line.push('\n');
        line
    }

    fn split(&self) -> (&str, impl Iterator<Item = &(String, String)>) {
        let container = self.field("container").unwrap_or("-");
        (container, self.fields.iter().filter(|(name, _)| name != "container"))
    }

    /// Reads a line of either log; `None` if it is none.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches('\n');
        let mut parts = line.splitn(4, " | ");
        if let (Some(time), Some(severity), Some(event), Some(rest)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
            && let Some(severity) = Severity::parse(severity)
            // Behind a blank it would be a value of the other format that looks like this one.
            && !time.contains(' ')
        {
            let fields = fields(rest)?;
            return Some(Self { time: time.to_owned(), severity: Some(severity), event: event.to_owned(), fields });
        }
        let (time, rest) = line.split_once(' ')?;
        let mut fields = fields(rest)?;
        let at = fields.iter().position(|(name, _)| name == "event")?;
        let (_, event) = fields.remove(at);
        Some(Self { time: time.to_owned(), severity: None, event, fields })
    }
}

fn push(line: &mut String, name: &str, text: &str) {
    line.push(' ');
    line.push_str(name);
    line.push('=');
    line.push_str(&value(text));
}

/// A value as it stands in a line.
fn value(text: &str) -> Cow<'_, str> {
    let end = (0..=text.len().min(VALUE_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let safe = escape::text(text.get(..end).unwrap_or_default());
    let is_plain = |c: char| !matches!(c, ' ' | '"' | '=' | '|' | '\\');
    if !safe.is_empty() && safe.chars().all(is_plain) {
        return safe;
    }
    // What was escaped above keeps its backslash doubled, so that it is read back as it is written.
    Cow::Owned(format!("\"{}\"", safe.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Reads `name=value` pairs.
fn fields(mut rest: &str) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            return Some(fields);
        }
        let (name, after) = rest.split_once('=')?;
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (value, left) = after.split_once(' ').unwrap_or((after, ""));
                (value.to_owned(), left)
            }
        };
        fields.push((name.to_owned(), value));
        rest = left;
    }
}

fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::seeded::Seeded;
    use super::*;

    fn entry(severity: Option<Severity>, value: &str) -> AuditEntry {
        AuditEntry {
            time: "2026-01-26T12:00:00.000Z".into(),
            severity,
            event: if severity.is_some() { "OOM_KILL".into() } else { "worker_spawn".into() },
            fields: [("container", "default"), ("user", "uid 0"), ("resource", value)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        }
    }

    #[test]
    fn lines_are_those_of_the_two_formats() {
        let audit = entry(None, "web.0").audit_line();
        let expected = "2026-01-26T12:00:00.000Z container=default event=worker_spawn user=\"uid 0\" resource=web.0\n";
        assert_eq!(audit, expected);
        let security = entry(Some(Severity::High), "web.0").security_line();
        let expected = "2026-01-26T12:00:00.000Z | HIGH | OOM_KILL | container=default user=\"uid 0\" resource=web.0\n";
        assert_eq!(security, expected);
    }

    #[test]
    fn no_value_makes_a_second_line_or_another_field() {
        for hostile in [
            "a\n2026 container=x event=fake",
            "x event=fake",
            "\" user=root \"",
            "a | HIGH | FAKE |",
            "\u{1b}[2J",
            "\\\"",
        ] {
            let wanted = escape::text(hostile).into_owned();
            for severity in [None, Some(Severity::Low)] {
                let entry = entry(severity, hostile);
                let line = if severity.is_some() { entry.security_line() } else { entry.audit_line() };
                assert_eq!(line.matches('\n').count(), 1, "{line}");
                assert!(!line.contains('\u{1b}'), "{line}");
                let read = AuditEntry::parse(&line).unwrap();
                assert_eq!((&read.event, read.field("resource")), (&entry.event, Some(wanted.as_str())), "{line}");
                assert_eq!(read.fields.len(), 3, "{line}");
            }
        }
        let long = entry(None, &"ä".repeat(10_000)).audit_line();
        assert!(long.len() < 700, "{}", long.len());
    }

    #[test]
    fn what_was_written_is_read_back_and_nothing_makes_it_panic() {
        let pieces: &[&[u8]] = &[b" ", b"=", b"\"", b"|", b"\\", b"\n", b" | HIGH | ", b"event=", "ä".as_bytes()];
        for seed in 0..3_000 {
            let mut seeded = Seeded::new(seed);
            let text = escape::bytes(&seeded.bytes(60, pieces));
            let written = entry(None, &text);
            let line = written.audit_line();
            let read = AuditEntry::parse(&line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(read.field("resource").unwrap(), escape::text(&text));
            drop(AuditEntry::parse(&text));
            drop(AuditEntry::parse(&escape::bytes(&seeded.mutated(line.as_bytes()))));
        }
    }
}
