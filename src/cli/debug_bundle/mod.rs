//! `halsup debug-bundle`: what somebody who is to help needs to see, in one archive, without secrets.
//!
//! Logs, what the daemon says of itself, its pools, volumes and ends, the configuration and what the host has. Works with a
//! daemon that does not answer: what it would have said is then missing, and the archive says so. Every text passes through
//! `redact`; of the configuration, values of environments are left out whatever they are.

mod redact;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use self::redact::{REMOVED, Redactor, is_secret_name};
use super::context::Context;
use super::error::Error;
use super::stopwatch;
use crate::archive::{Meta, Writer};
use crate::protocol::control::{
    CertificatesRequest, DoctorReply, EventsRequest, LAST_MAX, ListRequest, ListVolumesRequest, NoParameters, Request,
    StatsRequest,
};

/// How much of the end of one log is taken, in bytes.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// How many logs of workers are taken, the youngest.
const LOGS_MAX: usize = 200;
/// What the doctor says, by the daemon or without one.
const DOCTOR: &str = "doctor.json";
/// How much of a configuration is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Collect logs, state, status and versions into an archive, without secrets.
#[derive(Debug, Args)]
pub(super) struct DebugBundle {
    /// Where to write it [default: halsup-debug-TIME.tar.gz in this directory]; never over a file that is there.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    path: PathBuf,
    files: usize,
    bytes: u64,
    /// What could not be had, and why.
    missing: Vec<String>,
}

impl DebugBundle {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let now = stopwatch::wall();
        let stamp = humantime::format_rfc3339_seconds(now).to_string().replace([':', '-'], "");
        let name = format!("halsup-debug-{stamp}");
        let path = self.output.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
        let mut bundle = Bundle { files: Vec::new(), missing: Vec::new() };
        bundle.collect(context);
        let redactor = Redactor::new(secrets(context));
        let failed = |source| Error::WriteFile { path: path.clone(), source };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let mtime = now.duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let written = bundle.write(file, &name, &redactor, mtime);
        let file = written.inspect_err(|_| std::fs::remove_file(&path).unwrap_or_default()).map_err(failed)?;
        let bytes = file.metadata().map_or(0, |meta| meta.len());
        let made = Made { path, files: bundle.files.len(), bytes, missing: bundle.missing };
        context.output.answer(&made, |made| {
            let mut text = format!("Debug bundle: {}\n", made.path.display());
            for missing in &made.missing {
                text.push_str(&format!("without {missing}\n"));
            }
            text
        })
    }
}

/// What goes into the archive: names and texts.
#[derive(Debug)]
struct Bundle {
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

impl Bundle {
    fn add(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.files.push((name.into(), text.into()));
    }

    fn miss(&mut self, what: &str, why: impl std::fmt::Display) {
        self.missing.push(format!("{what}: {why}"));
    }

    fn collect(&mut self, context: &Context) {
        self.add("version.txt", versions());
        self.ask(context);
        if !self.files.iter().any(|(name, _)| name == DOCTOR) {
            match context.config_or_default() {
                Ok(config) => self.add(DOCTOR, json(&DoctorReply { checks: crate::daemon::doctor(&config) })),
                Err(error) => self.miss("the doctor without a daemon", error.sentence()),
            }
        }
        match read_end(context.config_path(), CONFIG_BYTES_MAX) {
            Ok(text) => self.add("config.toml", masked(&text)),
            Err(error) => self.miss("config.toml", error),
        }
        match context.state_dir() {
            Ok(state_dir) => self.files_of(&state_dir),
            Err(error) => self.miss("logs and state", error.sentence()),
        }
        if !self.missing.is_empty() {
            let text = self.missing.join("\n");
            self.add("missing.txt", text);
        }
    }

    /// What the daemon says.
    fn ask(&mut self, context: &Context) {
        let questions = [
            ("status.json", Request::Status(NoParameters {})),
            ("workers.json", Request::List(ListRequest { pool: None })),
            ("stats.json", Request::Stats(StatsRequest { target: None })),
            ("volumes.json", Request::ListVolumes(ListVolumesRequest { name: None, usage: Some(true) })),
            (
                "events.json",
                Request::Events(EventsRequest { last: Some(LAST_MAX), follow: None, telemetry: None, pool: None }),
            ),
            ("ends.json", Request::Certificates(CertificatesRequest { target: None, last: Some(LAST_MAX) })),
            (DOCTOR, Request::Doctor(NoParameters {})),
        ];
        for (name, question) in questions {
            let mut answers: Vec<Value> = Vec::new();
            let asked = context.client().and_then(|mut client| {
                client.call_more(&question, |answer: Value| {
                    answers.push(answer);
                    Ok(())
                })
            });
            match asked {
                Ok(()) => self.add(name, answers.iter().map(|answer| json(answer) + "\n").collect::<String>()),
                Err(error) => self.miss(name, error.sentence()),
            }
        }
    }

    /// Logs, and what lies in the state directory, by name and size.
    fn files_of(&mut self, state_dir: &Path) {
        let mut listed = String::new();
        for dir in ["", "logs", "logs/workers", "sessions", "pool", "pool/workers", "volumes", "quarantine"] {
            list(&mut listed, state_dir, dir);
        }
        self.add("state-files.txt", listed);
        let logs = state_dir.join("logs");
        for (dir, into) in [(logs.clone(), "logs"), (logs.join("workers"), "logs/workers")] {
            let mut found = match files_in(&dir) {
                Ok(found) => found,
                Err(error) => {
                    self.miss(into, error);
                    continue;
                }
            };
            found.truncate(LOGS_MAX);
            for path in found {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                match read_end(&path, LOG_BYTES_MAX) {
                    Ok(text) => self.add(format!("{into}/{name}"), text),
                    Err(error) => self.miss(&format!("{into}/{name}"), error),
                }
            }
        }
        match read_end(&state_dir.join("certificates"), LOG_BYTES_MAX) {
            Ok(text) => self.add("certificates", text),
            Err(error) => self.miss("certificates", error),
        }
    }

    fn write(&self, file: File, name: &str, redactor: &Redactor, mtime: u64) -> std::io::Result<File> {
        let mut writer = Writer::new(file);
        let meta = Meta { mode: 0o600, mtime, ..Meta::default() };
        for (file, text) in &self.files {
            let clean = redactor.clean(text);
            writer.file(format!("{name}/{file}").as_bytes(), meta, clean.as_bytes())?;
        }
        let file = writer.finish()?;
        file.sync_all()?;
        Ok(file)
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn versions() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let os = read("/etc/os-release");
    let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown").trim_matches('"');
    format!(
        "halsup {}\nkernel {}\nhost {}\nsystem {os}\n",
        env!("CARGO_PKG_VERSION"),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/sys/kernel/hostname"),
    )
}

/// The end of a file; what is not UTF-8 is replaced.
fn read_end(path: &Path, most: u64) -> std::io::Result<String> {
    // O_NONBLOCK: whatever lies there is not waited for.
    let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    file.seek(SeekFrom::Start(meta.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// O_NONBLOCK of open(2).
const O_NONBLOCK: i32 = 0o4000;

/// The files in a directory, the youngest first.
fn files_in(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Ok(meta) = entry.metadata()
            && meta.is_file()
        {
            found.push((std::cmp::Reverse((meta.mtime(), meta.mtime_nsec())), entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn list(listed: &mut String, state_dir: &Path, dir: &str) {
    let Ok(entries) = std::fs::read_dir(state_dir.join(dir)) else { return };
    let mut lines: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(format!("{:o} {} {} {:>10} {dir}/{name}\n", meta.mode(), meta.uid(), meta.gid(), meta.len()))
        })
        .collect();
    lines.sort();
    listed.extend(lines);
}

/// The secrets that are known: values of environments in the configuration, of this program's own environment by their names,
/// and the content of files in the state directory that are called tokens.
fn secrets(context: &Context) -> Vec<String> {
    let mut known = Vec::new();
    if let Ok(text) = read_end(context.config_path(), CONFIG_BYTES_MAX)
        && let Ok(table) = text.parse::<toml::Table>()
    {
        values(&toml::Value::Table(table), false, &mut known);
    }
    let own = std::env::vars_os().filter(|(name, _)| is_secret_name(&name.to_string_lossy()));
    known.extend(own.map(|(_, value)| value.to_string_lossy().into_owned()));
    let state_dir = context.state_dir().unwrap_or_default();
    for path in files_in(&state_dir).unwrap_or_default() {
        if path.file_name().is_some_and(|name| is_secret_name(&name.to_string_lossy())) {
            known.extend(read_end(&path, 4096));
        }
    }
    known
}

/// Every text below a table of environment, or behind a name that says that it is secret.
fn values(value: &toml::Value, is_secret: bool, known: &mut Vec<String>) {
    match value {
        toml::Value::String(text) if is_secret => known.push(text.clone()),
        toml::Value::Array(items) => items.iter().for_each(|item| values(item, is_secret, known)),
        toml::Value::Table(table) => {
            for (name, item) in table {
                values(item, is_secret || hides(name), known);
            }
        }
        toml::Value::String(_)
        | toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => {}
    }
}

fn hides(name: &str) -> bool {
    matches!(name, "env" | "secrets") || is_secret_name(name)
}

/// A configuration with everything masked that may be a secret.
fn masked(text: &str) -> String {
    match text.parse::<toml::Table>() {
        Ok(mut table) => {
            for (name, item) in &mut table {
                mask(name, item);
            }
            table.to_string()
        }
        // Where it is broken cannot be told from where its secrets are.
        Err(error) => format!("# left out, because it is no TOML: {}\n", error.message()),
    }
}

fn mask(name: &str, value: &mut toml::Value) {
    fn cover(value: &mut toml::Value) {
        match value {
            toml::Value::Table(table) => table.iter_mut().for_each(|(_, item)| cover(item)),
            toml::Value::Array(items) => items.iter_mut().for_each(cover),
            toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_) => *value = toml::Value::String(REMOVED.to_owned()),
        }
    }
    if hides(name) {
        return cover(value);
    }
    if let toml::Value::Table(table) = value {
        for (name, item) in table.iter_mut() {
            mask(name, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_its_shape_and_loses_its_secrets() {
        let text = "[daemon]\nlog_level = 'info'\n[pool.web]\ncommand = ['x']\nsize = 3\napi_token = 'abc'\n[pool.web.env]\nKEY = 'hunter2'\n";
        let clean = masked(text);
        assert!(clean.contains("size = 3") && clean.contains("KEY = \"<removed>\""), "{clean}");
        assert!(clean.contains("log_level = \"info\""), "{clean}");
        assert!(!clean.contains("hunter2") && !clean.contains("abc"), "{clean}");
        assert!(!masked("KEY = 'hunter2\n").contains("hunter2"), "what cannot be read is left out");
        let mut known = Vec::new();
        values(&toml::Value::Table(text.parse().unwrap()), false, &mut known);
        known.sort();
        assert_eq!(known, ["abc", "hunter2"]);
    }
}
