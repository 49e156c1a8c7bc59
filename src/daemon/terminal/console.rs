//! The master end of one terminal: what is typed on its way in, what was written on its way out, its size.
//!
//! Never blocks and never parses what passes. Input is bounded: what does not fit is the sender's to keep.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use super::ring::Ring;
use crate::daemon::live::Watched;
use crate::protocol::attach::{Ended, Size};

/// How much may wait for a program that does not read its terminal, in bytes.
pub(in crate::daemon) const INPUT_BYTES_MAX: usize = 64 * 1024;

/// How a read of the master went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many bytes are at the start of the buffer.
    Bytes(usize),
    /// There is nothing now.
    Nothing,
    /// Nobody has the other end open: nothing will come unless somebody opens it again.
    HungUp,
}

/// The input does not fit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) struct Full;

/// One terminal.
#[derive(Debug)]
pub(in crate::daemon) struct Console {
    /// `None` until the program starts, and once it has ended and all was read.
    pub(super) master: Option<Watched>,
    pub(in crate::daemon) ring: Ring,
    typed: VecDeque<u8>,
    size: Size,
    /// How its program ended, once it has.
    pub(in crate::daemon) ended: Option<Ended>,
    /// The last byte that was logged is a carriage return that may belong to a line end.
    return_waits: bool,
}

impl Console {
    /// One whose program is about to start.
    pub(super) fn to_come(size: Size) -> Self {
        Self { master: None, ring: Ring::default(), typed: VecDeque::new(), size, ended: None, return_waits: false }
    }

    /// One that is there, with what is known of what was written to it.
    pub(super) fn new(master: Watched, ring: Ring) -> Self {
        let size = tcgetwinsize(&master.fd).ok().and_then(|size| Size::new(size.ws_col, size.ws_row));
        Self { master: Some(master), ring, ..Self::to_come(size.unwrap_or_default()) }
    }

    /// Its program starts; what was typed before is for it.
    pub(super) fn begin(&mut self, master: Watched) {
        self.master = Some(master);
        self.resize(self.size);
        self.write();
    }

    fn fd(&self) -> Option<&OwnedFd> {
        self.master.as_ref().map(|master| &master.fd)
    }

    /// Its size.
    pub(in crate::daemon) const fn size(&self) -> Size {
        self.size
    }

    /// Gives it another size, of which the kernel tells the program.
    pub(super) fn resize(&mut self, size: Size) {
        let Some(master) = self.fd() else {
            self.size = size;
            return;
        };
        let window = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        match tcsetwinsize(master, window) {
            Ok(()) => self.size = size,
            Err(errno) => tracing::warn!(target: "worker", %errno, "resize a terminal"),
        }
    }

    /// Reads a piece of what the program wrote; its end is kept in the ring.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> Taken {
        loop {
            let Some(master) = self.fd() else { return Taken::HungUp };
            match rustix::io::read(master, &mut *buffer) {
                Ok(0) | Err(Errno::IO) => return Taken::HungUp,
                Ok(count) => {
                    self.ring.push(buffer.get(..count).unwrap_or_default());
                    return Taken::Bytes(count);
                }
                Err(Errno::INTR) => {}
                Err(_) => return Taken::Nothing,
            }
        }
    }

    /// The same bytes as a log has them: a terminal ends lines with two characters.
    pub(super) fn for_the_log(&mut self, written: &[u8]) -> Vec<u8> {
        let mut logged = Vec::with_capacity(written.len() + 1);
        for byte in written {
            if self.return_waits && *byte != b'\n' {
                logged.push(b'\r');
            }
            self.return_waits = *byte == b'\r';
            if !self.return_waits {
                logged.push(*byte);
            }
        }
        logged
    }

    /// Puts what was typed on its way, all or nothing.
    ///
    /// # Errors
    /// [`Full`]: the program does not read, and enough waits already.
    pub(in crate::daemon) fn type_in(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if self.typed.len() + bytes.len() > INPUT_BYTES_MAX {
            return Err(Full);
        }
        self.typed.extend(bytes);
        self.write();
        Ok(())
    }

    /// Writes what was typed, as far as the terminal takes it; whether there is more room than before.
    pub(super) fn write(&mut self) -> bool {
        let before = self.typed.len();
        loop {
            let (front, _) = self.typed.as_slices();
            let Some(master) = self.fd().filter(|_| !front.is_empty()) else { break };
            match rustix::io::write(master.as_fd(), front) {
                Ok(0) => break,
                Ok(count) => drop(self.typed.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Nobody has the other end open: what was typed for it meets nobody.
                Err(_) => self.typed.clear(),
            }
        }
        self.typed.len() < before
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use mio::Token;
    use rustix::fs::OFlags;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

    use super::*;

    /// A terminal in raw mode and its slave end.
    fn terminal() -> (Console, std::fs::File) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut attributes = tcgetattr(&slave).unwrap();
        attributes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &attributes).unwrap();
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
        (Console::new(Watched { fd: master, token: Token(0) }, Ring::default()), slave.into())
    }

    #[test]
    fn what_a_program_wrote_last_is_read_to_its_end_however_late() {
        let (mut console, mut slave) = terminal();
        let mut buffer = [0; 512];
        assert_eq!(console.take(&mut buffer), Taken::Nothing);
        slave.write_all(&[b'x'; 3_000]).unwrap();
        drop(slave);
        let mut read = 0;
        while let Taken::Bytes(count) = console.take(&mut buffer) {
            read += count;
        }
        assert_eq!((read, console.ring.end()), (3_000, 3_000));
        assert_eq!(console.take(&mut buffer), Taken::HungUp);
    }

    #[test]
    fn input_waits_for_a_program_that_does_not_read_up_to_a_bound() {
        let (mut console, mut slave) = terminal();
        let mut sent = 0;
        while console.type_in(&[b'y'; 1_000]).is_ok() {
            sent += 1_000;
        }
        assert!(console.typed.len() <= INPUT_BYTES_MAX && sent >= INPUT_BYTES_MAX);
        assert_eq!(console.type_in(&[b'z'; 1_000]), Err(Full), "all or nothing");
        let (mut read, mut buffer) = (0, vec![0; 4_096]);
        while read < sent {
            read += slave.read(&mut buffer).unwrap();
            console.write();
        }
        assert_eq!((read, console.typed.len()), (sent, 0));
        drop(slave);
        assert_eq!(console.type_in(b"to nobody"), Ok(()));
    }

    #[test]
    fn the_program_sees_the_size_that_it_is_given() {
        let (mut console, slave) = terminal();
        assert_eq!(console.size(), Size::default(), "a terminal without a size has the usual one");
        console.resize(Size { columns: 132, rows: 43 });
        let window = tcgetwinsize(&slave).unwrap();
        assert_eq!((window.ws_col, window.ws_row), (132, 43));
        assert_eq!(console.size(), Size { columns: 132, rows: 43 });
    }

    #[test]
    fn a_log_has_plain_line_ends() {
        let (mut console, _slave) = terminal();
        let mut logged = Vec::new();
        for piece in [&b"one\r"[..], b"\ntwo\r\n\r", b"\r\nbar\rbaz\n", b"\r", b"x"] {
            logged.extend(console.for_the_log(piece));
        }
        assert_eq!(logged.escape_ascii().to_string(), r"one\ntwo\n\r\nbar\rbaz\n\rx");
    }
}
