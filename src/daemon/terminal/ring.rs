//! The last that a program wrote to its terminal, and how far each viewer has come in it.
//!
//! Nothing waits for a viewer here: what it has not read in time is overwritten, and it is given a replay instead. Bytes
//! are counted from the first that the program wrote, so that a place in the stream has one number for ever.

use std::collections::VecDeque;

use crate::protocol::attach::{PAYLOAD_BYTES_MAX, Replay, ToViewer};

/// How much of the output is kept, in bytes: several screens of the most colourful program.
pub(in crate::daemon) const RING_BYTES: usize = 256 * 1024;

/// The kept output.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Ring {
    bytes: VecDeque<u8>,
    /// How many were written before the first of them.
    start: u64,
}

impl Ring {
    /// One whose first bytes are lost: those that were written to an earlier daemon.
    pub(super) fn of_the_middle() -> Self {
        Self { start: 1, ..Self::default() }
    }

    /// Adds what was written last; the oldest gives way.
    pub(super) fn push(&mut self, written: &[u8]) {
        let kept = written.get(written.len().saturating_sub(RING_BYTES)..).unwrap_or_default();
        let excess = (self.bytes.len() + kept.len()).saturating_sub(RING_BYTES);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
        self.start += count(excess + (written.len() - kept.len()));
    }

    /// The place behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.start + count(self.bytes.len())
    }

    /// At most `max` bytes from a place on, which is in the ring.
    fn read(&self, from: u64, max: usize) -> Vec<u8> {
        let skipped = usize::try_from(from.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let end = self.bytes.len().min(skipped.saturating_add(max));
        let (front, back) = self.bytes.as_slices();
        let mut read = Vec::with_capacity(end.saturating_sub(skipped));
        for (slice, offset) in [(front, 0), (back, front.len())] {
            let (first, last) = (skipped.max(offset), end.min(offset + slice.len()));
            if first < last {
                read.extend_from_slice(slice.get(first - offset..last - offset).unwrap_or_default());
            }
        }
        read
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// How far one viewer has come.
#[derive(Debug)]
pub(in crate::daemon) struct View {
    /// The place of the next byte that it is told.
    at: u64,
    /// A replay is to begin.
    fresh: bool,
    /// A replay is under way, up to this place.
    replayed_to: Option<u64>,
}

impl View {
    /// One that is first told what the ring holds.
    pub(in crate::daemon) const fn from_the_start() -> Self {
        Self { at: 0, fresh: true, replayed_to: None }
    }

    /// One that looks before anything is written.
    pub(in crate::daemon) const fn from_start_of_new() -> Self {
        Self { at: 0, fresh: false, replayed_to: None }
    }

    /// One that is told what is written from now on.
    pub(in crate::daemon) fn from_now(ring: &Ring) -> Self {
        Self { at: ring.end(), fresh: false, replayed_to: None }
    }

    /// How many bytes it has not been told.
    pub(super) fn lag(&self, ring: &Ring) -> u64 {
        if self.fresh { 0 } else { ring.end().saturating_sub(self.at) }
    }

    /// The place of the next byte that it is told.
    pub(super) const fn place(&self) -> u64 {
        self.at
    }

    /// Whether it has been told everything.
    pub(in crate::daemon) fn is_up_to_date(&self, ring: &Ring) -> bool {
        !self.fresh && self.replayed_to.is_none() && self.at == ring.end()
    }

    /// The next thing to tell it.
    pub(in crate::daemon) fn next(&mut self, ring: &Ring) -> Option<ToViewer> {
        if self.fresh || self.at < ring.start {
            self.fresh = false;
            self.at = ring.start;
            self.replayed_to = Some(ring.end());
            let replay = if ring.start == 0 { Replay::Whole } else { Replay::Cut };
            return Some(ToViewer::ReplayBegins(replay));
        }
        if self.replayed_to.is_some_and(|until| self.at >= until) {
            self.replayed_to = None;
            return Some(ToViewer::ReplayEnds);
        }
        let left = self.replayed_to.unwrap_or_else(|| ring.end()) - self.at;
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(PAYLOAD_BYTES_MAX);
        let bytes = ring.read(self.at, max);
        self.at += count(bytes.len());
        (!bytes.is_empty()).then_some(ToViewer::Output(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a viewer is told now: what it shows afterwards, and how many replays there were.
    fn told(view: &mut View, ring: &Ring, shown: &mut Vec<u8>) -> usize {
        let mut replays = 0;
        while let Some(frame) = view.next(ring) {
            if let ToViewer::Output(bytes) = frame {
                assert!((1..=PAYLOAD_BYTES_MAX).contains(&bytes.len()));
                shown.extend(bytes);
            } else if matches!(frame, ToViewer::ReplayBegins(_)) {
                replays += 1;
                shown.clear();
            } else {
                assert_eq!(frame, ToViewer::ReplayEnds);
            }
        }
        assert!(view.is_up_to_date(ring));
        replays
    }

    fn numbers(from: u32, to: u32) -> Vec<u8> {
        (from..to).flat_map(|n| format!("{n:07}\n").into_bytes()).collect()
    }

    #[test]
    fn a_viewer_is_told_what_was_written_before_and_then_everything() {
        let mut ring = Ring::default();
        ring.push(b"before ");
        let (mut view, mut late) = (View::from_the_start(), View::from_now(&ring));
        let (mut shown, mut shown_late) = (Vec::new(), Vec::new());
        assert_eq!(told(&mut view, &ring, &mut shown), 1);
        ring.push(b"after");
        assert_eq!(view.lag(&ring), 5);
        assert_eq!(told(&mut view, &ring, &mut shown), 0);
        assert_eq!(told(&mut late, &ring, &mut shown_late), 0);
        assert_eq!((shown.as_slice(), shown_late.as_slice()), (&b"before after"[..], &b"after"[..]));
        let mut second = View::from_the_start();
        assert_eq!(second.next(&ring), Some(ToViewer::ReplayBegins(Replay::Whole)));
    }

    #[test]
    fn the_ring_holds_the_last_of_it_and_no_more() {
        let mut ring = Ring::default();
        let written = numbers(0, 100_000);
        for piece in written.chunks(4_097) {
            ring.push(piece);
            assert!(ring.bytes.len() <= RING_BYTES);
        }
        assert_eq!(ring.end(), 800_000);
        let (mut view, mut shown) = (View::from_the_start(), Vec::new());
        assert_eq!(view.next(&ring), Some(ToViewer::ReplayBegins(Replay::Cut)));
        told(&mut view, &ring, &mut shown);
        assert!(shown == written[written.len() - RING_BYTES..]);
        let mut at_once = Ring::default();
        at_once.push(&written);
        assert_eq!((at_once.start, at_once.end()), (ring.start, 800_000));
        assert!(at_once.bytes == ring.bytes);
    }

    #[test]
    fn a_viewer_that_reads_in_time_misses_nothing_and_one_that_does_not_is_given_a_replay() {
        let mut ring = Ring::default();
        let (mut prompt, mut slow) = (View::from_now(&ring), View::from_now(&ring));
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let written = numbers(0, 200_000);
        for piece in written.chunks(RING_BYTES / 2) {
            ring.push(piece);
            assert_eq!(told(&mut prompt, &ring, &mut all), 0);
        }
        assert!(all == written);
        assert_eq!(told(&mut slow, &ring, &mut some), 1);
        assert!(some == written[written.len() - RING_BYTES..], "what it shows is true, if not all");
    }

    #[test]
    fn a_replay_that_is_overtaken_begins_anew() {
        let mut ring = Ring::default();
        ring.push(&numbers(0, 30_000));
        let mut view = View::from_the_start();
        view.next(&ring);
        assert!(matches!(view.next(&ring), Some(ToViewer::Output(_))));
        ring.push(&numbers(0, 60_000));
        let mut shown = b"old".to_vec();
        assert_eq!(told(&mut view, &ring, &mut shown), 1);
        assert_eq!(shown.len(), RING_BYTES);
    }

    #[test]
    fn what_an_earlier_daemon_read_is_missing() {
        let mut ring = Ring::of_the_middle();
        ring.push(b"x");
        let mut view = View::from_the_start();
        assert_eq!(view.next(&ring), Some(ToViewer::ReplayBegins(Replay::Cut)));
    }
}
