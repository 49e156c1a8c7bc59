//! What is promised of what operators write: the configuration, names, targets, and the small grammars of values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use halsup::protocol::control::Target;
use halsup::spec::{
    CONFIG_ERRORS_MAX, Config, ConfigErrors, InstanceName, Placeholders, PoolName, check_pools, expand, format_bytes,
    format_cpus, format_duration, format_signal, is_unlimited, parse_bytes, parse_config, parse_cpus, parse_duration,
    parse_port, parse_signal, reference,
};

/// The longest sentence about one mistake, in bytes: it quotes the operator, but never a whole file.
const SENTENCE_BYTES_MAX: usize = 4_096;

/// A configuration; behind a first NUL, `NAME=value` for each variable of the environment, separated by NULs.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let text = parts.next().unwrap_or_default();
    let environment: BTreeMap<String, String> =
        parts.filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();
    let nothing = BTreeMap::new();
    let alone = parse_config(text, &nothing);
    outcome(text, &alone, &nothing);
    if !environment.is_empty() {
        let with_environment = parse_config(text, &environment);
        outcome(text, &with_environment, &environment);
        static REFERENCE: LazyLock<String> = LazyLock::new(reference);
        // Those that are read are in the reference.
        let unread = |name: &String| !REFERENCE.contains(&format!("`{name}`"));
        if environment.keys().all(unread) {
            assert_eq!(with_environment, alone, "a variable of somebody else's changes something");
        }
    }
}

fn outcome(text: &str, outcome: &Result<Config, ConfigErrors>, environment: &BTreeMap<String, String>) {
    match outcome {
        Ok(config) => {
            right(config);
            let commented = format!("{text}\n# a comment\n");
            assert_eq!(parse_config(&commented, environment).as_ref(), Ok(config), "a comment changes something");
        }
        Err(errors) => wrong(text, errors),
    }
}

/// Of a configuration that the daemon would carry out.
fn right(config: &Config) {
    check_pools(&config.daemon, &config.pools).expect("what was read passes the check of pools");
    let names: BTreeSet<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names.len(), config.pools.len(), "two pools have one name");
    assert!(names.into_iter().all(is_pool_name));
    for pool in &config.pools {
        let size = pool.policy.size;
        assert!(size.min <= size.max, "{size:?}");
        assert!(!pool.service || size.max == 1, "a service of {size:?}");
        assert!(pool.command.first().is_some_and(|program| !program.is_empty()), "no program");
        let texts = pool.command.iter().chain(pool.env.keys()).chain(pool.env.values());
        assert!(texts.clone().all(|text| !text.contains('\0')), "a NUL would end the text for the kernel");
        assert!(pool.env.keys().all(|name| !name.is_empty() && !name.contains('=')));
        if let Some(base) = pool.base_port {
            assert!(base > 0 && u32::from(base) + size.max.max(1) - 1 <= 65_535, "{base} and {size:?}");
        }
        assert!((1..=64).contains(&pool.policy.stop.signal));
    }
}

/// Of a configuration that was refused.
fn wrong(text: &str, errors: &ConfigErrors) {
    assert!((1..=CONFIG_ERRORS_MAX).contains(&errors.errors().len()));
    let lines = text.split('\n').count();
    for error in errors.errors() {
        let sentence = error.to_string();
        assert!(!sentence.contains(char::is_control), "drives a terminal: {sentence:?}");
        assert!(sentence.len() <= SENTENCE_BYTES_MAX, "a sentence of {} bytes", sentence.len());
        assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "line {:?} of {lines}", error.line);
        assert!(error.column.is_none_or(|column| column >= 1));
    }
    assert!(errors.errors().is_sorted_by_key(|error| (error.line, error.column)), "not in the file's order");
}

/// Names, targets and values, each from the whole text.
pub fn target_names(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    assert_eq!(PoolName::parse(text).is_ok(), is_pool_name(text), "{text:?}");
    assert_eq!(InstanceName::parse(text).is_ok(), is_name(text), "{text:?}");
    match text.parse::<Target>() {
        Ok(target) => {
            assert_eq!(target.to_string(), text, "a target has more than one name");
            assert!(target.pool().is_none_or(|pool| is_pool_name(pool.as_str())));
        }
        Err(error) => assert!(error.shown.chars().count() <= 80 && !error.to_string().contains(char::is_control)),
    }
    values(text);
    template(text);
}

/// The grammar of names, written apart: `[a-z0-9][a-z0-9-]{0,62}`.
fn is_name(text: &str) -> bool {
    let of_name = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
    (1..=63).contains(&text.len()) && text.chars().all(of_name) && !text.starts_with('-')
}

/// A pool's name is a name that does not mean every pool.
pub(super) fn is_pool_name(text: &str) -> bool {
    is_name(text) && text != "all"
}

/// What is a value is in its range, and is the same value when it is written and read again.
fn values(text: &str) {
    let mut meanings = 0;
    if let Ok(bytes) = parse_bytes(text) {
        meanings += 1;
        assert!(i64::try_from(bytes).is_ok());
        assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes), "{text:?}");
    }
    if let Ok(millis) = parse_cpus(text) {
        meanings += 1;
        assert!((10..=1_024_000).contains(&millis), "{text:?}");
        assert_eq!(parse_cpus(&format_cpus(millis)), Ok(millis), "{text:?}");
    }
    if let Ok(duration) = parse_duration(text) {
        meanings += 1;
        let written = format_duration(duration);
        assert_eq!(parse_duration(&written), Ok(duration), "{text:?} is written {written:?}");
    }
    if let Ok(signal) = parse_signal(text) {
        meanings += 1;
        assert!((1..=64).contains(&signal), "{text:?}");
        assert_eq!(parse_signal(&format_signal(signal)), Ok(signal), "{text:?}");
    }
    if let Ok(port) = parse_port(text) {
        meanings += 1;
        assert_eq!(text.trim_start_matches('0'), port.to_string());
    }
    let words = text.len() <= 64 && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    assert!(meanings == 0 || words, "{text:?} is a value");
    assert!(meanings == 0 || !is_unlimited(text), "{text:?} is a value and no limit");
    let refusals = [parse_bytes(text).err(), parse_cpus(text).err(), parse_signal(text).err()];
    for refusal in refusals.into_iter().flatten() {
        assert!(refusal.shown.chars().count() <= 64 && !refusal.to_string().contains(char::is_control));
    }
}

/// A template is replaced in one pass: what is put in is never read as a template.
fn template(text: &str) {
    let plain = Placeholders { port: Some(8003), slot: 3, worker: "web.3", instance: "default", dir: "/work" };
    let expanded = expand(text, &plain);
    if !text.contains(['{', '}']) {
        assert_eq!(expanded, text);
    }
    // None of the values is longer than its placeholder, so nothing grows.
    assert!(expanded.len() <= text.len(), "{text:?} becomes {expanded:?}");
    let hostile = Placeholders { worker: "{dir}", instance: "{dir}", dir: "{dir}", ..plain };
    let kept = expand("{worker}{dir}", &hostile);
    assert_eq!(kept, "{dir}{dir}");
}
