//! Takes secrets out of text before it leaves the host.
//!
//! What is known to be one goes wherever it stands: values of the environment that pools are given, and of variables and files
//! whose names say so. What looks like one goes where its name stands before it. Rather too much than too little.

use std::collections::BTreeSet;

/// What stands in the place of a secret.
pub(super) const REMOVED: &str = "<removed>";
/// Shorter values are too common to be looked for everywhere: `1`, `true`, a port.
const VALUE_BYTES_MIN: usize = 6;
/// Names with one of these in them have a secret as their value.
const NAMES: [&str; 9] =
    ["token", "secret", "password", "passwd", "api_key", "apikey", "access_key", "private_key", "credential"];
/// Words that begin a secret by themselves.
const BEGINNINGS: [&str; 8] = ["sk-", "ghp_", "github_pat_", "gho_", "xoxb-", "xoxp-", "AKIA", "eyJ"];
/// Words between a name and its value.
const SCHEMES: [&str; 3] = ["bearer", "basic", "digest"];
/// A beginning with less behind it is only a word.
const TAIL_BYTES_MIN: usize = 12;

/// Knows secrets.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    /// The longest first, so that one that is part of another does not leave the rest of it.
    values: Vec<String>,
}

impl Redactor {
    /// One that knows these values.
    pub(super) fn new(values: impl IntoIterator<Item = String>) -> Self {
        let mut all = BTreeSet::new();
        for value in values {
            for piece in [value.trim(), value.as_str()].into_iter().chain(value.lines()) {
                if piece.len() >= VALUE_BYTES_MIN {
                    all.insert(piece.to_owned());
                    // As it stands inside JSON, and inside JSON inside JSON.
                    let quoted = serde_json::Value::from(piece).to_string();
                    let inner = quoted.trim_matches('"').to_owned();
                    all.insert(serde_json::Value::from(inner.as_str()).to_string().trim_matches('"').to_owned());
                    all.insert(inner);
                }
            }
        }
        let mut values: Vec<String> = all.into_iter().collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values }
    }

    /// The text without them.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for value in &self.values {
            if clean.contains(value.as_str()) {
                clean = clean.replace(value.as_str(), REMOVED);
            }
        }
        let mut lines: Vec<String> = clean.split('\n').map(named).collect();
        for line in &mut lines {
            if let Some(bare) = begun(line) {
                *line = bare;
            }
        }
        lines.join("\n")
    }
}

/// Whether a name says that its value is a secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    NAMES.iter().any(|secret| name.contains(secret)) || name.ends_with("_key") || name == "authorization"
}

/// A line without the values that stand behind names of secrets: `TOKEN=…`, `"password": "…"`, `--api-key …`, `Bearer …`.
fn named(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, length)) = next_name(rest) {
        let (before, after) = rest.split_at(at + length);
        clean.push_str(before);
        let (mut between, mut value, mut left) = value_behind(after);
        while SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme)) {
            clean.push_str(between);
            clean.push_str(value);
            (between, value, left) = value_behind(left);
        }
        clean.push_str(between);
        if !value.is_empty() {
            clean.push_str(REMOVED);
        }
        rest = left;
    }
    clean.push_str(rest);
    clean
}

/// Where the next name of a secret stands.
fn next_name(text: &str) -> Option<(usize, usize)> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut at = 0;
    while let Some(begin) = text.get(at..)?.find(of_name).map(|found| at + found) {
        let length = text.get(begin..)?.find(|c| !of_name(c)).unwrap_or(text.len() - begin);
        let name = text.get(begin..begin + length)?;
        let introduces = || {
            let after = text.get(begin + length..).unwrap_or_default();
            let after = after.trim_start_matches(['"', '\'', '\\']).trim_start();
            after.starts_with(['=', ':']) || name.starts_with("--")
        };
        if name.eq_ignore_ascii_case("bearer") || is_secret_name(name) && introduces() {
            return Some((begin, length));
        }
        at = begin + length;
    }
    None
}

/// What stands between a name and its value, the value, and what follows.
fn value_behind(text: &str) -> (&str, &str, &str) {
    let is_between = |c: char| matches!(c, ' ' | '=' | ':' | '"' | '\'' | '\\' | '\t');
    let begin = text.find(|c| !is_between(c)).unwrap_or(text.len());
    let (between, rest) = text.split_at(begin);
    // Behind a quote it goes on to the next; a scheme such as `Bearer` is not all of it.
    let quoted = between.ends_with(['"', '\'']);
    let ends = |c: char| {
        if quoted { matches!(c, '"' | '\'' | '\\') } else { matches!(c, ' ' | ',' | ';' | '"' | '\'' | '&' | '}') }
    };
    let end = rest.find(ends).unwrap_or(rest.len());
    let (value, left) = rest.split_at(end);
    (between, value, left)
}

/// A line without words that begin as secrets do; `None` where there are none.
fn begun(line: &str) -> Option<String> {
    if !BEGINNINGS.iter().any(|begin| line.contains(begin)) {
        return None;
    }
    let of_secret = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '/' | '=');
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(begin) = rest.find(of_secret) {
        let (before, word) = rest.split_at(begin);
        let (word, after) = word.split_at(word.find(|c| !of_secret(c)).unwrap_or(word.len()));
        clean.push_str(before);
        let is_one = BEGINNINGS.iter().any(|one| word.starts_with(one) && word.len() >= one.len() + TAIL_BYTES_MIN);
        clean.push_str(if is_one { REMOVED } else { word });
        rest = after;
    }
    clean.push_str(rest);
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_goes_wherever_it_stands() {
        let redactor = Redactor::new([
            "hunter2222".to_owned(),
            "hunter2222-long".to_owned(),
            "a\"b\nc-second".to_owned(),
            "no".to_owned(),
        ]);
        assert_eq!(redactor.clean("x hunter2222-long hunter2222y no"), "x <removed> <removed>y no");
        assert_eq!(redactor.clean("line\nc-second"), "line\n<removed>");
        let json = serde_json::json!({ "v": "a\"b\nc-second" }).to_string();
        assert!(!redactor.clean(&json).contains("c-second"), "{json}");
        assert!(!redactor.clean(&serde_json::Value::from(json).to_string()).contains("c-second"));
    }

    #[test]
    fn what_stands_behind_the_name_of_a_secret_goes() {
        let redactor = Redactor::default();
        for (line, expected) in [
            ("API_TOKEN=abc next", "API_TOKEN=<removed> next"),
            ("{\"password\": \"a b c\", \"x\": 1}", "{\"password\": \"<removed>\", \"x\": 1}"),
            ("--api-key abc --port 80", "--api-key <removed> --port 80"),
            ("--token=abc", "--token=<removed>"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer <removed>"),
            ("secret = 'x y' # why", "secret = '<removed>' # why"),
            ("a token of love", "a token of love"),
            ("tokens: 5", "tokens: <removed>"),
            ("key sk-abcdefghijklmnop end", "key <removed> end"),
            ("sk-short", "sk-short"),
            ("nothing here", "nothing here"),
        ] {
            assert_eq!(redactor.clean(line), expected);
        }
    }

    #[test]
    fn no_text_makes_it_panic_or_grow_without_end() {
        let pieces =
            ["token", "=", "\"", " ", "ä", "bearer ", "sk-", "--", "\\", "\n", "password:", "xxxxxxxxxxxxxxxx"];
        for seed in 0_usize..5_000 {
            let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
            let mut text = String::new();
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[(state >> 33) % pieces.len()]);
            }
            let clean = Redactor::new(["xxxxxxxxxxxxxxxx".to_owned()]).clean(&text);
            assert!(!clean.contains("xxxxxxxxxxxxxxxx"), "{text:?}: {clean:?}");
        }
    }
}
