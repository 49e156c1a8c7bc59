//! What a replay leaves on a screen: the bytes of the program are parsed here, by an unprivileged process, and never by the
//! daemon.

use std::num::NonZeroU16;

use vt100::Parser;

use super::raw::RESET;
use crate::protocol::attach::{Replay, Size};

/// Lines above the screen that are kept for whoever asks for more than the screen.
const SCROLLBACK_LINES: usize = 10_000;

/// A screen as it is after what was written.
pub(in crate::cli) struct Screen {
    parser: Parser,
    size: Size,
}

impl Screen {
    /// The screen of a terminal of this size after `written`.
    pub(in crate::cli) fn after(written: &[u8], replay: Replay, size: Size) -> Self {
        let cells = |count: u16| NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
        let mut parser = Parser::new(cells(size.rows), cells(size.columns), SCROLLBACK_LINES);
        parser.process(whole_part(written, replay));
        Self { parser, size }
    }

    /// Whether a program has the whole screen to itself, as editors do.
    pub(super) fn is_alternate(&self) -> bool {
        self.parser.screen().alternate_screen()
    }

    /// What brings any terminal to this screen.
    pub(super) fn painted(&self) -> Vec<u8> {
        let screen = self.parser.screen();
        let alternate = if screen.alternate_screen() { "\x1b[?1049h" } else { "" };
        format!("{RESET}{alternate}{}", screen.state_formatted()).into_bytes()
    }

    /// Its text, with the lines that have left it above, the oldest first; empty lines at the end are left out.
    pub(in crate::cli) fn lines(&mut self) -> Vec<String> {
        let (columns, rows) = (self.size.columns, usize::from(self.size.rows));
        let mut lines = Vec::new();
        self.parser.screen_mut().set_scrollback(usize::MAX);
        let above = self.parser.screen().scrollback();
        let mut left = above;
        while left > 0 {
            self.parser.screen_mut().set_scrollback(left);
            let taken = left.min(rows);
            lines.extend(self.parser.screen().rows(0, columns).take(taken));
            left -= taken;
        }
        self.parser.screen_mut().set_scrollback(0);
        lines.extend(self.parser.screen().rows(0, columns));
        let used = lines.iter().rposition(|line| !line.trim_end().is_empty()).map_or(0, |last| last + 1);
        lines.truncate(used);
        lines
    }

    /// The text of the screen alone.
    pub(in crate::cli) fn text(&self) -> Vec<String> {
        let lines: Vec<String> = self.parser.screen().rows(0, self.size.columns).collect();
        let used = lines.iter().rposition(|line| !line.trim_end().is_empty()).map_or(0, |last| last + 1);
        lines.into_iter().take(used).collect()
    }
}

/// A replay that begins anywhere may begin within a character or a control sequence: its first line is left out, unless it
/// is all there is.
fn whole_part(written: &[u8], replay: Replay) -> &[u8] {
    let newline = written.iter().position(|byte| *byte == b'\n');
    match (replay, newline) {
        (Replay::Cut, Some(end)) => written.get(end + 1..).filter(|rest| !rest.is_empty()).unwrap_or(written),
        (Replay::Whole, _) | (Replay::Cut, None) => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size { columns: 20, rows: 4 };

    #[test]
    fn a_screen_is_painted_as_it_was_left() {
        for written in [&b"one\r\n\x1b[31mtwo\x1b[0m\r\n$ "[..], b"shell\x1b[?1049h\x1b[2;3Hvim\x1b[?25l\x1b[?2004h"] {
            let before = Screen::after(written, Replay::Whole, SMALL);
            let again = Screen::after(&before.painted(), Replay::Whole, SMALL);
            assert_eq!(again.text(), before.text());
            let (one, two) = (before.parser.screen(), again.parser.screen());
            assert_eq!(one.cursor_position(), two.cursor_position());
            assert_eq!(one.state_formatted(), two.state_formatted());
            assert_eq!(one.alternate_screen(), two.alternate_screen());
        }
    }

    #[test]
    fn lines_that_have_left_the_screen_are_told_too() {
        let written: String = (0..30).map(|n| format!("line {n}\r\n")).collect();
        let mut screen = Screen::after(written.as_bytes(), Replay::Whole, SMALL);
        let expected: Vec<String> = (0..30).map(|n| format!("line {n}")).collect();
        assert_eq!(screen.lines(), expected);
        assert_eq!(screen.text(), ["line 27", "line 28", "line 29"]);
    }

    #[test]
    fn a_replay_that_begins_within_a_sequence_begins_with_its_next_line() {
        let text = |written: &[u8], replay| Screen::after(written, replay, SMALL).text();
        assert_eq!(text(b"31mred\r\nnext", Replay::Cut), ["next"]);
        assert_eq!(text(b"31mred\r\nnext", Replay::Whole), ["31mred", "next"]);
        assert_eq!(text(b"prompt$ ", Replay::Cut), ["prompt$ "]);
    }

    #[test]
    fn hostile_output_is_only_parsed() {
        let mut noise = Vec::new();
        for n in 0..200_000_u32 {
            let [a, b, ..] = n.wrapping_mul(0x9e37_79b9).to_be_bytes();
            noise.extend(if n % 7 == 0 { [0x1b, b'['] } else { [a, b] });
        }
        for size in [Size { columns: 1, rows: 1 }, SMALL, Size { columns: 500, rows: 200 }] {
            let mut screen = Screen::after(&noise, Replay::Cut, size);
            assert!(screen.lines().len() <= SCROLLBACK_LINES + usize::from(size.rows));
        }
    }
}
