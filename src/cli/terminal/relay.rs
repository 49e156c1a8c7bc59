//! Carries bytes between the operator's terminal and the daemon until one of them is done.
//!
//! Never waits for the daemon while there is something to show, and never holds back the keys that leave: what the daemon
//! does not take yet waits here, up to a bound.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use super::keys::{DetachKeys, Matcher};
use super::raw::Raw;
use super::screen::Screen;
use crate::cli::error::Error;
use crate::cli::stopwatch::Stopwatch;
use crate::protocol::attach::{
    Decoder, Ended, Frame as _, FromViewer, PAYLOAD_BYTES_MAX, Parting, Replay, Seat, Size, ToViewer,
};

const READ_BYTES: usize = 64 * 1024;
/// Nothing more is read of the keyboard while this much waits for the daemon: far more than anybody types, so that the keys
/// that leave are always heard.
const OUTGOING_BYTES_MAX: usize = 1 << 20;
/// A program is asked to draw its screen anew by a size that differs for this long: shorter, and it would not notice.
const NUDGE_TIME: Duration = Duration::from_millis(50);

/// Why a session is no longer shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Left {
    /// Its program has ended.
    Ended(Ended),
    /// The operator left it, or a signal had this program leave.
    Detached,
    /// The daemon is gone, and the session is not.
    Lost,
}

/// The exit status for the end of a program.
pub(in crate::cli) const fn code_of(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(code) => code,
        Ended::Signalled(signal) => 128_u8.saturating_add(signal),
        Ended::NotStarted(errno) => match errno {
            2 => 127,
            13 | 8 => 126,
            _ => 125,
        },
        Ended::Unknown => 1,
    }
}

/// The two signals that matter, as bytes that can be waited for.
struct Signals {
    resized: UnixStream,
    leave: UnixStream,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let pipe = |signals: &[i32]| -> std::io::Result<UnixStream> {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, far.try_clone()?)?;
            }
            Ok(near)
        };
        let both = pipe(&[SIGWINCH]).and_then(|resized| Ok(Self { resized, leave: pipe(&[SIGTERM, SIGHUP, SIGINT])? }));
        both.map_err(|source| Error::Terminal { source })
    }
}

/// Whether anything was there, which is then gone.
fn drained(mut pipe: &UnixStream) -> bool {
    let mut buffer = [0; 64];
    let mut any = false;
    while pipe.read(&mut buffer).is_ok_and(|count| count > 0) {
        any = true;
    }
    any
}

/// What is ready.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    keyboard: bool,
    readable: bool,
    writable: bool,
    signalled: bool,
}

/// A session that is shown.
pub(in crate::cli) struct Relay {
    terminal: Raw,
    stream: UnixStream,
    frames: Decoder<ToViewer>,
    keys: Option<Matcher>,
    signals: Signals,
    outgoing: Vec<u8>,
    /// What is being replayed.
    replayed: Option<(Replay, Vec<u8>)>,
    /// Whether a screen was shown already.
    shown: bool,
    /// Unknown until the daemon has said it: what is typed until then waits in the terminal.
    seat: Option<Seat>,
    /// The size of the session's terminal.
    size: Size,
    /// Since when it has a size that is only to have it drawn anew.
    nudged: Option<Stopwatch>,
    /// Whether who only sees did not expect that.
    complains: bool,
}

impl Relay {
    /// Takes the operator's terminal for a connection that was just upgraded; `rest` is what was read of it already.
    ///
    /// # Errors
    /// There is no terminal.
    pub(in crate::cli) fn begin(
        verb: &'static str,
        (stream, rest): (UnixStream, Vec<u8>),
        keys: Option<DetachKeys>,
        complains: bool,
    ) -> Result<Self, Error> {
        stream
            .set_read_timeout(None)
            .and_then(|()| stream.set_write_timeout(None))
            .and_then(|()| stream.set_nonblocking(true))
            .map_err(|source| Error::Terminal { source })?;
        let signals = Signals::listen()?;
        let terminal = Raw::take(verb)?;
        let mut frames = Decoder::default();
        frames.push(&rest);
        Ok(Self {
            terminal,
            stream,
            frames,
            keys: keys.map(Matcher::new),
            signals,
            outgoing: Vec::new(),
            replayed: None,
            shown: false,
            seat: None,
            size: Size::default(),
            nudged: None,
            complains,
        })
    }

    /// Shows the session until it is left; the terminal is then as it was.
    ///
    /// # Errors
    /// The terminal or the connection is broken.
    pub(in crate::cli) fn run(mut self, with_replay: bool) -> Result<Left, Error> {
        if !with_replay {
            self.say(&FromViewer::Resized(self.terminal.size()));
        }
        loop {
            if let Some(left) = self.take_frames()? {
                return Ok(left);
            }
            let ready = self.wait()?;
            if ready.signalled {
                if drained(&self.signals.leave) {
                    return Ok(self.detach());
                }
                if drained(&self.signals.resized) {
                    self.say(&FromViewer::Resized(self.terminal.size()));
                }
            }
            if self.nudged.is_some_and(|since| since.left_of(NUDGE_TIME).is_none()) {
                self.nudged = None;
                self.say(&FromViewer::Resized(self.terminal.size()));
            }
            if ready.keyboard && self.read_keyboard()? {
                return Ok(self.detach());
            }
            if ready.writable {
                self.write();
            }
            if ready.readable && !self.read()? {
                // What it said last is worth more than that it is gone.
                return Ok(self.take_frames()?.unwrap_or(Left::Lost));
            }
        }
    }

    fn wait(&self) -> Result<Ready, Error> {
        let timeout = self.nudged.map(|since| since.left_of(NUDGE_TIME).unwrap_or_default());
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let listens = if self.seat.is_some() && self.outgoing.len() < OUTGOING_BYTES_MAX {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let writes = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let stdin = self.terminal.stdin();
        let mut polled = [
            PollFd::from_borrowed_fd(stdin.as_fd(), listens),
            PollFd::new(&self.stream, PollFlags::IN | writes),
            PollFd::new(&self.signals.resized, PollFlags::IN),
            PollFd::new(&self.signals.leave, PollFlags::IN),
        ];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(Error::Terminal { source: errno.into() }),
        }
        let [keyboard, stream, resized, leave] = polled.map(|one| one.revents());
        let over = PollFlags::HUP | PollFlags::ERR;
        Ok(Ready {
            keyboard: keyboard.intersects(PollFlags::IN | over),
            readable: stream.intersects(PollFlags::IN | over),
            writable: stream.contains(PollFlags::OUT),
            signalled: !resized.is_empty() || !leave.is_empty(),
        })
    }

    /// Whether the keys that leave were among what was typed, or nobody types any more.
    fn read_keyboard(&mut self) -> Result<bool, Error> {
        let mut buffer = vec![0; READ_BYTES];
        let count = match rustix::io::read(self.terminal.stdin(), &mut buffer[..]) {
            Ok(0) | Err(Errno::IO) => return Ok(true),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(Error::Terminal { source: errno.into() }),
        };
        let typed = buffer.get(..count).unwrap_or_default();
        let (through, leaves) = match &mut self.keys {
            Some(keys) => keys.feed(typed),
            None => (typed.to_vec(), false),
        };
        if self.seat == Some(Seat::Writer) && !through.is_empty() {
            through.chunks(PAYLOAD_BYTES_MAX).for_each(|piece| self.say(&FromViewer::Input(piece.to_vec())));
        }
        Ok(leaves)
    }

    fn say(&mut self, frame: &FromViewer) {
        self.outgoing.extend(frame.encode());
        self.write();
    }

    /// Sends what the daemon takes. That it is gone is heard by reading.
    fn write(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) if count > 0 => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => return self.outgoing.clear(),
            }
        }
    }

    /// Reads a piece of what the daemon says; `false` at its end.
    fn read(&mut self) -> Result<bool, Error> {
        let mut buffer = vec![0; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.frames.push(buffer.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(error) if [ErrorKind::Interrupted, ErrorKind::WouldBlock].contains(&error.kind()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(source) => Err(Error::Call { method: "Attach", source }),
        }
    }

    fn take_frames(&mut self) -> Result<Option<Left>, Error> {
        loop {
            let unclear = |error: crate::protocol::attach::AttachError| Error::Answer {
                method: "Attach",
                reason: error.to_string(),
            };
            let Some(frame) = self.frames.next_frame().map_err(unclear)? else { return Ok(None) };
            match frame {
                ToViewer::Output(bytes) | ToViewer::ErrorOutput(bytes) => match &mut self.replayed {
                    Some((_, replayed)) => replayed.extend(bytes),
                    None => self.terminal.show(&bytes)?,
                },
                ToViewer::ReplayBegins(replay) => self.replayed = Some((replay, Vec::new())),
                ToViewer::ReplayEnds => self.paint()?,
                ToViewer::Seated(seat) => self.seat = Some(seat),
                ToViewer::Resized(size) => self.size = size,
                ToViewer::Ended(ended) => return Ok(Some(Left::Ended(ended))),
                ToViewer::Parted(Parting::Detached) => return Ok(Some(Left::Detached)),
                ToViewer::Parted(Parting::DaemonLeaves) => return Ok(Some(Left::Lost)),
            }
        }
    }

    /// Shows the screen that the replay left, and has the program draw it anew where that may not be all.
    fn paint(&mut self) -> Result<(), Error> {
        let Some((replay, written)) = self.replayed.take() else { return Ok(()) };
        let own = self.terminal.size();
        let screen = Screen::after(&written, replay, self.size);
        if !self.shown {
            // What the operator had on the terminal stays above.
            self.terminal.show("\r\n".repeat(usize::from(own.rows)).as_bytes())?;
        }
        self.terminal.show(&screen.painted())?;
        let first = !std::mem::replace(&mut self.shown, true);
        if first && self.complains && self.seat == Some(Seat::Viewer) {
            let note = "somebody else types here: this is only shown; --steal takes over";
            self.terminal.show(format!("\x1b7\x1b[{};1H\x1b[7m{note}\x1b[0m\x1b8", own.rows).as_bytes())?;
        }
        let draws_itself = own != self.size;
        if first && !draws_itself && self.seat == Some(Seat::Writer) && (replay == Replay::Cut || screen.is_alternate())
        {
            self.nudge(own);
        } else {
            self.say(&FromViewer::Resized(own));
        }
        Ok(())
    }

    /// A program draws its screen anew when the size changes: it does so twice.
    fn nudge(&mut self, own: Size) {
        match Size::new(own.columns, own.rows.saturating_sub(1)) {
            Some(smaller) => {
                self.say(&FromViewer::Resized(smaller));
                self.nudged = Some(Stopwatch::start());
            }
            None => self.say(&FromViewer::Resized(own)),
        }
    }

    fn detach(&mut self) -> Left {
        self.say(&FromViewer::Detach);
        Left::Detached
    }
}

/// Reads what a connection that was just upgraded to a watching one replays: what was written, and the terminal's size.
///
/// # Errors
/// The daemon went away, or said something else.
pub(in crate::cli) fn replay((mut stream, rest): (UnixStream, Vec<u8>)) -> Result<(Vec<u8>, Replay, Size), Error> {
    let method = "Watch";
    let mut frames = Decoder::<ToViewer>::default();
    frames.push(&rest);
    let (mut written, mut how, mut size) = (Vec::new(), Replay::Whole, Size::default());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match frames.next_frame().map_err(|error| Error::Answer { method, reason: error.to_string() })? {
            Some(ToViewer::Output(bytes)) => written.extend(bytes),
            Some(ToViewer::ReplayBegins(replay)) => {
                how = replay;
                written.clear();
            }
            Some(ToViewer::Resized(known)) => size = known,
            Some(ToViewer::ReplayEnds | ToViewer::Ended(_)) => return Ok((written, how, size)),
            Some(ToViewer::Seated(_) | ToViewer::ErrorOutput(_)) => {}
            Some(ToViewer::Parted(_)) => return Err(Error::Lost { method }),
            None => match stream.read(&mut buffer) {
                Ok(0) => return Err(Error::Lost { method }),
                Ok(count) => frames.push(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Call { method, source }),
            },
        }
    }
}
