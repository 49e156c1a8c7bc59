//! Text of workers and callers, made safe to look at: nothing in it can drive a terminal (HARDENING E3).
//!
//! Types on the wire carry text as it was written; whoever shows it (lists, logs, status, log lines) passes it through
//! here. Escaped are C0 and C1 controls, DEL, what turns the direction of text, and line and paragraph separators.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Text for a table or a sentence: every control character is shown as an escape, line ends and tabs too.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe)
}

/// One line of a log: as [`text`], but a tab stays what it is, because it indents and does nothing else.
#[must_use]
pub fn line(line: &str) -> Cow<'_, str> {
    escape(line, |c| c != '\t' && is_unsafe(c))
}

/// JSON text, which is as JSON what it was: what JSON itself leaves raw (DEL, C1, direction) becomes `\uNNNN`.
///
/// Outside strings JSON has none of these characters, so every one of them stands where such an escape may stand.
#[must_use]
pub fn json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").unwrap_or_default();
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Bytes that ought to be UTF-8, for the wire: a byte that is not becomes `\xNN`, all else (controls too) stays.
#[must_use]
pub fn bytes(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            write!(shown, "\\x{byte:02x}").unwrap_or_default();
        }
    }
    shown
}

fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Marks, embeddings, overrides and isolates of the bidirectional algorithm.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // Line and paragraph separator; deprecated format controls; invisible tags; the byte order mark.
        | '\u{2028}' | '\u{2029}' | '\u{206a}'..='\u{206f}' | '\u{e0000}'..='\u{e007f}' | '\u{feff}')
}

fn escape(text: &str, is_unsafe: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if !is_unsafe(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            '\u{0}'..='\u{7f}' => write!(shown, "\\x{:02x}", u32::from(c)).unwrap_or_default(),
            _ => write!(shown, "\\u{{{:x}}}", u32::from(c)).unwrap_or_default(),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::super::seeded::Seeded;
    use super::*;

    #[test]
    fn what_drives_a_terminal_is_shown_as_an_escape() {
        for (raw, expected) in [
            ("plain, grün, 日本, 👩‍🔬", "plain, grün, 日本, 👩‍🔬"),
            ("\u{1b}[31mred\u{1b}[0m", "\\x1b[31mred\\x1b[0m"),
            ("a\0b\u{7}\u{7f}", "a\\x00b\\x07\\x7f"),
            ("two\nlines\r\tx", "two\\nlines\\r\\tx"),
            ("\u{9b}31m \u{85}", "\\u{9b}31m \\u{85}"),
            ("\u{202e}txt.exe\u{2066}\u{200f}", "\\u{202e}txt.exe\\u{2066}\\u{200f}"),
            ("\u{2028}\u{e0041}", "\\u{2028}\\u{e0041}"),
        ] {
            assert_eq!(text(raw), expected);
        }
        assert_eq!(line("\tindented\u{1b}]0;x\u{7}\n"), "\tindented\\x1b]0;x\\x07\\n");
        assert!(matches!(text("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"a\u{9b}": "\u{7f}\u{202e}\u{e0041}\u{1b}ä"});
        let raw = value.to_string();
        let shown = json(&raw);
        assert_eq!(shown, "{\"a\\u009b\":\"\\u007f\\u202e\\udb40\\udc41\\u001bä\"}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_one_by_one() {
        assert_eq!(bytes(b"ok \xff\xfe\xc3\xa4 \xe2\x82"), "ok \\xff\\xfeä \\xe2\\x82");
        assert_eq!(bytes(b"\x1b"), "\u{1b}");
    }

    #[test]
    fn nothing_unsafe_is_ever_left() {
        let pieces: &[&[u8]] = &["\u{1b}[2J".as_bytes(), "\u{202e}".as_bytes(), b"\xff", b"\xc2", b"\n", b"text"];
        for seed in 0..2_000 {
            let raw = bytes(&Seeded::new(seed).bytes(100, pieces));
            assert!(!text(&raw).contains(is_unsafe));
            assert_eq!(text(&text(&raw)), text(&raw), "escaped text is plain text");
        }
    }
}
