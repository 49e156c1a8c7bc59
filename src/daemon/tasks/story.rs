//! A task's story: what happened to it between which bytes of its output, and places in it that have one number for ever.
//!
//! A place is how many marks and bytes come before it. Touches no file: whoever reads a story brings the bytes.

use serde::{Deserialize, Serialize};

use crate::protocol::control::{Cause, TaskEvent, TaskEventKind, TaskState};

/// The words by which a program says how far it is, and how far that is, in percent.
const WORDS: [(&[u8], u8); 4] = [(b"Starting", 10), (b"Processing", 50), (b"Completed", 90), (b"Done", 90)];
/// The longest of them but its last byte.
const CARRIED_BYTES: usize = 9;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Happened {
    /// It is in this state from now on.
    State(TaskState),
    /// It is thought to be so far.
    Progress(u8),
    /// It is over: how its program ended, and why it is not completed.
    Over { exit: Option<Cause>, error: Option<String> },
}

/// The same with its time, between two bytes of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// How many bytes of output come before it.
    at: u64,
    /// Wall clock, in milliseconds since 1970.
    time_msec: u64,
    what: Happened,
}

/// All that happened to a task.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    pub(super) marks: Vec<Mark>,
    /// How many bytes of output there are.
    bytes: u64,
    /// Of them, how many at the end are the beginning of a character.
    unfinished: u64,
    /// The last bytes, in which a word may have begun.
    carried: Vec<u8>,
    progress: u8,
    is_over: bool,
}

/// A place in a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    marks: usize,
    bytes: u64,
}

/// What is next in a story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    End,
    /// This.
    Mark(Mark),
    /// Output from the first place to the second.
    Output(u64, u64),
}

impl Story {
    /// One of an earlier daemon: its marks, and how much output there is.
    pub(super) fn restored(marks: Vec<Mark>, bytes: u64) -> Self {
        let mut story = Self { bytes, ..Self::default() };
        for mark in &marks {
            story.note(&mark.what);
        }
        // A mark beyond what is known of the output would never be reached.
        story.marks = marks.into_iter().map(|mark| Mark { at: mark.at.min(bytes), ..mark }).collect();
        story
    }

    fn note(&mut self, what: &Happened) {
        match what {
            Happened::State(state) => self.is_over |= state.is_over(),
            Happened::Progress(percent) => self.progress = *percent,
            Happened::Over { .. } => self.is_over = true,
        }
    }

    /// Something happened now.
    pub(super) fn add(&mut self, what: Happened, time_msec: u64) {
        self.note(&what);
        self.marks.push(Mark { at: self.bytes, time_msec, what });
    }

    /// So much was written, and how far that says that it is, if it is further than before.
    pub(super) fn wrote(&mut self, written: &[u8]) -> Option<u8> {
        self.bytes += u64::try_from(written.len()).unwrap_or(u64::MAX);
        let mut looked_at = std::mem::take(&mut self.carried);
        looked_at.extend_from_slice(written);
        self.unfinished = unfinished(&looked_at);
        let is_in = |word: &[u8]| looked_at.windows(word.len()).any(|window| window == word);
        let before = self.progress;
        let further = WORDS.iter().filter(|(word, percent)| *percent > before && is_in(word));
        let further = further.map(|(_, percent)| *percent).max();
        self.carried = looked_at.split_off(looked_at.len().saturating_sub(CARRIED_BYTES));
        further
    }

    /// How far it is thought to be, in percent.
    pub(super) const fn progress(&self) -> u8 {
        self.progress
    }

    /// How much was written, in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of the place behind everything.
    pub(super) fn end(&self) -> u64 {
        number(self.marks.len(), self.bytes)
    }

    /// The place of this number, or the last where there is none.
    pub(super) fn spot(&self, number: u64) -> Spot {
        for (marks, mark) in self.marks.iter().enumerate() {
            let passed = u64::try_from(marks).unwrap_or(u64::MAX);
            if number <= mark.at.saturating_add(passed) {
                return Spot { marks, bytes: number.saturating_sub(passed) };
            }
        }
        let passed = u64::try_from(self.marks.len()).unwrap_or(u64::MAX);
        Spot { marks: self.marks.len(), bytes: number.saturating_sub(passed).min(self.bytes) }
    }

    /// What comes behind a place.
    pub(super) fn next(&self, spot: Spot) -> Next {
        let mark = self.marks.get(spot.marks);
        if let Some(mark) = mark.filter(|mark| mark.at <= spot.bytes) {
            return Next::Mark(mark.clone());
        }
        // Half a character is told with its other half.
        let said = if self.is_over { self.bytes } else { self.bytes.saturating_sub(self.unfinished) };
        let until = mark.map_or(said, |mark| mark.at);
        if spot.bytes < until {
            return Next::Output(spot.bytes, until);
        }
        if self.is_over { Next::End } else { Next::Nothing }
    }
}

impl Spot {
    /// Its number.
    pub(super) fn number(self) -> u64 {
        number(self.marks, self.bytes)
    }

    /// Behind the mark that is next.
    pub(super) const fn behind_mark(self) -> Self {
        Self { marks: self.marks + 1, ..self }
    }

    /// Behind so many bytes.
    pub(super) const fn at_byte(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }
}

fn number(marks: usize, bytes: u64) -> u64 {
    bytes.saturating_add(u64::try_from(marks).unwrap_or(u64::MAX))
}

/// How many bytes at the end of a text are the beginning of a character that goes on.
fn unfinished(text: &[u8]) -> u64 {
    for length in 1..=3_usize.min(text.len()) {
        let Some(byte) = text.get(text.len() - length) else { return 0 };
        let whole = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if length < whole { u64::try_from(length).unwrap_or(0) } else { 0 };
    }
    0
}

/// A piece of output without the beginning of a character at its end, where it goes on.
pub(super) fn cut_at_character(piece: &mut Vec<u8>) {
    let cut = usize::try_from(unfinished(piece)).unwrap_or(0);
    if cut < piece.len() {
        piece.truncate(piece.len() - cut);
    }
}

impl Mark {
    /// As it is told.
    pub(super) fn told(&self, sequence: u64) -> TaskEvent {
        let time = super::super::clock::from_msec(self.time_msec);
        let event = TaskEvent {
            sequence,
            kind: TaskEventKind::Status,
            time: Some(super::super::clock::rfc3339(time)),
            state: None,
            progress: None,
            text: None,
            exit: None,
        };
        match &self.what {
            Happened::State(state) => TaskEvent { state: Some(*state), ..event },
            Happened::Progress(percent) => {
                TaskEvent { kind: TaskEventKind::Progress, progress: Some(*percent), ..event }
            }
            Happened::Over { exit, error } => TaskEvent {
                kind: if error.is_some() { TaskEventKind::Error } else { TaskEventKind::Complete },
                exit: *exit,
                text: error.clone(),
                ..event
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: Happened = Happened::Over { exit: None, error: None };

    /// The whole story behind a place, a byte at a time at the most `step`: marks as `|`, output as it is.
    fn told(story: &Story, text: &[u8], mut spot: Spot, step: u64) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match story.next(spot) {
                Next::Nothing | Next::End => return all,
                Next::Mark(_) => {
                    all.push(b'|');
                    spot = spot.behind_mark();
                }
                Next::Output(from, until) => {
                    let until = until.min(from + step);
                    all.extend(&text[usize::try_from(from).unwrap()..usize::try_from(until).unwrap()]);
                    spot = spot.at_byte(until);
                }
            }
        }
    }

    #[test]
    fn every_number_is_one_place_and_what_follows_it_is_the_rest() {
        let mut story = Story::default();
        let text = b"abcdefgh";
        story.add(Happened::State(TaskState::Pending), 0);
        story.add(Happened::State(TaskState::Running), 0);
        story.wrote(b"abc");
        story.add(Happened::Progress(10), 0);
        story.wrote(b"defgh");
        story.add(Happened::State(TaskState::Completed), 0);
        story.add(OVER, 0);
        let whole = b"||abc|defgh||";
        assert_eq!(story.end(), 13);
        for (number, rest) in (0..=13).zip((0..).map(|from| &whole[from..])) {
            let spot = story.spot(number);
            assert_eq!(spot.number(), number);
            for step in [1, 2, 100] {
                assert_eq!(told(&story, text, spot, step), rest, "{number}");
            }
        }
        assert_eq!((story.next(story.spot(13)), story.next(story.spot(99))), (Next::End, Next::End));
        let again = Story::restored(story.marks.clone(), 8);
        assert_eq!(told(&again, text, again.spot(4), 3), b"c|defgh||");
    }

    #[test]
    fn progress_is_by_words_wherever_they_are_cut_and_never_back() {
        let mut story = Story::default();
        assert_eq!(story.wrote(b"Start"), None);
        assert_eq!(story.wrote(b"ing Processin"), Some(10));
        story.add(Happened::Progress(10), 0);
        assert_eq!(story.wrote(b"g"), Some(50));
        story.add(Happened::Progress(50), 0);
        assert_eq!(story.wrote(b" Starting Processing Don"), None);
        assert_eq!(story.wrote(b"e"), Some(90));
        story.add(Happened::Progress(90), 0);
        assert_eq!((story.wrote(b"Completed"), story.progress()), (None, 90));
    }

    #[test]
    fn half_a_character_waits_for_its_other_half_or_the_end() {
        let mut story = Story::default();
        story.wrote("a\u{20ac}".as_bytes().get(..2).unwrap());
        assert_eq!(story.next(story.spot(0)), Next::Output(0, 1));
        assert_eq!(story.next(story.spot(1)), Next::Nothing);
        story.wrote(&[0x82]);
        assert_eq!(story.next(story.spot(1)), Next::Nothing);
        story.wrote(&[0xac]);
        assert_eq!(story.next(story.spot(1)), Next::Output(1, 4));
        story.wrote(&[0xf0]);
        assert_eq!(story.next(story.spot(4)), Next::Nothing);
        story.add(OVER, 0);
        assert_eq!(story.next(story.spot(4)), Next::Output(4, 5));
        for (text, expected) in [(&b""[..], 0), (b"a", 0), (b"\x80\x80\x80", 0), (b"\xff", 0), (b"\xe2\x82", 2)] {
            assert_eq!(unfinished(text), expected, "{text:?}");
        }
        let mut piece = "x\u{20ac}".as_bytes()[..3].to_vec();
        cut_at_character(&mut piece);
        assert_eq!(piece, b"x");
    }
}
