//! The keys that leave a session, and how the names of keys become what a keyboard sends.

use std::str::FromStr;

/// What detaches where nothing else is said.
pub(in crate::cli) const DETACH_DEFAULT: &str = "ctrl-p,ctrl-q";

/// A sequence of keys, each one byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// [`DETACH_DEFAULT`].
    fn default() -> Self {
        Self(vec![0x10, 0x11])
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys: Option<Vec<u8>> = text.split(',').map(detach_key).collect();
        keys.map(Self).ok_or_else(|| format!("expected keys such as {DETACH_DEFAULT} or ctrl-]"))
    }
}

fn detach_key(name: &str) -> Option<u8> {
    match (name.strip_prefix("ctrl-").map(str::as_bytes), name.as_bytes()) {
        (Some([letter]), _) => control(*letter),
        (None, [key]) if key.is_ascii_graphic() => Some(*key),
        _ => None,
    }
}

/// What a letter sends with the control key held.
fn control(letter: u8) -> Option<u8> {
    match letter.to_ascii_uppercase() {
        upper @ b'@'..=b'_' => Some(upper & 0x1f),
        _ => None,
    }
}

/// Finds the keys in what is typed.
#[derive(Debug)]
pub(super) struct Matcher {
    keys: Vec<u8>,
    /// How many of them were typed last; they are held back until it is clear what they are.
    matched: usize,
}

impl Matcher {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, matched: 0 }
    }

    /// Takes what was typed; what of it, and of what was held back, is for the program, and whether it was all before the
    /// keys.
    pub(super) fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut through = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys.get(self.matched) != Some(byte) {
                // The longest beginning of the keys that what was typed still ends with.
                let mut held = self.keys.get(..self.matched).unwrap_or_default().to_vec();
                held.push(*byte);
                let kept = (0..=self.matched).rev().find(|length| held.ends_with(&self.keys[..*length])).unwrap_or(0);
                through.extend_from_slice(&held[..held.len() - kept]);
                self.matched = kept;
            } else {
                self.matched += 1;
            }
            if self.matched == self.keys.len() {
                self.matched = 0;
                return (through, true);
            }
        }
        (through, false)
    }
}

/// What a keyboard sends for words such as `C-c`, `Enter`, `Up`; any other word is its own text.
pub(in crate::cli) fn of_words(words: &[String]) -> String {
    words.iter().map(|word| of_word(word)).collect()
}

fn of_word(word: &str) -> String {
    let known = match word {
        "Enter" | "Return" => "\r",
        "Tab" => "\t",
        "Space" => " ",
        "Escape" | "Esc" => "\u{1b}",
        "Backspace" => "\u{7f}",
        "Up" => "\u{1b}[A",
        "Down" => "\u{1b}[B",
        "Right" => "\u{1b}[C",
        "Left" => "\u{1b}[D",
        "Home" => "\u{1b}[H",
        "End" => "\u{1b}[F",
        "Insert" => "\u{1b}[2~",
        "Delete" => "\u{1b}[3~",
        "PageUp" => "\u{1b}[5~",
        "PageDown" => "\u{1b}[6~",
        "F1" => "\u{1b}OP",
        "F2" => "\u{1b}OQ",
        "F3" => "\u{1b}OR",
        "F4" => "\u{1b}OS",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let with_control = word.strip_prefix("C-").or_else(|| word.strip_prefix("ctrl-"));
    match (with_control.map(str::as_bytes), word.strip_prefix("M-")) {
        (Some([letter]), _) => control(*letter).map_or_else(|| word.to_owned(), |byte| char::from(byte).to_string()),
        (None, Some(key)) if key.chars().count() == 1 => format!("\u{1b}{key}"),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(keys: &str) -> Matcher {
        Matcher::new(keys.parse().unwrap())
    }

    #[test]
    fn keys_are_written_as_docker_writes_them() {
        let bytes = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(bytes(DETACH_DEFAULT), Ok(vec![0x10, 0x11]));
        assert_eq!(bytes("ctrl-],x"), Ok(vec![0x1d, b'x']));
        assert_eq!(bytes("ctrl-P"), Ok(vec![0x10]));
        for wrong in ["", "ctrl-", "ctrl-1", "alt-x", "ctrl-p,", "é", "\u{1b}"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_only_begins_like_the_keys_reaches_the_program() {
        let mut keys = matcher("ctrl-p,ctrl-q");
        assert_eq!(keys.feed(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.feed(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.feed(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.feed(b"\x11rest"), (Vec::new(), true));
        let mut doubled = matcher("a,a,b");
        assert_eq!(doubled.feed(b"aaab"), (b"a".to_vec(), true));
        assert_eq!(doubled.feed(b"aacaab"), (b"aac".to_vec(), true));
        assert_eq!(matcher("x").feed(b"abxc"), (b"ab".to_vec(), true));
    }

    #[test]
    fn words_become_keys() {
        let keys = |words: &[&str]| of_words(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(keys(&["ls", "Space", "-l", "Enter"]), "ls -l\r");
        assert_eq!(keys(&["C-c", "ctrl-d", "Escape", "Up", "M-x"]), "\u{3}\u{4}\u{1b}\u{1b}[A\u{1b}x");
        assert_eq!(keys(&["C-", "C-1", "M-", "enter"]), "C-C-1M-enter");
    }
}
