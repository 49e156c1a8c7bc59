//! One question to a port of this host, as far as its socket has come: connect, ask, read the first line of the answer.
//!
//! Never waits. The worker at the other end is not trusted: what it sends is bounded, and only a status line of success
//! counts, or of a gRPC server the first words of HTTP/2. Called by `probe`, which knows whom it asks and why.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::spec::Probe;

/// The status line of an answer, with whatever comes with it, in bytes.
const ANSWER_BYTES_MAX: usize = 1_024;
/// How much of an answer is read after its verdict, so that an honest server can finish it, in bytes.
const REST_BYTES_MAX: usize = 256 * 1_024;

/// How a client of HTTP/2 begins: its preface, and settings that change nothing (RFC 9113, 3.4). A server that lives answers
/// with its own.
const HTTP2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The head of a frame of HTTP/2, in bytes.
const HTTP2_HEAD_BYTES: usize = 9;

/// How far a question has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is known yet.
    Pending,
    /// The answer is a good one. There may be more of it to read: see [`Question::is_over`].
    Passed,
    /// Refused, broken off, or not a good answer.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connecting,
    /// So many bytes of the request are sent.
    Asking(usize),
    Reading,
    /// So many bytes were read after the verdict.
    Finishing(usize),
    Over,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Question {
    socket: OwnedFd,
    step: Step,
    verdict: Verdict,
    /// Empty where a connection is answer enough.
    request: Vec<u8>,
    /// Whether the answer is a frame of HTTP/2, of a connection that has no end by itself.
    frames: bool,
    answer: Vec<u8>,
}

impl Question {
    /// Begins to ask `127.0.0.1:port`; then [`Question::advance`].
    ///
    /// # Errors
    /// What keeps the daemon from asking, such as EMFILE; what the other side does is no error but a verdict.
    pub(super) fn begin(port: u16, probe: &Probe) -> Result<Self, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        let request = match probe {
            Probe::Tcp => Vec::new(),
            Probe::Grpc => HTTP2_BEGIN.to_vec(),
            Probe::Http { path } => {
                format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
            }
        };
        let connected = rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let (step, verdict, frames) = (Step::Connecting, Verdict::Pending, *probe == Probe::Grpc);
        let mut question = Self { socket, step, verdict, request, frames, answer: Vec::new() };
        match connected {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(errno @ (Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM)) => return Err(errno),
            Err(_) => question.decide(Verdict::Failed),
        }
        Ok(question)
    }

    /// The socket, to be watched until [`Question::is_over`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket itself, of a question that a connection was answer enough for.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Whether nothing more is to be said or read.
    pub(super) fn is_over(&self) -> bool {
        self.step == Step::Over
    }

    /// Goes as far as it can without waiting.
    pub(super) fn advance(&mut self) -> Verdict {
        loop {
            let before = self.step;
            match before {
                Step::Connecting => self.connected(),
                Step::Asking(sent) => self.ask(sent),
                Step::Reading => self.read(),
                Step::Finishing(count) => self.finish(count),
                Step::Over => {}
            }
            if self.step == before {
                return self.verdict;
            }
        }
    }

    fn decide(&mut self, verdict: Verdict) {
        self.verdict = verdict;
        let has_rest = verdict == Verdict::Passed && !self.request.is_empty() && !self.frames;
        self.step = if has_rest { Step::Finishing(0) } else { Step::Over };
    }

    fn connected(&mut self) {
        match rustix::net::sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return self.decide(Verdict::Failed),
        }
        match rustix::net::getpeername(&self.socket) {
            // Not yet: it neither failed nor has anybody at the other end.
            Err(Errno::NOTCONN) => {}
            Ok(Some(peer)) => {
                // Where nobody listens on a port that the kernel also gives out by itself, a socket may meet itself.
                let itself = rustix::net::getsockname(&self.socket).is_ok_and(|own| own == peer);
                match (itself, self.request.is_empty()) {
                    (true, _) => self.decide(Verdict::Failed),
                    (false, true) => self.decide(Verdict::Passed),
                    (false, false) => self.step = Step::Asking(0),
                }
            }
            Ok(None) | Err(_) => self.decide(Verdict::Failed),
        }
    }

    fn ask(&mut self, sent: usize) {
        let rest = self.request.get(sent..).unwrap_or_default();
        match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) if sent + count >= self.request.len() => self.step = Step::Reading,
            Ok(count) => self.step = Step::Asking(sent + count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.decide(Verdict::Failed),
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; ANSWER_BYTES_MAX];
        // A byte at a time from a hostile server is still at most this many turns of this loop.
        while self.answer.len() < ANSWER_BYTES_MAX {
            let room = buffer.get_mut(..ANSWER_BYTES_MAX - self.answer.len()).unwrap_or_default();
            let count = match rustix::net::recv(&self.socket, room, RecvFlags::empty()) {
                Ok((count, _)) => count,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(_) => return self.decide(Verdict::Failed),
            };
            self.answer.extend_from_slice(buffer.get(..count).unwrap_or_default());
            let whole = if self.frames { self.answer.len() >= HTTP2_HEAD_BYTES } else { self.answer.contains(&b'\n') };
            if count == 0 || whole {
                break;
            }
        }
        let good = if self.frames { is_settings(&self.answer) } else { is_success(&self.answer) };
        self.decide(if good { Verdict::Passed } else { Verdict::Failed });
    }

    fn finish(&mut self, mut count: usize) {
        let mut buffer = [0; 4_096];
        while count < REST_BYTES_MAX {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((more, _)) if more > 0 => count += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.step = Step::Finishing(count);
                    return;
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.step = Step::Over;
    }
}

/// Whether an answer begins with a status line of the 200s.
fn is_success(answer: &[u8]) -> bool {
    let Some(line) = answer.split(|byte| *byte == b'\n').next() else { return false };
    let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|byte| *byte == b' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().unwrap_or_default();
    version.starts_with(b"HTTP/1.") && matches!(status, [b'2', a, b] if a.is_ascii_digit() && b.is_ascii_digit())
}

/// Whether an answer begins with the settings of a server of HTTP/2: a frame of that type, which acknowledges nothing, of no
/// stream.
fn is_settings(answer: &[u8]) -> bool {
    matches!(answer, [_, _, _, 4, 0, stream @ ..] if stream.get(..4) == Some(&[0; 4]))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn wait(question: &Question) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut polled = [PollFd::from_borrowed_fd(question.fd(), PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1, "nothing came");
    }

    /// Asks by HTTP and has the server do `serve` once it has read the request.
    fn asked(serve: impl FnOnce(TcpStream)) -> (Question, Verdict) {
        let (listener, port) = listener();
        let mut question = Question::begin(port, &Probe::Http { path: "/up".to_owned() }).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(question.advance(), Verdict::Pending);
        let mut request = [0; 256];
        let count = server.read(&mut request).unwrap();
        assert_eq!(&request[..count], b"GET /up HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        serve(server);
        wait(&question);
        let verdict = question.advance();
        (question, verdict)
    }

    #[test]
    fn only_a_status_line_of_success_passes() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], Verdict::Passed),
            (b"HTTP/1.0 204\r\n", Verdict::Passed),
            (b"HTTP/1.1 299 ", Verdict::Passed),
            (b"HTTP/1.1 302 Found\r\n", Verdict::Failed),
            (b"HTTP/1.1 500 Oh\r\n", Verdict::Failed),
            (b"HTTP/1.1 2000 OK\r\n", Verdict::Failed),
            (b"HTTP/1.1 20 OK\r\n", Verdict::Failed),
            (b"SSH-2.0-x 200 y\r\n", Verdict::Failed),
            (b"\xff\x00 200 \n", Verdict::Failed),
            (b"\n", Verdict::Failed),
            (b"", Verdict::Failed),
        ] {
            let (question, verdict) = asked(|mut server| server.write_all(answer).unwrap());
            assert_eq!(verdict, expected, "{}", answer.escape_ascii());
            assert!(question.is_over());
        }
    }

    #[test]
    fn a_status_line_without_end_is_not_read_for_ever() {
        let (question, verdict) = asked(|mut server| {
            let mut answer = b"HTTP/1.1 ".to_vec();
            answer.resize(ANSWER_BYTES_MAX + 1, b' ');
            server.write_all(&answer).unwrap();
            // The server goes on: the verdict does not wait for its end.
            std::mem::forget(server);
        });
        assert_eq!(verdict, Verdict::Failed);
        assert!(question.is_over());
    }

    #[test]
    fn a_grpc_server_passes_by_its_settings() {
        for (answer, expected) in [
            (&b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0@\0"[..], Verdict::Passed),
            (b"\0\0\0\x04\0\0\0\0\0", Verdict::Passed),
            (b"\0\0\0\x04\x01\0\0\0\0", Verdict::Failed),
            (b"\0\0\0\x04\0\0\0\0\x01", Verdict::Failed),
            (b"\0\0\0\x07\0\0\0\0\0", Verdict::Failed),
            (b"\0\0\0\x04", Verdict::Failed),
            (b"HTTP/1.1 200 OK\r\n\r\n", Verdict::Failed),
            (b"", Verdict::Failed),
        ] {
            let (listener, port) = listener();
            let mut question = Question::begin(port, &Probe::Grpc).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(question.advance(), Verdict::Pending);
            let mut request = [0; 256];
            let count = server.read(&mut request).unwrap();
            assert_eq!(&request[..count], HTTP2_BEGIN);
            server.write_all(answer).unwrap();
            // One that has said its settings does not hang up.
            if expected == Verdict::Failed {
                drop(server);
                wait(&question);
                while question.advance() == Verdict::Pending {
                    wait(&question);
                }
                assert_eq!(question.advance(), expected, "{}", answer.escape_ascii());
            } else {
                wait(&question);
                assert_eq!(question.advance(), expected, "{}", answer.escape_ascii());
            }
            assert!(question.is_over());
        }
    }

    #[test]
    fn a_server_may_finish_its_answer_after_the_verdict() {
        let mut kept = None;
        let (mut question, verdict) = asked(|mut server| {
            server.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
            kept = Some(server);
        });
        assert_eq!((verdict, question.is_over()), (Verdict::Passed, false));
        let mut server = kept.unwrap();
        server.write_all(b"\r\nbody").unwrap();
        drop(server);
        while !question.is_over() {
            wait(&question);
            assert_eq!(question.advance(), Verdict::Passed);
        }
    }

    #[test]
    fn a_connection_is_answer_enough_for_tcp_and_a_closed_port_is_none() {
        let (listener, port) = listener();
        let mut question = Question::begin(port, &Probe::Tcp).unwrap();
        let server = listener.accept().unwrap();
        assert_eq!(question.advance(), Verdict::Passed);
        assert!(question.is_over());
        drop((server, listener, question));
        let mut question = Question::begin(port, &Probe::Tcp).unwrap();
        assert_eq!(question.advance(), Verdict::Failed);
        assert!(question.is_over());
    }
}
