//! Cuts a stream of bytes into lines, of bounded length whatever comes.

/// A longer line is cut into pieces of this length, in bytes.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// Why a line ends where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There was a newline, or there is no more.
    Newline,
    /// It was too long and goes on.
    Cut,
}

/// What came behind the last newline of one stream.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// At most [`LINE_BYTES_MAX`]; empty and without memory of its own between whole lines.
    partial: Vec<u8>,
}

impl Lines {
    /// Gives every line that `bytes` completes to `emit`, without its newline.
    pub fn feed(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&[u8], End)) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            let window = bytes.get(..=room).unwrap_or(bytes);
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                let (line, rest) = bytes.split_at(end);
                if self.partial.is_empty() {
                    emit(line, End::Newline);
                } else {
                    self.partial.extend_from_slice(line);
                    emit(&self.take(), End::Newline);
                }
                bytes = rest.get(1..).unwrap_or_default();
            } else if window.len() > room {
                let (fill, rest) = bytes.split_at(room);
                self.partial.extend_from_slice(fill);
                let keep = self.partial.split_off(boundary(&self.partial));
                emit(&self.partial, End::Cut);
                self.partial = keep;
                bytes = rest;
            } else {
                self.partial.extend_from_slice(bytes);
                bytes = &[];
            }
        }
    }

    /// Goes on where another left off: behind what was `unfinished` there.
    #[must_use]
    pub fn after(unfinished: &[u8]) -> Self {
        let start = unfinished.len().saturating_sub(LINE_BYTES_MAX);
        Self { partial: unfinished.get(start..).unwrap_or_default().to_vec() }
    }

    /// What waits for a newline, at most [`LINE_BYTES_MAX`].
    #[must_use]
    pub fn unfinished(&self) -> &[u8] {
        &self.partial
    }

    /// What waits for a newline, which then waits no more.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

/// Where to cut `piece` so that no character is split: its end, or the start of a character that it holds a part of.
fn boundary(piece: &[u8]) -> usize {
    for (back, byte) in piece.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x00..=0x7f | 0xf8..=0xff => 1,
        };
        return if length > back + 1 { piece.len() - back - 1 } else { piece.len() };
    }
    piece.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> (Vec<(Vec<u8>, End)>, Vec<u8>) {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, |line, end| found.push((line.to_vec(), end)));
        }
        (found, lines.take())
    }

    #[test]
    fn chunks_do_not_matter() {
        let text = b"one\n\ntwo\nrest";
        let whole = lines(&[text]);
        assert_eq!(whole.0, [(b"one".to_vec(), End::Newline), (vec![], End::Newline), (b"two".to_vec(), End::Newline)]);
        assert_eq!(whole.1, b"rest");
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines(&bytes), whole);
    }

    #[test]
    fn a_long_line_is_cut_whatever_the_chunks() {
        let mut text = vec![b'x'; 2 * LINE_BYTES_MAX + 5];
        text.extend(b"\nend\n");
        let whole = lines(&[&text]);
        let lengths: Vec<(usize, End)> = whole.0.iter().map(|(line, end)| (line.len(), *end)).collect();
        let full = (LINE_BYTES_MAX, End::Cut);
        assert_eq!(lengths, [full, full, (5, End::Newline), (3, End::Newline)]);
        for size in [1, 7, 4096, LINE_BYTES_MAX, LINE_BYTES_MAX + 1] {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(lines(&chunks), whole, "chunks of {size}");
        }
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let mut text = vec![b'x'; LINE_BYTES_MAX];
        text.push(b'\n');
        assert_eq!(lines(&[&text]).0.len(), 1);
        let (found, rest) = lines(&[&text[..LINE_BYTES_MAX], b"\n"]);
        assert_eq!((found.len(), rest.len()), (1, 0));
    }

    #[test]
    fn no_character_is_split() {
        for (shift, character) in [(1, "ä"), (1, "€"), (2, "€"), (3, "🦀")] {
            let mut text = vec![b'x'; LINE_BYTES_MAX - shift];
            text.extend(character.as_bytes());
            text.extend(b"y\n");
            let (found, _) = lines(&[&text]);
            assert_eq!(found.len(), 2, "{character}");
            assert!(found.iter().all(|(line, _)| std::str::from_utf8(line).is_ok()), "{character} {shift}");
        }
        // Bytes that are no text are cut anywhere, and none is lost.
        let (found, rest) = lines(&[&vec![0x80; LINE_BYTES_MAX + 1]]);
        assert_eq!(found[0].0.len() + rest.len(), LINE_BYTES_MAX + 1);
    }
}
