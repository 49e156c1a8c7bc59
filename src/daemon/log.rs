//! The daemon's own log: what of it is shown, and how a line looks for people, for programs and for the journal.
//!
//! Where lines go, and what becomes of them when nobody reads, is `log_sink`'s. Never waits and never fails its caller: a
//! log that could stop the daemon would be the weakest part of it.

use std::fmt::{Debug, Display, Write as _};
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{Registry, reload};

use super::clock;
use super::log_sink::Sink;
use crate::protocol::escape;
use crate::spec::LogFormat;

/// What may stand before `=` in a filter: the targets that the daemon's events carry.
pub(super) const CATEGORIES: [&str; 7] = crate::spec::LOG_CATEGORIES;
/// What categories that a filter does not name are shown from.
const LEVEL_DEFAULT: LevelFilter = LevelFilter::INFO;
/// A longer line is cut, in bytes.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter means nothing.
    #[error("set log filter: {0}")]
    Filter(String),
    /// This process logs already.
    #[error("install the log")]
    Install(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// What changes the log while it runs.
#[derive(Debug)]
pub(super) struct LogHandle {
    filter: String,
    targets: reload::Handle<Targets, Registry>,
    #[cfg(test)]
    lost: Arc<AtomicU64>,
}

impl LogHandle {
    /// Begins to log to standard error, for the whole process.
    ///
    /// # Errors
    /// [`LogError`]: the filter is not one, or this was called before.
    pub(super) fn install(filter: &str, format: LogFormat) -> Result<Self, LogError> {
        let (handle, subscriber) = Self::build(filter, format, Sink::stderr())?;
        tracing::subscriber::set_global_default(subscriber).map_err(LogError::Install)?;
        Ok(handle)
    }

    fn build(
        filter: &str,
        format: LogFormat,
        sink: Sink,
    ) -> Result<(Self, impl Subscriber + Send + Sync + use<>), LogError> {
        let (layer, targets) = reload::Layer::new(targets(filter).map_err(LogError::Filter)?);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines { format, sink: Mutex::new(sink), lost: Arc::clone(&lost) };
        let handle = Self {
            filter: filter.to_owned(),
            targets,
            #[cfg(test)]
            lost,
        };
        Ok((handle, tracing_subscriber::registry().with(layer).with(lines)))
    }

    /// Changes what is shown, from the next event on, and gives back the filter before.
    ///
    /// # Errors
    /// One sentence on what is wrong with the filter; then nothing has changed.
    pub(super) fn set(&mut self, filter: &str) -> Result<String, String> {
        let targets = targets(filter)?;
        self.targets.reload(targets).map_err(|error| error.to_string())?;
        Ok(std::mem::replace(&mut self.filter, filter.to_owned()))
    }

    /// The filter in force, as it was written.
    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    /// How many lines were dropped because standard error took none; the next line that is read says so too.
    #[cfg(test)]
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Reads `info,heartbeat=debug`.
fn targets(filter: &str) -> Result<Targets, String> {
    let mut targets = Targets::new().with_default(LEVEL_DEFAULT);
    for directive in filter.split(',').map(str::trim) {
        let (category, word) = match directive.split_once('=') {
            Some((category, word)) => (Some(category.trim()), word.trim()),
            None => (None, directive),
        };
        let level = level(word).ok_or_else(|| {
            format!("{:?} is not a level; expected off, error, warn, info, debug or trace", shown(word))
        })?;
        targets = match category {
            None => targets.with_default(level),
            Some(category) if CATEGORIES.contains(&category) || category.starts_with("halsup") => {
                targets.with_target(category, level)
            }
            Some(category) => {
                return Err(format!("{:?} is not a category; expected {}", shown(category), CATEGORIES.join(", ")));
            }
        };
    }
    Ok(targets)
}

/// Only the six words: the type itself would read numbers too.
fn level(word: &str) -> Option<LevelFilter> {
    ["off", "error", "warn", "info", "debug", "trace"].contains(&word).then(|| LevelFilter::from_str(word).ok())?
}

fn shown(word: &str) -> String {
    word.chars().take(40).collect()
}

/// Turns events into lines.
#[derive(Debug)]
struct Lines {
    format: LogFormat,
    sink: Mutex<Sink>,
    lost: Arc<AtomicU64>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let line = line(self.format, &sink, *metadata.level(), metadata.target(), &fields);
        let lost = self.lost.load(Ordering::Relaxed);
        if sink.behind() {
            // Readers are told of the hole where it is, not at the end.
            let message = "lines of this log were lost, nobody read them".to_owned();
            let hole = Fields { message, others: Map::from_iter([("lost_total".to_owned(), lost.into())]) };
            let hole = self::line(self.format, &sink, Level::WARN, "log", &hole);
            if !sink.write(hole.as_bytes()) {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        if !sink.write(line.as_bytes()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            (name, value) => {
                self.others.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        let mut chain = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            chain.push_str(": ");
            chain.push_str(&error.to_string());
            cause = error.source();
        }
        self.put(field, Value::String(chain));
    }
}

/// One line with its end. Workers' own words are among the fields: nothing of them may move a cursor or begin a line.
fn line(format: LogFormat, sink: &Sink, level: Level, target: &str, fields: &Fields) -> String {
    let mut line = match sink.is_journal() {
        true => format!("<{}>", priority(level)),
        false => String::new(),
    };
    let time = (!sink.is_journal()).then(|| clock::rfc3339(clock::wall()));
    match format {
        LogFormat::Json => json(&mut line, time, level, target, fields),
        LogFormat::Text => text(&mut line, time, level, target, fields, sink.is_terminal()),
    }
    if line.len() > LINE_BYTES_MAX {
        line = cut(line, format, sink, level, target, fields);
    }
    line.push('\n');
    line
}

/// The line with its message alone, shortened: half a JSON object would be no object.
fn cut(line: String, format: LogFormat, sink: &Sink, level: Level, target: &str, fields: &Fields) -> String {
    // A character of the message becomes at most six bytes of a line; the rest of the line is short.
    let message: String = fields.message.chars().take(LINE_BYTES_MAX / 8).collect();
    let mut short = Fields { message, others: Map::new() };
    short.others.insert("cut_bytes".to_owned(), line.len().into());
    drop(line);
    let mut line = self::line(format, sink, level, target, &short);
    line.pop();
    line
}

fn json(line: &mut String, time: Option<String>, level: Level, target: &str, fields: &Fields) {
    let mut object = Map::new();
    object.insert("level".to_owned(), level.as_str().to_ascii_lowercase().into());
    if let Some(time) = time {
        object.insert("timestamp".to_owned(), time.into());
    }
    object.insert("msg".to_owned(), fields.message.clone().into());
    object.insert("category".to_owned(), category(target).into());
    for (name, value) in &fields.others {
        object.entry(name.as_str()).or_insert_with(|| value.clone());
    }
    line.push_str(&escape::json(&Value::Object(object).to_string()));
}

fn text(line: &mut String, time: Option<String>, level: Level, target: &str, fields: &Fields, colours: bool) {
    if let Some(time) = time {
        let (on, off) = if colours { (colour(level), "\x1b[0m") } else { ("", "") };
        add(line, format_args!("{time} {on}{level:<5}{off} "));
    }
    add(line, format_args!("{}: {}", category(target), escape::text(&fields.message)));
    for (name, value) in &fields.others {
        match value {
            Value::String(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
                add(line, format_args!(" {name}={}", escape::text(&format!("\"{}\"", text.replace('"', "'")))));
            }
            Value::String(text) => add(line, format_args!(" {name}={}", escape::text(text))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                add(line, format_args!(" {name}={value}"));
            }
        }
    }
}

fn add(line: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string fails only where a Display does; such a field is then missing, and the line is not.
    if line.write_fmt(what).is_err() {
        line.push('?');
    }
}

/// Events without a category of their own are named by the room they come from.
fn category(target: &str) -> &str {
    target.strip_prefix("halsup::").unwrap_or(target)
}

/// The journal's priorities, sd-daemon(3).
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG | Level::TRACE => "\x1b[2m",
    }
}

/// Goes on after a failure that changes nothing, and logs it with the reason why it may.
pub(super) fn best_effort<T, E: Display>(result: Result<T, E>, why: &str) {
    if let Err(error) = result {
        tracing::debug!(target: "log", %error, why, "ignored");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn logged(filter: &str, format: LogFormat, sink: impl FnOnce(UnixStream) -> Sink, what: impl FnOnce()) -> String {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (handle, subscriber) = LogHandle::build(filter, format, sink(writer)).unwrap();
        tracing::subscriber::with_default(subscriber, what);
        drop(handle);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_line_for_people_has_time_level_category_and_fields() {
        let text = logged("info", LogFormat::Text, Sink::of, || {
            tracing::info!(target: "pool", worker = "web.3", count = 2, error = "no such file", "started");
            tracing::debug!(target: "pool", "not shown");
        });
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{text}");
        assert_eq!(rest, "INFO  pool: started count=2 error=\"no such file\" worker=web.3\n");
    }

    #[test]
    fn what_a_worker_says_stays_on_its_line() {
        let evil = "x\n<0>pool: \u{1b}[2Jgone";
        let text =
            logged("info", LogFormat::Text, Sink::of, || tracing::info!(target: "worker", said = evil, "{evil}"));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let text =
            logged("info", LogFormat::Json, Sink::of, || tracing::info!(target: "worker", said = evil, "{evil}"));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["said"], evil);
    }

    #[test]
    fn json_lines_have_the_keys_that_collectors_look_for() {
        let text = logged(
            "info",
            LogFormat::Json,
            Sink::of,
            || tracing::warn!(target: "worker", duration = 7, level = "x", "m"),
        );
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["level"], &value["msg"], &value["duration"]), (&"warn".into(), &"m".into(), &7.into()));
        assert!(humantime::parse_rfc3339(value["timestamp"].as_str().unwrap()).is_ok());
    }

    #[test]
    fn the_journal_gets_a_priority_and_no_time() {
        let text = logged("trace", LogFormat::Text, Sink::journal, || {
            tracing::error!(target: "control", "one");
            tracing::trace!(target: "control", "two");
        });
        assert_eq!(text, "<3>control: one\n<7>control: two\n");
    }

    #[test]
    fn an_endless_line_is_cut_and_still_json() {
        let text = logged("info", LogFormat::Json, Sink::of, || tracing::info!(bulk = "\u{7f}".repeat(40_000), "kept"));
        assert!(text.len() <= LINE_BYTES_MAX, "{}", text.len());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["msg"], "kept");
    }

    #[test]
    fn levels_change_by_category_while_running() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (mut handle, subscriber) = LogHandle::build("info", LogFormat::Text, Sink::journal(writer)).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let both = || {
                tracing::debug!(target: "pool", "pool");
                tracing::debug!(target: "heartbeat", "heartbeat");
            };
            both();
            assert_eq!(handle.set("info,heartbeat=debug"), Ok("info".to_owned()));
            both();
            assert!(handle.set("info,hartbeat=debug").is_err());
            assert_eq!(handle.filter(), "info,heartbeat=debug");
            both();
            assert_eq!(handle.set("off"), Ok("info,heartbeat=debug".to_owned()));
            tracing::error!(target: "pool", "silence");
        });
        assert_eq!(handle.lost(), 0);
        drop(handle);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "<7>heartbeat: heartbeat\n".repeat(2));
    }

    #[test]
    fn a_filter_that_means_nothing_is_one_sentence() {
        let sentence = |filter| targets(filter).unwrap_err();
        assert_eq!(sentence("loud"), "\"loud\" is not a level; expected off, error, warn, info, debug or trace");
        assert_eq!(sentence("info,pool=3"), "\"3\" is not a level; expected off, error, warn, info, debug or trace");
        assert_eq!(
            sentence("pols=debug"),
            "\"pols\" is not a category; expected pool, worker, heartbeat, dispatch, control, spawn, log"
        );
        assert!(targets("").is_err());
        assert!(targets("warn, pool = trace,halsup::daemon=debug").is_ok());
    }

    #[test]
    fn a_reader_that_stops_reading_stops_nobody_and_learns_what_it_missed() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (handle, subscriber) = LogHandle::build("info", LogFormat::Text, Sink::journal(writer)).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            while handle.lost() < 10 {
                tracing::info!(target: "pool", bulk = "x".repeat(1_000), "line");
            }
            reader.set_nonblocking(true).unwrap();
            let mut sunk = Vec::new();
            assert!(reader.read_to_end(&mut sunk).is_err(), "would block at its end");
            tracing::info!(target: "pool", "again");
            let mut text = String::new();
            assert!(reader.read_to_string(&mut text).is_err(), "would block at its end");
            let expected = "<4>log: lines of this log were lost, nobody read them lost_total=10\n<6>pool: again\n";
            assert_eq!(text.trim_start_matches('\n'), expected);
            drop(reader);
            tracing::info!(target: "pool", "to nobody");
        });
        assert_eq!(handle.lost(), 11);
    }
}
