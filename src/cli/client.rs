//! A blocking Varlink client over a unix stream: one call at a time, its answers in order.
//!
//! The only place of the command line that talks to the daemon.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Error;
use super::input::{Input, Outgoing};
use super::stopwatch::Stopwatch;
use crate::protocol::control::{CallFailure, ExecuteReply, Request};
use crate::protocol::varlink::{Decoder, Reply};
use crate::spec::Role;

/// How much is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// How long a daemon may be silent to a question that it can answer at once. Orders take the time that they take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a daemon.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
    patience: Duration,
    /// Descriptors that came with answers.
    passed: VecDeque<OwnedFd>,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// No daemon answers there (exit 3), or this caller may not connect (1).
    pub(super) fn connect(path: &Path) -> Result<Self, Error> {
        let path_buf = path.to_path_buf();
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self::over(stream)),
            Err(source) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&source.kind()) => {
                Err(Error::Unreachable { path: path_buf })
            }
            Err(source) if source.kind() == ErrorKind::PermissionDenied => Err(Error::Denied { path: path_buf }),
            Err(source) => Err(Error::Connect { path: path_buf, source }),
        }
    }

    /// Talks over a stream that is connected already.
    pub(super) fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::for_replies(),
            buffer: vec![0; READ_BYTES],
            patience: PATIENCE,
            passed: VecDeque::new(),
        }
    }

    /// Asks, and returns the one answer.
    ///
    /// # Errors
    /// The daemon's refusal, or a lost connection.
    pub(super) fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Error> {
        self.send(request, false)?;
        let (answer, _) = self.answer(request)?;
        Ok(answer)
    }

    /// Asks, and hands every answer to `each` until the last one.
    ///
    /// # Errors
    /// The daemon's refusal, a lost connection, or what `each` returned.
    pub(super) fn call_more<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut each: impl FnMut(T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.send(request, true)?;
        loop {
            let (answer, continues) = self.answer(request)?;
            each(answer)?;
            if !continues {
                return Ok(());
            }
        }
    }

    /// Asks for what becomes true at its own time, and hands every answer to `each` until the last one, for no longer than
    /// `limit`.
    ///
    /// # Errors
    /// The daemon's refusal, a lost connection, what `each` returned, or [`Error::Silent`] when the time is over.
    pub(super) fn await_more<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        limit: Option<Duration>,
        mut each: impl FnMut(T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let method = request.method().1;
        let began = Stopwatch::start();
        self.send(request, true)?;
        loop {
            let left = match limit.map(|limit| began.left_of(limit).filter(|left| !left.is_zero())) {
                Some(None) => return Err(Error::Silent { method, seconds: limit.map_or(0, |limit| limit.as_secs()) }),
                Some(left) => left,
                None => None,
            };
            self.stream.set_read_timeout(left).map_err(|source| Error::Call { method, source })?;
            let (answer, continues) = self.answer(request)?;
            each(answer)?;
            if !continues {
                return Ok(());
            }
        }
    }

    /// Asks, and gives the connection away for the protocol that is spoken after the answer, with what was read of it.
    ///
    /// # Errors
    /// The daemon's refusal, or a lost connection.
    pub(super) fn upgrade<T: DeserializeOwned>(
        mut self,
        request: &Request,
    ) -> Result<(T, (UnixStream, Vec<u8>)), Error> {
        self.send(request, false)?;
        let (answer, _) = self.answer(request)?;
        Ok((answer, (self.stream, self.decoder.take_rest())))
    }

    /// As [`Client::call_more`], with a descriptor beside the call.
    ///
    /// # Errors
    /// The daemon's refusal, a lost connection, or what `each` returned.
    pub(super) fn call_more_with<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        fd: BorrowedFd<'_>,
        mut each: impl FnMut(T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let method = request.method().1;
        let mut call = request.to_call();
        call.more = true;
        self.pass(&call.encode(), fd).map_err(|source| self.failed(method, source))?;
        loop {
            let (answer, continues) = self.answer(request)?;
            each(answer)?;
            if !continues {
                return Ok(());
            }
        }
    }

    /// Has a request carried out, with a descriptor beside it if there is one, and sends `input` to it meanwhile; hands chunks and the
    /// answer to `each` with the descriptors that came with them.
    ///
    /// # Errors
    /// The daemon's refusal, a lost connection, or what `each` returned.
    pub(super) fn execute(
        &mut self,
        request: &Request,
        more: bool,
        fd: Option<BorrowedFd<'_>>,
        input: Option<&mut Input>,
        mut each: impl FnMut(ExecuteReply, Option<OwnedFd>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let method = request.method().1;
        match fd {
            None => self.send(request, more)?,
            Some(fd) => {
                let mut call = request.to_call();
                call.more = more;
                self.pass(&call.encode(), fd).map_err(|source| self.failed(method, source))?;
            }
        }
        let mut input = input;
        let mut out = None;
        loop {
            if let Some(input) = &mut input {
                self.feed(method, input, &mut out)?;
            }
            let (answer, continues): (ExecuteReply, _) = self.answer(request)?;
            let comes_along = answer.payload.is_some_and(|payload| payload.in_request != Some(true));
            let passed = if comes_along { self.passed.pop_front() } else { None };
            each(answer, passed)?;
            if !continues {
                return Ok(());
            }
        }
    }

    /// Sends a request's input until a reply has begun to come, or all of it has gone.
    fn feed(&mut self, method: &'static str, input: &mut Input, out: &mut Option<Outgoing>) -> Result<(), Error> {
        let failed = |source: std::io::Error| Error::Call { method, source };
        loop {
            if out.is_none() {
                *out = input.next()?;
            }
            if self.decoder.waiting_bytes() > 0 || out.is_none() && input.is_over() {
                return Ok(());
            }
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, out.is_some());
            let mut polled = vec![PollFd::new(&self.stream, wanted)];
            let source = input.fd();
            if out.is_none() {
                polled.push(PollFd::new(&source, PollFlags::IN));
            }
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
            let news = |at: usize| polled.get(at).map_or(PollFlags::empty(), PollFd::revents);
            let (of_socket, of_file) = (news(0), news(1));
            if of_socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
            if let Some(message) = out.as_mut().filter(|_| of_socket.contains(PollFlags::OUT)) {
                match self.send_some(message) {
                    Ok(true) => *out = None,
                    Ok(false) | Err(Errno::AGAIN | Errno::INTR) => {}
                    // It has closed early, and may have said why.
                    Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                    Err(errno) => return Err(failed(errno.into())),
                }
            } else if !of_file.is_empty() {
                input.fill()?;
            }
        }
    }

    /// Sends what the socket takes of a message; whether that is all of it.
    fn send_some(&self, message: &mut Outgoing) -> Result<bool, Errno> {
        let rest = message.bytes.get(message.sent..).unwrap_or_default();
        let fds: Vec<BorrowedFd<'_>> = message.memory.iter().filter(|_| message.sent == 0).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::NOBUFS);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        message.sent += sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, flags)?;
        Ok(message.sent >= message.bytes.len())
    }

    /// Reads what there is, and keeps the descriptors that come with it.
    fn receive(&mut self) -> std::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [IoSliceMut::new(&mut self.buffer)];
        let received = recvmsg(&self.stream, &mut text, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.passed.extend(rights);
            }
        }
        Ok(received.bytes)
    }

    /// Writes with a descriptor beside the first byte.
    fn pass(&mut self, bytes: &[u8], fd: BorrowedFd<'_>) -> std::io::Result<()> {
        self.stream.set_write_timeout(Some(self.patience))?;
        self.stream.set_read_timeout(None)?;
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(rustix::io::Errno::NOBUFS.into());
        }
        let text = [IoSlice::new(bytes)];
        let sent = sendmsg(&self.stream, &text, &mut control, SendFlags::NOSIGNAL)?;
        self.stream.write_all(bytes.get(sent..).unwrap_or_default())
    }

    /// Asks, and returns the first of several answers; the others are on their way as long as this lives.
    ///
    /// # Errors
    /// The daemon's refusal, or a lost connection.
    pub(super) fn first<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Error> {
        self.send(request, true)?;
        let (answer, _) = self.answer(request)?;
        Ok(answer)
    }

    /// Whether the daemon has said nothing more, nor gone.
    pub(super) fn is_silent(&mut self) -> bool {
        let set = self.stream.set_nonblocking(true);
        let read = set.and_then(|()| self.stream.read(&mut self.buffer));
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Waits until the daemon closes the connection; what it still says is dropped.
    pub(super) fn wait_for_end(&mut self) {
        while self.stream.read(&mut self.buffer).is_ok_and(|length| length > 0) {}
    }

    fn send(&mut self, request: &Request, more: bool) -> Result<(), Error> {
        let method = request.method().1;
        let mut call = request.to_call();
        call.more = more;
        let counts = matches!(request, Request::ListVolumes(list) if list.usage == Some(true));
        let at_once = request.role() == Role::Observe && !request.follows() && !counts;
        self.stream
            .set_write_timeout(Some(self.patience))
            .and_then(|()| self.stream.set_read_timeout(at_once.then_some(self.patience)))
            .map_err(|source| Error::Call { method, source })?;
        match self.stream.write_all(&call.encode()) {
            Ok(()) => Ok(()),
            // A daemon that closed early may have said why.
            Err(source) if source.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(self.failed(method, source)),
        }
    }

    fn failed(&self, method: &'static str, source: std::io::Error) -> Error {
        if source.kind() == ErrorKind::ConnectionReset {
            Error::Lost { method }
        } else if source.kind() == ErrorKind::WouldBlock {
            Error::Silent { method, seconds: self.patience.as_secs() }
        } else {
            Error::Call { method, source }
        }
    }

    fn answer<T: DeserializeOwned>(&mut self, request: &Request) -> Result<(T, bool), Error> {
        let method = request.method().1;
        let unclear = |reason: String| Error::Answer { method, reason };
        let frame = loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| unclear(error.to_string()))? {
                break frame;
            }
            match self.receive() {
                Ok(0) => return Err(Error::Lost { method }),
                Ok(length) => self.decoder.push(&self.buffer[..length]),
                Err(source) if source.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(method, source)),
            }
        };
        let reply = Reply::decode(&frame).map_err(|error| unclear(error.to_string()))?;
        if let Some(failure) = CallFailure::from_reply(&reply) {
            return Err(Error::Refused(failure));
        }
        let answer = T::deserialize(Value::Object(reply.parameters)).map_err(|error| unclear(error.to_string()))?;
        Ok((answer, reply.continues))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::exit_code::ExitCode;
    use crate::protocol::control::{Empty, Error as ControlError, ListReply, ListRequest, NoParameters, ReloadReply};
    use crate::protocol::varlink::Call;

    /// A client whose daemon has already said `replies` and then, if `gone`, left.
    fn client(replies: &[Reply], gone: bool) -> (Client, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        for reply in replies {
            far.write_all(&reply.encode()).unwrap();
        }
        if gone {
            far.shutdown(std::net::Shutdown::Write).unwrap();
        }
        (Client::over(near), far)
    }

    const PING: Request = Request::Ping(NoParameters {});

    #[test]
    fn a_call_is_sent_and_its_answer_read() {
        let (mut client, mut daemon) = client(&[Reply::last(&Empty {})], false);
        assert_eq!(client.call::<Empty>(&PING).unwrap(), Empty {});
        let mut sent = vec![0; 100];
        let length = daemon.read(&mut sent).unwrap();
        let call = Call::decode(&sent[..length - 1]).unwrap();
        assert_eq!((call.method.as_str(), call.more), ("io.halsup.Control.Ping", false));
    }

    #[test]
    fn more_answers_are_read_until_the_last() {
        let piece = |name: &str| ReloadReply { added: vec![name.into()], ..ReloadReply::default() };
        let (mut client, _daemon) =
            client(&[Reply::piece(&piece("a")), Reply::last(&piece("b")), Reply::last(&piece("c"))], false);
        let mut seen = Vec::new();
        let take = |reply: ReloadReply| {
            seen.extend(reply.added);
            Ok(())
        };
        client.call_more(&Request::Reload(NoParameters {}), take).unwrap();
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn whatever_goes_wrong_has_its_code() {
        let missing = ControlError::NotFound { what: "pool web".into() };
        let (mut refused, _daemon) = client(&[missing.to_reply()], false);
        let error = refused.call::<Empty>(&PING).unwrap_err();
        assert_eq!((error.sentence().as_str(), error.exit_code()), ("pool web does not exist", ExitCode::NotFound));

        let (mut lost, _daemon) = client(&[], true);
        let error = lost.call::<Empty>(&PING).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Unreachable);

        let (mut unclear, _daemon) = client(&[Reply::last(&Empty {})], false);
        let error = unclear.call::<ListReply>(&Request::List(ListRequest::default())).unwrap_err();
        assert!(error.sentence().contains("missing field `workers`"), "{}", error.sentence());
        assert_eq!(error.exit_code(), ExitCode::Failed);
    }

    #[test]
    fn a_daemon_that_says_nothing_is_not_waited_for_without_end() {
        let (mut silent, _daemon) = client(&[], false);
        silent.patience = Duration::from_millis(10);
        let error = silent.call::<Empty>(&PING).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Saturated);
        assert_eq!(error.sentence(), "the daemon has not answered Ping within 0 s");

        let (mut slow, _daemon) = client(&[Reply::last(&ReloadReply::default())], false);
        slow.call::<ReloadReply>(&Request::Reload(NoParameters {})).unwrap();
        assert_eq!(slow.stream.read_timeout().unwrap(), None, "an order takes the time that it takes");
    }

    #[test]
    fn where_no_daemon_is_the_sentence_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        assert!(matches!(Client::connect(&path), Err(Error::Unreachable { .. })), "no socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(Client::connect(&path), Err(Error::Unreachable { .. })), "a socket that nobody holds");
        let long = directory.path().join("x".repeat(200));
        assert!(matches!(Client::connect(&long), Err(Error::Connect { .. })));
    }
}
