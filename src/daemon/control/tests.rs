//! One connection over a socket pair, with a clock of the test's: what it says, waits for, and may not do.

use std::fs::{Permissions, set_permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use mio::Token;

use super::client::{CLOSE_TIMEOUT, FIRST_MESSAGE_TIMEOUT, MESSAGE_TIMEOUT, Task};
use super::*;
use crate::protocol::control::{CallFailure, Empty};
use crate::protocol::varlink::{Decoder, FRAME_BYTES_MAX, Reply};

const PEER: Principal = Principal { uid: 1000, gid: 1000, pid: 1, web: None };
const START: Time = Time(0);

struct Pair {
    near: Client,
    far: UnixStream,
    received: Decoder,
}

fn pair() -> Pair {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let near = Client::new(near.into(), Token(0), 1, PEER, START);
    Pair { near, far, received: Decoder::for_replies() }
}

impl Pair {
    fn send(&mut self, bytes: &[u8]) {
        self.far.write_all(bytes).unwrap();
        self.near.read();
    }

    /// What has been written to the far end.
    fn replies(&mut self) -> Vec<Reply> {
        let mut buffer = [0; 64 << 10];
        loop {
            let more = self.near.write();
            match self.far.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.received.push(&buffer[..count]),
                Err(_nothing) if !more => break,
                Err(_nothing) => {}
            }
        }
        std::iter::from_fn(|| self.received.next_frame().unwrap()).map(|frame| Reply::decode(&frame).unwrap()).collect()
    }

    /// The reason of the only reply, which ends the connection.
    fn last_words(&mut self) -> String {
        let replies = self.replies();
        assert_eq!(replies.len(), 1);
        assert!(self.near.is_gone(), "it is over once that is written");
        CallFailure::from_reply(&replies[0]).unwrap().to_string()
    }
}

#[test]
fn messages_come_one_by_one_and_wait_while_one_is_worked_on() {
    let mut pair = pair();
    pair.send(b"{1}\0{2}\0{3");
    assert_eq!(pair.near.next_frame(START).unwrap(), b"{1}");
    pair.near.task = Task::Order;
    pair.near.note_calls(false);
    assert!(!pair.near.takes_calls() && !pair.near.has_calls());
    pair.near.task = Task::Idle;
    assert!(pair.near.has_calls(), "the kernel does not say so again");
    assert_eq!(pair.near.next_frame(START).unwrap(), b"{2}");
    assert_eq!(pair.near.next_frame(START), None);
    pair.near.note_calls(true);
    assert!(!pair.near.has_calls() && pair.near.takes_calls());
}

#[test]
fn a_client_that_reads_nothing_is_not_asked_for_more() {
    let mut pair = pair();
    pair.near.say(&Reply::last(&Empty {}), START);
    assert!(!pair.near.takes_calls(), "its reply is on its way");
    assert_eq!(pair.replies().len(), 1);
    assert!(pair.near.takes_calls());
}

#[test]
fn what_waits_unread_is_bounded_and_holds_back_its_sender() {
    let mut pair = pair();
    pair.near.task = Task::Order;
    let mut sent = 0;
    let piece = vec![b'x'; 16 << 10];
    let mut stuck = 0;
    while stuck < 3 {
        match pair.far.write(&piece) {
            Ok(count) => (sent, stuck) = (sent + count, 0),
            Err(_full) => stuck += 1,
        }
        pair.near.read();
    }
    assert!(sent < 4 * FRAME_BYTES_MAX, "{sent} bytes were taken from somebody whose call is not done");
    drop(pair.far);
    pair.near.read();
    assert!(pair.near.is_gone(), "who hangs up is noticed although nothing more is read");
}

#[test]
fn a_message_without_end_is_refused_once() {
    let mut pair = pair();
    for _ in 0..=FRAME_BYTES_MAX / (32 << 10) {
        pair.send(&vec![b'x'; 32 << 10]);
    }
    assert_eq!(pair.near.next_frame(START), None);
    assert!(!pair.near.takes_calls());
    assert_eq!(pair.last_words(), "refused: message is longer than 262144 bytes");
}

#[test]
fn who_says_nothing_or_half_a_thing_has_a_deadline() {
    let mut silent = pair();
    let due = silent.near.arm().unwrap();
    assert_eq!(due, clock::after(START, FIRST_MESSAGE_TIMEOUT));
    assert_eq!(silent.near.arm(), None, "one timer is enough");
    silent.near.expire(due);
    assert_eq!(silent.last_words(), "refused: a first message did not come within 5 s");

    let mut slow = pair();
    slow.send(b"{\"method\"");
    assert_eq!(slow.near.next_frame(START), None);
    let due = slow.near.arm().unwrap();
    assert_eq!(due, clock::after(START, MESSAGE_TIMEOUT));
    slow.send(b":");
    assert_eq!(slow.near.next_frame(Time(due.0 - 1)), None, "a further byte buys no time");
    slow.near.expire(due);
    assert_eq!(slow.last_words(), "refused: the rest of a message did not come within 2 s");

    let mut prompt = pair();
    prompt.send(b"{}\0");
    assert!(prompt.near.next_frame(START).is_some());
    assert_eq!(prompt.near.next_frame(START), None);
    assert_eq!(prompt.near.arm(), None, "who has spoken may stay");
    prompt.near.expire(clock::after(START, Duration::from_secs(3600)));
    assert!(prompt.near.takes_calls());
}

#[test]
fn a_reader_that_is_too_slow_is_let_go_with_a_reason() {
    let mut pair = pair();
    let long = Reply::last(&serde_json::json!({ "text": "x".repeat(600_000) }));
    pair.near.say(&long, START);
    assert!(!pair.near.write());
    pair.near.say(&long, START);
    pair.near.say(&long, START);
    let replies = pair.replies();
    assert_eq!(replies.len(), 2, "the reply that had begun, and why there is no other");
    assert_eq!(replies[0], long);
    let words = CallFailure::from_reply(&replies[1]).unwrap().to_string();
    assert_eq!(words, "refused: replies were not read as fast as they came");
    assert!(pair.near.is_gone());
}

#[test]
fn who_does_not_even_read_the_last_words_is_cut_off() {
    let mut pair = pair();
    pair.near.say(&Reply::last(&serde_json::json!({ "text": "x".repeat(4 << 20) })), START);
    assert!(!pair.near.write(), "the socket is full");
    pair.near.close(START);
    let due = pair.near.arm().unwrap();
    assert_eq!(due, clock::after(START, CLOSE_TIMEOUT));
    assert!(!pair.near.is_gone());
    pair.near.expire(due);
    assert!(pair.near.is_gone());
}

#[test]
fn who_has_finished_speaking_is_still_answered() {
    let mut pair = pair();
    pair.send(b"{}\0");
    pair.far.shutdown(std::net::Shutdown::Write).unwrap();
    pair.near.read();
    assert!(pair.near.next_frame(START).is_some());
    pair.near.task = Task::Order;
    pair.near.note_calls(false);
    pair.near.task = Task::Idle;
    pair.near.say(&Reply::last(&Empty {}), START);
    assert_eq!(pair.replies().len(), 1);
    assert!(pair.near.has_calls(), "the end itself is still to be taken");
    assert_eq!(pair.near.next_frame(START), None);
    pair.near.write();
    assert!(pair.near.is_gone());
}

#[test]
fn an_answer_beyond_the_protocol_is_refused_instead() {
    let mut pair = pair();
    pair.near.say(&Reply::last(&serde_json::json!({ "text": "x".repeat(16 << 20) })), START);
    let replies = pair.replies();
    assert!(CallFailure::from_reply(&replies[0]).unwrap().to_string().contains("ask with `more`"));
}

fn control() -> Control {
    Control {
        listener: None,
        passed: false,
        path: PathBuf::new(),
        own_uid: 0,
        paused: false,
        accepted: 0,
        is_short: false,
        clients: BTreeMap::new(),
        next_number: 0,
        orders: Orders::default(),
        claims: Claims::default(),
        lines: FollowedLines::default(),
        complained: None,
        unsaid: 0,
    }
}

#[test]
fn no_user_can_take_all_places_and_root_has_some_of_its_own() {
    let mut control = control();
    let add = |control: &mut Control, uid: u32| {
        if control.refuses(uid).is_some() {
            return false;
        }
        let (near, _far) = UnixStream::pair().unwrap();
        let client = Client::new(near.into(), Token(0), 1, Principal { uid, ..PEER }, START);
        let place = control.free_place();
        assert!(control.clients.insert(place, client).is_none(), "a place is taken once");
        true
    };
    let taken_by = |control: &mut Control, uid: u32| (0..300).filter(|_| add(control, uid)).count();
    assert_eq!(taken_by(&mut control, WEB_UID), CLIENTS_OF_GATEWAY_MAX);
    for user in 1..=3 {
        assert_eq!(taken_by(&mut control, user), CLIENTS_OF_USER_MAX);
    }
    let rest = CLIENTS_MAX - CLIENTS_RESERVED - CLIENTS_OF_GATEWAY_MAX - 3 * CLIENTS_OF_USER_MAX;
    assert_eq!(taken_by(&mut control, 4), rest);
    assert_eq!(taken_by(&mut control, 5), 0);
    assert_eq!(taken_by(&mut control, 0), CLIENTS_RESERVED);
    control.clients.remove(&7);
    assert_eq!(control.free_place(), 7);
    assert!(control.refuses(5).is_some() && control.refuses(0).is_none());
}

#[test]
fn a_socket_replaces_one_that_was_left_and_has_its_mode_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let poll = mio::Poll::new().unwrap();
    let mut sources = Sources::new(poll.registry().try_clone().unwrap());
    let text =
        |roles: &str| format!("[daemon]\nruntime_dir = {:?}\n{roles}[pool.web]\ncommand = ['x']\n", directory.path());
    let path = directory.path().join(SOCKET_NAME);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(std::os::unix::net::UnixListener::bind(directory.path().join(SOCKET_NAME_NEW)).unwrap());
    for (roles, mode) in [("", 0o600), ("[[daemon.roles]]\nuid = 1\nrole = 'observe'\n", 0o666)] {
        let config = crate::spec::parse_config(&text(roles), &BTreeMap::new()).unwrap();
        let control = Control::open(&config.daemon, Origin::Nobody, &mut sources).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        assert!(UnixStream::connect(&path).is_ok());
        let names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [SOCKET_NAME]);
        control.listener.unwrap().close(&mut sources);
        assert!(UnixStream::connect(&path).is_err(), "nobody holds it any more");
    }
}

#[test]
fn a_socket_that_is_passed_is_taken_if_it_is_what_it_has_to_be() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixDatagram, UnixListener};
    let directory = tempfile::tempdir().unwrap();
    let poll = mio::Poll::new().unwrap();
    let mut sources = Sources::new(poll.registry().try_clone().unwrap());
    let text = format!("[daemon]\nruntime_dir = {:?}\n[pool.web]\ncommand = ['x']\n", directory.path());
    let spec = crate::spec::parse_config(&text, &BTreeMap::new()).unwrap().daemon;
    let (path, elsewhere) = (directory.path().join(SOCKET_NAME), directory.path().join("else"));
    let refused = |socket: OwnedFd, sources: &mut Sources| match Control::open(&spec, Origin::Manager(socket), sources)
    {
        Err(ControlError::Passed { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(refused(null.into(), &mut sources), Errno::NOTSOCK.to_string());
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(refused(tcp.into(), &mut sources), "a socket of another kind");
    let datagram = UnixDatagram::bind(directory.path().join("datagram")).unwrap();
    assert_eq!(refused(datagram.into(), &mut sources), "a socket of another kind");
    assert_eq!(refused(UnixStream::pair().unwrap().0.into(), &mut sources), "one that does not listen");
    let other = UnixListener::bind(&elsewhere).unwrap();
    assert_eq!(refused(other.into(), &mut sources), elsewhere.display().to_string());

    let listener = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let control = Control::open(&spec, Origin::Manager(listener.try_clone().unwrap().into()), &mut sources).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600, "as the roles have it");
    let ours = &control.listener.as_ref().unwrap().fd;
    assert!(accept_with(ours, SocketFlags::CLOEXEC).is_ok(), "who came before is in the backlog");
    assert_eq!(accept_with(ours, SocketFlags::CLOEXEC).unwrap_err(), Errno::AGAIN, "it never blocks");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}
