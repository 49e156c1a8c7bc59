//! The operator's own terminal while a session is shown on it: raw, and afterwards as it was.
//!
//! Whatever the program of the session has switched on is switched off when the session is left, and what the terminal has
//! answered to it meanwhile is thrown away, so that neither lands in the shell (HARDENING E3).

use std::io::{IsTerminal as _, Stdin, Stdout, Write as _};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::error::Error;
use crate::cli::stopwatch::Stopwatch;
use crate::protocol::attach::Size;

/// Leaves the alternate screen; ends mouse reports and bracketed paste; shows the cursor; ends colours.
pub(super) const RESET: &str = "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m";
/// Before it: leaving an alternate screen that was not entered moves the cursor to where it was saved.
const SAVE_CURSOR: &str = "\x1b7";
/// A question that every terminal answers, and only after all that it was asked before (DSR, ECMA-48).
const QUESTION: &str = "\x1b[5n";
const ANSWER: &[u8] = b"\x1b[0n";
/// A terminal that does not answer is not waited for any longer, however far away it is.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// The terminal in raw mode; as it was once this is dropped.
#[derive(Debug)]
pub(super) struct Raw {
    stdin: Stdin,
    stdout: Stdout,
    before: Termios,
}

impl Raw {
    /// Takes the terminal of standard input and output.
    ///
    /// # Errors
    /// One of them is none.
    pub(super) fn take(verb: &'static str) -> Result<Self, Error> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        if !stdin.is_terminal() || !stdout.is_terminal() {
            return Err(Error::NoTerminal { verb });
        }
        let failed = |errno: rustix::io::Errno| Error::Terminal { source: errno.into() };
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        // What was typed ahead is for the session.
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { stdin, stdout, before })
    }

    /// Its size; the usual one where it does not say.
    pub(super) fn size(&self) -> Size {
        size(&self.stdout)
    }

    pub(super) fn stdin(&self) -> &Stdin {
        &self.stdin
    }

    /// Shows bytes as they are.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn show(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::output)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Where the terminal is gone, there is nothing to put in order.
        if self.show(format!("{SAVE_CURSOR}{RESET}\r\n{QUESTION}").as_bytes()).is_ok() {
            throw_away_answers(&self.stdin);
        }
        tcsetattr(&self.stdin, OptionalActions::Flush, &self.before).unwrap_or_default();
    }
}

fn size(stdout: &Stdout) -> Size {
    let found = tcgetwinsize(stdout).ok();
    found.and_then(|size| Size::new(size.ws_col, size.ws_row)).unwrap_or_default()
}

/// The size of the operator's terminal.
///
/// # Errors
/// There is none.
pub(in crate::cli) fn size_of_terminal(verb: &'static str) -> Result<Size, Error> {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    if stdin.is_terminal() && stdout.is_terminal() { Ok(size(&stdout)) } else { Err(Error::NoTerminal { verb }) }
}

/// Reads what the terminal has to say to questions that the session has asked it, up to its answer to the last one.
fn throw_away_answers(stdin: &Stdin) {
    let asked = Stopwatch::start();
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    while let Some(left) = asked.left_of(ANSWER_TIME)
        && is_readable(stdin, left)
    {
        match rustix::io::read(stdin, &mut buffer) {
            Ok(count) if count > 0 => said.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Ok(_) | Err(_) => return,
        }
        if said.windows(ANSWER.len()).any(|piece| piece == ANSWER) {
            return;
        }
    }
}

/// Whether something can be read within this time.
fn is_readable(fd: &impl AsFd, time: Duration) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    let timeout = Timespec::try_from(time).ok();
    poll(&mut polled, timeout.as_ref()).is_ok_and(|count| count > 0)
}
