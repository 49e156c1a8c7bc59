//! AtomForge's variables, `FDO_DAEMON_POOL_*`: they fill in what is not written of the pool that `[gateway]` names as the one
//! that its endpoints speak of, and of no other.
//!
//! A table that is written says all that is in it: a variable fills none of its keys.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{Faults, Place};
use super::pool::PoolDraft;
use crate::spec::Ready;

const PREFIX: &str = "FDO_DAEMON_POOL_";
/// The largest pool, where `FDO_DAEMON_POOL_MAX_SIZE` says nothing else.
const SIZE_MAX: u32 = 100;
/// The longest time, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// The variables, and what each fills.
pub(super) const VARIABLES: [(&str, &str); 10] = [
    ("FDO_DAEMON_POOL_ENABLED", "`size = 1`, if it is `false`"),
    ("FDO_DAEMON_POOL_SIZE", "`size`, at most `FDO_DAEMON_POOL_MAX_SIZE`"),
    ("FDO_DAEMON_POOL_MAX_SIZE", "nothing: the most that `FDO_DAEMON_POOL_SIZE` may be, `100`"),
    ("FDO_DAEMON_POOL_BASE_PORT", "`base_port`"),
    ("FDO_DAEMON_POOL_HEALTH_INTERVAL", "`heartbeat.interval`, in seconds"),
    ("FDO_DAEMON_POOL_RESTART_DELAY", "`restart.delay`, in seconds"),
    ("FDO_DAEMON_POOL_MAX_RESTART_ATTEMPTS", "`restart.max_restarts`"),
    ("FDO_DAEMON_POOL_MAX_RETRIES", "`dispatch.attempts`"),
    ("FDO_DAEMON_POOL_REQUEST_TIMEOUT", "`dispatch.timeout`, in seconds"),
    ("FDO_DAEMON_POOL_CIRCUIT_BREAKER_THRESHOLD", "`dispatch.worker_breaker.failures`"),
];

/// What the environment says, read as it is asked for.
struct Said<'a> {
    environment: &'a BTreeMap<String, String>,
    faults: Faults,
}

impl Said<'_> {
    fn text(&self, name: &str) -> Option<(&str, Place)> {
        let variable = format!("{PREFIX}{name}");
        let text = self.environment.get(&variable).filter(|text| !text.is_empty())?;
        Some((text.as_str(), Place::outside(&variable)))
    }

    fn number(&mut self, name: &str, most: u32) -> Option<u32> {
        let (text, place) = self.text(name)?;
        let number = text.parse::<u32>().ok().filter(|number| (1..=most).contains(number));
        let fault = place.fault(format!("found {text:?}"), format!("a whole number, 1 to {most}"));
        self.faults.note(number.ok_or(fault))
    }

    fn seconds(&mut self, name: &str) -> Option<Duration> {
        let (text, place) = self.text(name)?;
        let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=SECONDS_MAX).contains(seconds));
        let fault = place.fault(format!("found {text:?}"), "seconds, such as 2.5");
        self.faults.note(seconds.map(Duration::from_secs_f64).ok_or(fault))
    }
}

/// Fills a pool in.
pub(super) fn fill(draft: &mut PoolDraft, environment: &BTreeMap<String, String>) -> Faults {
    let mut said = Said { environment, faults: Faults::default() };
    let is_free = |draft: &PoolDraft, key: &str| !draft.written.contains_key(key);
    if ["size", "min", "max"].iter().all(|key| is_free(draft, key)) {
        fill_size(draft, &mut said);
    }
    if is_free(draft, "base_port")
        && let Some(port) = said.number("BASE_PORT", 65_535)
    {
        draft.spec.base_port = u16::try_from(port).ok();
        check_range(draft, port, &mut said);
    }
    if is_free(draft, "heartbeat")
        && let Some(interval) = said.seconds("HEALTH_INTERVAL")
    {
        // A worker whose port is not asked whether it is ready is not asked how it is either.
        let timeout = draft.heartbeat.said().1.timeout;
        if draft.serve.is_some() || matches!(draft.spec.ready, Ready::Probe(_)) {
            draft.heartbeat.preset(interval, timeout);
        }
    }
    if is_free(draft, "restart") {
        let restart = &mut draft.spec.policy.restart;
        restart.delay = said.seconds("RESTART_DELAY").unwrap_or(restart.delay);
        restart.delay_max = restart.delay_max.max(restart.delay);
        restart.max_restarts = said.number("MAX_RESTART_ATTEMPTS", 1_000_000).unwrap_or(restart.max_restarts);
    }
    if is_free(draft, "dispatch") {
        let (attempts, timeout) = (said.number("MAX_RETRIES", 100), said.seconds("REQUEST_TIMEOUT"));
        let threshold = said.number("CIRCUIT_BREAKER_THRESHOLD", 1_000_000);
        if attempts.is_some() || timeout.is_some() || threshold.is_some() {
            draft.dispatch.get_or_insert_default().fill(attempts, timeout, threshold);
        }
    }
    said.faults
}

fn fill_size(draft: &mut PoolDraft, said: &mut Said<'_>) {
    let most = said.number("MAX_SIZE", super::pool::WORKERS_MAX).unwrap_or(SIZE_MAX);
    if said.text("ENABLED").is_some_and(|(text, _)| text.eq_ignore_ascii_case("false")) {
        draft.size = Some(1);
    } else if let Some((text, place)) = said.text("SIZE") {
        let size = text.parse::<u32>().ok().filter(|size| (1..=most).contains(size));
        // In AtomForge's words, as is the next.
        let fault = place.fault(format!("Pool size must be 1-{most}, got: {text}"), "");
        draft.size = said.faults.note(size.ok_or(fault));
    }
}

fn check_range(draft: &PoolDraft, base: u32, said: &mut Said<'_>) {
    let size = draft.size.or(draft.max).unwrap_or(1);
    if base.saturating_add(size.saturating_sub(1)) > 65_535 {
        let place = Place::outside(&format!("{PREFIX}BASE_PORT"));
        said.faults.push(place.fault(format!("Port range exceeds maximum (base={base}, size={size})"), ""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::config::parse_config;
    use crate::spec::{Config, PoolSpec};

    const TEXT: &str = "[gateway]\npool = \"fdo\"\n[pool.fdo]\nserve = \"http\"\nready = \"http:/health\"\ncommand = [\"x\"]\n\
                        [pool.other]\ncommand = [\"x\"]\n";

    fn said(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect()
    }

    fn pool<'a>(config: &'a Config, name: &str) -> &'a PoolSpec {
        config.pools.iter().find(|pool| pool.name.as_str() == name).unwrap()
    }

    #[test]
    fn the_pool_that_the_gateway_speaks_of_is_filled_in_and_no_other() {
        let all = said(&[
            ("SIZE", "7"),
            ("BASE_PORT", "8080"),
            ("HEALTH_INTERVAL", "10.0"),
            ("RESTART_DELAY", "2.0"),
            ("MAX_RESTART_ATTEMPTS", "6"),
            ("MAX_RETRIES", "4"),
            ("REQUEST_TIMEOUT", "12.5"),
            ("CIRCUIT_BREAKER_THRESHOLD", "2"),
        ]);
        let config = parse_config(TEXT, &all).unwrap();
        let (fdo, other) = (pool(&config, "fdo"), pool(&config, "other"));
        let policy = &fdo.policy;
        assert_eq!((policy.size.min, policy.size.max, fdo.base_port), (7, 7, Some(8080)));
        assert_eq!(policy.heartbeat.map(|beat| beat.interval), Some(Duration::from_secs(10)));
        assert_eq!((policy.restart.delay, policy.restart.max_restarts), (Duration::from_secs(2), 6));
        let dispatch = policy.dispatch.unwrap();
        assert_eq!((dispatch.attempts_max, dispatch.timeout), (4, Duration::from_millis(12_500)));
        assert_eq!((dispatch.worker_breaker.failures, dispatch.capacity), (2, 1));
        assert_eq!((other.policy.size.max, other.base_port), (1, None));
    }

    #[test]
    fn what_is_written_stays_and_a_single_daemon_is_a_pool_of_one() {
        let written =
            TEXT.replace("[pool.other]", "size = 3\nbase_port = 9000\ndispatch = { attempts = 1 }\n[pool.other]");
        let config = parse_config(&written, &said(&[("SIZE", "7"), ("BASE_PORT", "1"), ("MAX_RETRIES", "4")])).unwrap();
        let fdo = pool(&config, "fdo");
        assert_eq!((fdo.policy.size.max, fdo.base_port), (3, Some(9000)));
        assert_eq!(fdo.policy.dispatch.map(|dispatch| dispatch.attempts_max), Some(1));
        let config = parse_config(TEXT, &said(&[("ENABLED", "false"), ("SIZE", "7"), ("BASE_PORT", "8080")])).unwrap();
        assert_eq!(pool(&config, "fdo").policy.size.max, 1);
    }

    #[test]
    fn what_cannot_be_is_said_in_atomforges_words() {
        let errors = |pairs: &[(&str, &str)]| parse_config(TEXT, &said(pairs)).unwrap_err().to_string();
        let text = errors(&[("SIZE", "101"), ("BASE_PORT", "8080")]);
        assert!(text.contains("Pool size must be 1-100, got: 101"), "{text}");
        let text = errors(&[("SIZE", "0"), ("MAX_SIZE", "20"), ("BASE_PORT", "8080")]);
        assert!(text.contains("Pool size must be 1-20, got: 0"), "{text}");
        let text = errors(&[("SIZE", "5"), ("BASE_PORT", "65533")]);
        assert!(text.contains("Port range exceeds maximum (base=65533, size=5)"), "{text}");
        assert!(errors(&[("BASE_PORT", "8080"), ("REQUEST_TIMEOUT", "soon")]).contains("seconds, such as 2.5"));
    }
}
