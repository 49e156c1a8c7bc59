//! The standard descriptors of a program without a terminal that a client has started: three pipes, read only as fast as the
//! client reads.
//!
//! Nothing is kept or skipped here: who does not read holds back its own program, and nobody else.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use mio::Interest;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::console::{Full, INPUT_BYTES_MAX};
use crate::daemon::live::Watched;
use crate::daemon::sources::{Source, Sources};
use crate::protocol::attach::{PAYLOAD_BYTES_MAX, ToViewer};

/// The daemon's ends.
#[derive(Debug)]
pub(in crate::daemon) struct Pipes {
    input: Option<Watched>,
    output: Option<Watched>,
    errors: Option<Watched>,
    typed: VecDeque<u8>,
    /// Nothing comes behind what was typed.
    input_ends: bool,
    /// Whether there may be something to read.
    pub(in crate::daemon) ready: bool,
    /// Whether errors are looked for first: neither stream can keep the other from being read.
    errors_first: bool,
}

impl Pipes {
    /// Makes them; news of them is news of `source`. Also the program's ends, in their order.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub(in crate::daemon) fn make(source: Source, sources: &mut Sources) -> io::Result<(Self, [OwnedFd; 3])> {
        let (their_input, input) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, their_output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (errors, their_errors) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut pipes = Self {
            input: None,
            output: None,
            errors: None,
            typed: VecDeque::new(),
            input_ends: false,
            ready: false,
            errors_first: false,
        };
        let steps = || -> io::Result<()> {
            pipes.input = Some(watch(input, Interest::WRITABLE, source, sources)?);
            pipes.output = Some(watch(output, Interest::READABLE, source, sources)?);
            pipes.errors = Some(watch(errors, Interest::READABLE, source, sources)?);
            Ok(())
        };
        if let Err(error) = steps() {
            pipes.close(sources);
            return Err(error);
        }
        Ok((pipes, [their_input, their_output, their_errors]))
    }

    /// The next piece that the program wrote.
    pub(in crate::daemon) fn next(&mut self, sources: &mut Sources) -> Option<ToViewer> {
        self.errors_first = !self.errors_first;
        let mut buffer = vec![0; PAYLOAD_BYTES_MAX];
        for errors in [self.errors_first, !self.errors_first] {
            let end = if errors { &mut self.errors } else { &mut self.output };
            if let Some(count) = read(end, &mut buffer, sources) {
                buffer.truncate(count);
                return Some(if errors { ToViewer::ErrorOutput(buffer) } else { ToViewer::Output(buffer) });
            }
        }
        self.ready = false;
        None
    }

    /// Puts what was typed on its way, all or nothing.
    ///
    /// # Errors
    /// [`Full`]: the program does not read, and enough waits already.
    pub(in crate::daemon) fn type_in(&mut self, bytes: &[u8], sources: &mut Sources) -> Result<(), Full> {
        if self.typed.len() + bytes.len() > INPUT_BYTES_MAX {
            return Err(Full);
        }
        self.typed.extend(bytes);
        self.write(sources);
        Ok(())
    }

    /// Ends the program's standard input behind what was typed.
    pub(in crate::daemon) fn end_input(&mut self, sources: &mut Sources) {
        self.input_ends = true;
        self.write(sources);
    }

    /// Writes what was typed, as far as the pipe takes it.
    pub(in crate::daemon) fn write(&mut self, sources: &mut Sources) {
        let mut closed = false;
        while let (Some(input), (front, _)) = (&self.input, self.typed.as_slices())
            && !front.is_empty()
        {
            match rustix::io::write(&input.fd, front) {
                Ok(count) if count > 0 => drop(self.typed.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The program has closed it.
                Ok(_) | Err(_) => {
                    closed = true;
                    break;
                }
            }
        }
        if (closed || self.input_ends)
            && let Some(input) = self.input.take()
        {
            input.close(sources);
        }
        if self.input.is_none() {
            self.typed.clear();
        }
    }

    /// Deregisters and closes what is open.
    pub(in crate::daemon) fn close(self, sources: &mut Sources) {
        for end in [self.input, self.output, self.errors].into_iter().flatten() {
            end.close(sources);
        }
    }
}

fn watch(fd: OwnedFd, interest: Interest, source: Source, sources: &mut Sources) -> io::Result<Watched> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    let token = sources.add(fd.as_fd(), source, interest)?;
    Ok(Watched { fd, token })
}

/// How many bytes were read; `None` for nothing now, and at the end.
fn read(end: &mut Option<Watched>, buffer: &mut [u8], sources: &mut Sources) -> Option<usize> {
    loop {
        let open = end.as_ref()?;
        match rustix::io::read(&open.fd, &mut *buffer) {
            Ok(0) => {
                if let Some(ended) = end.take() {
                    ended.close(sources);
                }
                return None;
            }
            Ok(count) => return Some(count),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use super::*;

    fn pipes() -> (Pipes, [File; 3], Sources, mio::Poll) {
        let poll = mio::Poll::new().unwrap();
        let mut sources = Sources::new(poll.registry().try_clone().unwrap());
        let (pipes, theirs) = Pipes::make(Source::Client(0), &mut sources).unwrap();
        (pipes, theirs.map(File::from), sources, poll)
    }

    #[test]
    fn both_outputs_are_read_in_turn_and_to_their_ends() {
        let (mut pipes, [_stdin, mut stdout, mut stderr], mut sources, _poll) = pipes();
        stdout.write_all(&[b'o'; 60_000]).unwrap();
        stderr.write_all(b"oops").unwrap();
        let first = [pipes.next(&mut sources), pipes.next(&mut sources)];
        assert!(first.contains(&Some(ToViewer::ErrorOutput(b"oops".to_vec()))));
        assert!(first.contains(&Some(ToViewer::Output(vec![b'o'; 60_000]))));
        assert_eq!(pipes.next(&mut sources), None);
        drop((stdout, stderr));
        assert_eq!(pipes.next(&mut sources), None);
        assert!(pipes.output.is_none() && pipes.errors.is_none());
        pipes.close(&mut sources);
    }

    #[test]
    fn input_is_bounded_and_ends_behind_what_was_typed() {
        let (mut pipes, [mut stdin, _stdout, _stderr], mut sources, _poll) = pipes();
        let mut sent = 0;
        while pipes.type_in(&[b'i'; 10_000], &mut sources).is_ok() {
            sent += 10_000;
        }
        assert!(pipes.typed.len() <= INPUT_BYTES_MAX && sent > INPUT_BYTES_MAX, "a pipe's worth is in the pipe");
        pipes.end_input(&mut sources);
        let (mut read, mut buffer) = (0, vec![0; 100_000]);
        while read < sent {
            read += stdin.read(&mut buffer).unwrap();
            pipes.write(&mut sources);
        }
        assert_eq!((read, stdin.read(&mut buffer).unwrap()), (sent, 0));
        assert!(pipes.input.is_none());
    }

    #[test]
    fn input_for_a_program_that_has_closed_it_is_dropped() {
        let (mut pipes, [stdin, _stdout, _stderr], mut sources, _poll) = pipes();
        drop(stdin);
        assert_eq!(pipes.type_in(b"x", &mut sources), Ok(()));
        assert!(pipes.input.is_none() && pipes.typed.is_empty());
        assert_eq!(pipes.type_in(b"y", &mut sources), Ok(()));
        assert!(pipes.typed.is_empty());
    }
}
