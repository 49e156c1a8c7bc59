//! `halsup audit`: who did what, and what is to be looked at; read from the files, with or without a daemon.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};

use super::context::Context;
use super::error::Error;
use super::stopwatch;
use super::table::table;
use crate::protocol::audit::AuditEntry;
use crate::protocol::escape;

/// As many rotated files as a daemon keeps.
const ROTATED_MAX: u32 = 5;
/// No line is longer, in bytes.
const LINE_BYTES_MAX: usize = 32 << 10;

/// Ask the audit log (who did what) and the security log (what is to be looked at).
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Query(Query),
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Query(verb) => verb.run(context),
        }
    }
}

/// Show entries of the audit log, oldest first; needs the right to read it, which root has.
#[derive(Debug, Args)]
pub(super) struct Query {
    /// The security log instead.
    #[arg(long)]
    security: bool,
    /// Only what is younger: 30m, 7d, or a time such as 2026-01-26T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// Only this event, such as worker_spawn or OOM_KILL.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Only this worker, such as web.3.
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,
    /// Only what this uid did; halsup for what happened by itself.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// How often each event happened, instead of the events.
    #[arg(long)]
    summary: bool,
}

fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(age) = crate::spec::parse_duration(text) {
        return stopwatch::wall().checked_sub(age).ok_or_else(|| "an age that lies after 1970".to_owned());
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_neither| "an age such as 30m or 7d, or a time such as 2026-01-26T12:00:00Z".to_owned())
}

impl Query {
    fn run(self, context: &Context) -> Result<(), Error> {
        let logs = context.state_dir()?.join("logs");
        let name = if self.security { "security" } else { "audit" };
        let mut counted: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut found = false;
        for path in files(&logs, name) {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(Error::ReadFile { path, source }),
            };
            found = true;
            for line in lines(BufReader::new(file)) {
                let line = line.map_err(|source| Error::ReadFile { path: path.clone(), source })?;
                let Some(entry) = AuditEntry::parse(&line).filter(|entry| self.wants(entry)) else { continue };
                if self.summary {
                    let severity = entry.severity.map_or_else(|| "-".to_owned(), |one| one.as_str().to_owned());
                    let count = counted.entry((severity, entry.event)).or_default();
                    *count = count.saturating_add(1);
                } else if context.output.is_json() {
                    context.output.json_line(&entry)?;
                } else {
                    context.output.text(&escape::line(&line))?;
                }
            }
        }
        if !found {
            return Err(Error::FileMissingYet { path: logs.join(format!("{name}.log")) });
        }
        if self.summary { summary(context, &counted) } else { Ok(()) }
    }

    fn wants(&self, entry: &AuditEntry) -> bool {
        let is = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_ref().is_none_or(|wanted| value == Some(wanted.as_str()))
        };
        let time = || humantime::parse_rfc3339(&entry.time).ok();
        let worker = if self.security { entry.field("worker") } else { entry.field("resource") };
        is(&self.event, Some(&entry.event))
            && is(&self.worker, worker)
            && is(&self.user, entry.field("user"))
            && self.since.is_none_or(|since| time().is_some_and(|time| time >= since))
    }
}

/// The files of a log, the oldest first.
fn files(logs: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let rotated = (1..=ROTATED_MAX).rev().map(move |number| format!(".{number}"));
    rotated.chain([String::new()]).map(move |end| logs.join(format!("{name}.log{end}")))
}

/// The lines of a file; one that is longer than any of the daemon's is cut, and what is not UTF-8 is replaced.
fn lines(mut file: BufReader<File>) -> impl Iterator<Item = std::io::Result<String>> {
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match file.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => {
                line.truncate(LINE_BYTES_MAX);
                Some(Ok(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned()))
            }
            Err(error) => Some(Err(error)),
        }
    })
}

fn summary(context: &Context, counted: &BTreeMap<(String, String), u64>) -> Result<(), Error> {
    if context.output.is_json() {
        return counted.iter().try_for_each(|((severity, event), count)| {
            context.output.json_line(&serde_json::json!({ "severity": severity, "event": event, "count": count }))
        });
    }
    let rows = counted.iter().map(|((severity, event), count)| [severity.clone(), event.clone(), count.to_string()]);
    context.output.text(&table(["SEVERITY", "EVENT", "COUNT"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_from_the_oldest_on() {
        let names: Vec<String> = files(Path::new("/l"), "audit").map(|path| path.display().to_string()).collect();
        assert_eq!(names.first().map(String::as_str), Some("/l/audit.log.5"));
        assert_eq!(names.last().map(String::as_str), Some("/l/audit.log"));
    }

    #[test]
    fn an_age_and_a_time_are_understood() {
        assert!(since("30m").unwrap() < stopwatch::wall());
        let at = since("2001-09-09T01:46:40Z").unwrap();
        assert_eq!(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_000_000_000);
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn entries_are_chosen_by_what_is_in_them() {
        let line = "2026-01-26T12:00:00.000Z container=default event=order user=1000 resource=web.0";
        let entry = AuditEntry::parse(line).unwrap();
        let query = |event: Option<&str>, worker: Option<&str>, user: Option<&str>, since: Option<&str>| Query {
            security: false,
            since: since.map(|text| super::since(text).unwrap()),
            event: event.map(Into::into),
            worker: worker.map(Into::into),
            user: user.map(Into::into),
            summary: false,
        };
        assert!(query(None, None, None, None).wants(&entry));
        assert!(query(Some("order"), Some("web.0"), Some("1000"), Some("2026-01-26T12:00:00Z")).wants(&entry));
        for other in [
            query(Some("x"), None, None, None),
            query(None, Some("web.1"), None, None),
            query(None, None, Some("0"), None),
            query(None, None, None, Some("2026-01-26T12:00:01Z")),
        ] {
            assert!(!other.wants(&entry), "{other:?}");
        }
    }
}
