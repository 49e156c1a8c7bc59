//! What is said on a control connection after `Attach`, `Watch` or `Exec` was answered and the connection was upgraded.
//!
//! A frame is one byte for its kind, four for the length of what follows (little-endian), then that. Every kind has its
//! length or an upper bound; a stream that breaks one has no meaning any more. Bytes of terminals are carried as they are:
//! the daemon never parses them. The daemon reads [`FromViewer`] and writes [`ToViewer`], the command line the other way
//! round.

use std::marker::PhantomData;

/// The most that one frame carries, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Kind and length.
const HEADER_BYTES: usize = 5;

/// Most columns or rows of a terminal: the kernel's own bound is higher, that of any screen is lower.
pub const CELLS_MAX: u16 = 4_096;

/// The size of a terminal in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Its width, 1..=[`CELLS_MAX`].
    pub columns: u16,
    /// Its height, 1..=[`CELLS_MAX`].
    pub rows: u16,
}

impl Default for Size {
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

impl Size {
    /// A size with both numbers in their range.
    #[must_use]
    pub fn new(columns: u16, rows: u16) -> Option<Self> {
        let range = 1..=CELLS_MAX;
        (range.contains(&columns) && range.contains(&rows)).then_some(Self { columns, rows })
    }

    fn payload(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.columns.to_le_bytes(), self.rows.to_le_bytes());
        [a, b, c, d]
    }

    fn of_payload(payload: &[u8]) -> Option<Self> {
        let [a, b, c, d] = *payload else { return None };
        Self::new(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    }
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromViewer {
    /// What was typed, at most [`PAYLOAD_BYTES_MAX`]. A client that is not the writer is not heard.
    Input(Vec<u8>),
    /// Nothing more will be typed: the standard input of a program without a terminal ends.
    InputEnded,
    /// How large its own terminal is now; the program's follows that of the writer.
    Resized(Size),
    /// It leaves.
    Detach,
}

/// Whether what a client types reaches the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// It does, and the terminal has this client's size.
    Writer,
    /// Another one types; this one only sees.
    Viewer,
}

/// Whether a replay begins with the first byte that the program ever wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// It does.
    Whole,
    /// It begins anywhere in the stream, perhaps within a character.
    Cut,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// It could not be started: an error number, or 0 where there is none.
    NotStarted(u32),
    /// Nobody knows.
    Unknown,
}

impl Ended {
    const fn payload(self) -> [u8; 5] {
        let (how, value) = match self {
            Self::Exited(code) => (0, code as u32),
            Self::Signalled(signal) => (1, signal as u32),
            Self::NotStarted(errno) => (2, errno),
            Self::Unknown => (3, 0),
        };
        let [a, b, c, d] = value.to_le_bytes();
        [how, a, b, c, d]
    }

    fn of_payload(payload: &[u8]) -> Option<Self> {
        let [how, a, b, c, d] = *payload else { return None };
        let value = u32::from_le_bytes([a, b, c, d]);
        match how {
            0 => u8::try_from(value).ok().map(Self::Exited),
            1 => u8::try_from(value).ok().filter(|signal| (1..=64).contains(signal)).map(Self::Signalled),
            2 => Some(Self::NotStarted(value)),
            3 if value == 0 => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// Why a connection ends although the program goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// The client asked for it.
    Detached,
    /// The daemon ends or goes on as another build; the next one can be asked.
    DaemonLeaves,
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToViewer {
    /// What the program wrote, 1 to [`PAYLOAD_BYTES_MAX`] bytes.
    Output(Vec<u8>),
    /// The same, to its standard error; only of a program without a terminal.
    ErrorOutput(Vec<u8>),
    /// What follows until [`Self::ReplayEnds`] was written before; whatever was shown so far is no longer true.
    ReplayBegins(Replay),
    /// What follows is written now.
    ReplayEnds,
    /// The role of this client, from now on.
    Seated(Seat),
    /// The size of the program's terminal, from now on.
    Resized(Size),
    /// The program has ended and all that it wrote was said.
    Ended(Ended),
    /// The connection ends, the program goes on.
    Parted(Parting),
}

/// A stream has lost its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// No frame has this kind.
    #[error("frame of unknown kind {kind}")]
    Kind {
        /// What was said.
        kind: u8,
    },
    /// A frame is longer or shorter than its kind.
    #[error("frame of kind {kind} with {bytes} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: u32,
    },
    /// What it carries is out of range.
    #[error("frame of kind {kind} with a value out of range")]
    Value {
        /// Its kind.
        kind: u8,
    },
}

/// One direction of the talk.
pub trait Frame: Sized {
    /// The shortest and the longest payload of a kind; `None` for what no frame is.
    fn bounds(kind: u8) -> Option<(usize, usize)>;
    /// Its kind and payload.
    fn parts(&self) -> (u8, Vec<u8>);
    /// The frame of this kind; `None` if a value is out of range. The length was found to be within the bounds.
    fn of_parts(kind: u8, payload: &[u8]) -> Option<Self>;

    /// The frame on the wire. What is longer than may be is cut.
    fn encode(&self) -> Vec<u8> {
        let (kind, mut payload) = self.parts();
        payload.truncate(PAYLOAD_BYTES_MAX);
        let length = u32::try_from(payload.len()).unwrap_or(0);
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame.push(kind);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.append(&mut payload);
        frame
    }
}

impl Frame for FromViewer {
    fn bounds(kind: u8) -> Option<(usize, usize)> {
        Some(match kind {
            1 => (1, PAYLOAD_BYTES_MAX),
            2 | 4 => (0, 0),
            3 => (4, 4),
            _ => return None,
        })
    }

    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Input(bytes) => (1, bytes.clone()),
            Self::InputEnded => (2, Vec::new()),
            Self::Resized(size) => (3, size.payload().to_vec()),
            Self::Detach => (4, Vec::new()),
        }
    }

    fn of_parts(kind: u8, payload: &[u8]) -> Option<Self> {
        match kind {
            1 => Some(Self::Input(payload.to_vec())),
            2 => Some(Self::InputEnded),
            3 => Size::of_payload(payload).map(Self::Resized),
            4 => Some(Self::Detach),
            _ => None,
        }
    }
}

impl Frame for ToViewer {
    fn bounds(kind: u8) -> Option<(usize, usize)> {
        Some(match kind {
            129 | 130 => (1, PAYLOAD_BYTES_MAX),
            131 | 133 | 136 => (1, 1),
            132 => (0, 0),
            134 => (4, 4),
            135 => (5, 5),
            _ => return None,
        })
    }

    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Output(bytes) => (129, bytes.clone()),
            Self::ErrorOutput(bytes) => (130, bytes.clone()),
            Self::ReplayBegins(replay) => (131, vec![u8::from(*replay == Replay::Cut)]),
            Self::ReplayEnds => (132, Vec::new()),
            Self::Seated(seat) => (133, vec![u8::from(*seat == Seat::Viewer)]),
            Self::Resized(size) => (134, size.payload().to_vec()),
            Self::Ended(ended) => (135, ended.payload().to_vec()),
            Self::Parted(parting) => (136, vec![u8::from(*parting == Parting::DaemonLeaves)]),
        }
    }

    fn of_parts(kind: u8, payload: &[u8]) -> Option<Self> {
        let first = payload.first().copied();
        Some(match (kind, first) {
            (129, _) => Self::Output(payload.to_vec()),
            (130, _) => Self::ErrorOutput(payload.to_vec()),
            (131, Some(0)) => Self::ReplayBegins(Replay::Whole),
            (131, Some(1)) => Self::ReplayBegins(Replay::Cut),
            (132, _) => Self::ReplayEnds,
            (133, Some(0)) => Self::Seated(Seat::Writer),
            (133, Some(1)) => Self::Seated(Seat::Viewer),
            (134, _) => Self::Resized(Size::of_payload(payload)?),
            (135, _) => Self::Ended(Ended::of_payload(payload)?),
            (136, Some(0)) => Self::Parted(Parting::Detached),
            (136, Some(1)) => Self::Parted(Parting::DaemonLeaves),
            _ => return None,
        })
    }
}

/// Cuts a byte stream into frames. Holds what it was given, so its owner stops giving while [`Self::waiting_bytes`] is high.
#[derive(Debug)]
pub struct Decoder<F> {
    buffer: Vec<u8>,
    /// Bytes before this were given out.
    start: usize,
    failed: Option<AttachError>,
    frames: PhantomData<F>,
}

impl<F: Frame> Default for Decoder<F> {
    fn default() -> Self {
        Self { buffer: Vec::new(), start: 0, failed: None, frames: PhantomData }
    }
}

impl<F: Frame> Decoder<F> {
    /// Takes in what was read. Nothing is kept once a stream has lost its meaning.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives out the next whole frame; `None` until more is pushed.
    ///
    /// # Errors
    /// [`AttachError`], and from then on always.
    pub fn next_frame(&mut self) -> Result<Option<F>, AttachError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let found = self.parse();
        if let Err(error) = found {
            self.buffer = Vec::new();
            self.start = 0;
            self.failed = Some(error);
        }
        found
    }

    fn parse(&mut self) -> Result<Option<F>, AttachError> {
        let waiting = self.buffer.get(self.start..).unwrap_or_default();
        let Some(&kind) = waiting.first() else { return Ok(None) };
        // A kind that nobody speaks is refused with its first byte: its length would mean nothing.
        let (shortest, longest) = F::bounds(kind).ok_or(AttachError::Kind { kind })?;
        let Some(&[_, a, b, c, d]) = waiting.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let bytes = u32::from_le_bytes([a, b, c, d]);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if !(shortest..=longest).contains(&length) {
            return Err(AttachError::Length { kind, bytes });
        }
        let Some(payload) = waiting.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
        let frame = F::of_parts(kind, payload).ok_or(AttachError::Value { kind })?;
        self.start += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    /// Bytes that were pushed and not given out.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::super::seeded::Seeded;
    use super::*;

    fn said() -> Vec<FromViewer> {
        let size = Size { columns: 132, rows: 43 };
        vec![
            FromViewer::Input(b"ls\r".to_vec()),
            FromViewer::Input(vec![7; PAYLOAD_BYTES_MAX]),
            FromViewer::InputEnded,
            FromViewer::Resized(size),
            FromViewer::Detach,
        ]
    }

    fn told() -> Vec<ToViewer> {
        vec![
            ToViewer::Output(b"\x1b[2J".to_vec()),
            ToViewer::ErrorOutput(vec![0; 3]),
            ToViewer::ReplayBegins(Replay::Whole),
            ToViewer::ReplayBegins(Replay::Cut),
            ToViewer::ReplayEnds,
            ToViewer::Seated(Seat::Writer),
            ToViewer::Seated(Seat::Viewer),
            ToViewer::Resized(Size::default()),
            ToViewer::Ended(Ended::Exited(255)),
            ToViewer::Ended(Ended::Signalled(9)),
            ToViewer::Ended(Ended::NotStarted(2)),
            ToViewer::Ended(Ended::Unknown),
            ToViewer::Parted(Parting::Detached),
            ToViewer::Parted(Parting::DaemonLeaves),
        ]
    }

    fn all<F: Frame + Debug>(stream: &[u8], piece: usize) -> Result<Vec<F>, AttachError> {
        let mut decoder = Decoder::<F>::default();
        let mut frames = Vec::new();
        for bytes in stream.chunks(piece) {
            decoder.push(bytes);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        assert_eq!(decoder.waiting_bytes(), 0);
        Ok(frames)
    }

    #[test]
    fn what_is_said_is_heard_in_whatever_pieces() {
        let (from, to): (Vec<u8>, Vec<u8>) =
            (said().iter().flat_map(Frame::encode).collect(), told().iter().flat_map(Frame::encode).collect());
        for piece in [1, 4, 5, 6, 1000, 1 << 20] {
            assert_eq!(all::<FromViewer>(&from, piece).unwrap(), said());
            assert_eq!(all::<ToViewer>(&to, piece).unwrap(), told());
        }
    }

    #[test]
    fn what_breaks_a_bound_ends_the_stream() {
        let refused = |stream: &[u8]| all::<FromViewer>(stream, 3).unwrap_err();
        assert_eq!(refused(b"\x00"), AttachError::Kind { kind: 0 });
        assert_eq!(refused(b"\x81\x01\x00\x00\x00x"), AttachError::Kind { kind: 129 });
        assert_eq!(refused(b"\x01\x00\x00\x00\x00"), AttachError::Length { kind: 1, bytes: 0 });
        assert_eq!(refused(b"\x01\x01\x00\x01\x00"), AttachError::Length { kind: 1, bytes: 65_537 });
        assert_eq!(refused(b"\x04\xff\xff\xff\xff"), AttachError::Length { kind: 4, bytes: u32::MAX });
        assert_eq!(refused(b"\x03\x04\x00\x00\x00\x00\x00\x10\x00"), AttachError::Value { kind: 3 });
        assert_eq!(refused(b"\x03\x04\x00\x00\x00\x50\x00\x01\x10"), AttachError::Value { kind: 3 });
        let mut decoder = Decoder::<FromViewer>::default();
        decoder.push(b"\x00rest");
        decoder.next_frame().unwrap_err();
        decoder.push(b"\x04\x00\x00\x00\x00");
        assert_eq!((decoder.next_frame(), decoder.waiting_bytes()), (Err(AttachError::Kind { kind: 0 }), 0));
    }

    #[test]
    fn a_payload_that_is_too_long_is_cut_when_it_is_written() {
        let frame = FromViewer::Input(vec![7; PAYLOAD_BYTES_MAX + 1]).encode();
        assert_eq!(all::<FromViewer>(&frame, 1 << 20).unwrap(), [FromViewer::Input(vec![7; PAYLOAD_BYTES_MAX])]);
    }

    #[test]
    fn noise_panics_nowhere_and_is_not_kept() {
        let mut seeded = Seeded::new(7);
        let pieces: [&[u8]; 5] =
            [b"\x01\x03\x00\x00\x00abc", b"\x03\x04\x00\x00\x00", b"\x02\x00", b"\x87", b"\x00\x00"];
        for _ in 0..20_000 {
            let noise = seeded.bytes(64, &pieces);
            let mut decoder = Decoder::<FromViewer>::default();
            decoder.push(&noise);
            while let Ok(Some(frame)) = decoder.next_frame() {
                assert_eq!(all::<FromViewer>(&frame.encode(), 7).unwrap(), [frame]);
            }
            assert!(decoder.waiting_bytes() <= noise.len());
        }
    }
}
