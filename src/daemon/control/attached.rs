//! Clients that look at a terminal: what they type on its way in, what they are told on its way out, and who types.
//!
//! One client types at a time, the first that was attached or the last that insisted; when it leaves, the one that has
//! waited longest does. What a writer sends while the program does not read waits in its own socket once the terminal's
//! input is full. `client.rs` has the connection, `daemon::terminal` the terminal.

use super::super::kept::Kept;
use super::super::state::Daemon;
use super::super::terminal::{Terminal, View, Viewer};
use super::client::{Client, Task};
use super::dispatch::{Asked, Outcome};
use super::{Control, Principal};
use crate::engine::{Sleep, WorkerView};
use crate::protocol::attach::{Decoder, Frame as _, FromViewer, PAYLOAD_BYTES_MAX, Parting, Seat, Size, ToViewer};
use crate::protocol::control::{
    AttachReply, ChangeReply, Error, EventKind, Failure, SendRequest, SessionInfo, SessionsReply, Target,
};
use crate::protocol::init::MAIN;
use crate::protocol::varlink::Reply;
use crate::spec::{PoolName, Root};

/// How many frames of one client are taken in one turn.
const FRAMES_A_TURN: u32 = 64;

/// A client that looks at a terminal.
#[derive(Debug)]
pub(in crate::daemon) struct Attached {
    pub(super) viewer: Viewer,
    frames: Decoder<FromViewer>,
    /// Whether it may type, once nobody else does.
    may_type: bool,
    /// The size of its own terminal.
    size: Option<Size>,
    told_seat: Option<Seat>,
    told_size: Option<Size>,
    /// What it typed and the terminal did not take yet.
    untaken: Option<Vec<u8>>,
}

impl Attached {
    pub(super) fn new(viewer: Viewer, may_type: bool) -> Self {
        Self {
            viewer,
            frames: Decoder::default(),
            may_type,
            size: None,
            told_seat: None,
            told_size: None,
            untaken: None,
        }
    }

    /// Takes in what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// Whether more may be read of it.
    pub(super) fn takes_more(&self) -> bool {
        self.untaken.is_none() && self.frames.waiting_bytes() <= PAYLOAD_BYTES_MAX
    }

    fn seat(&self, terminal: &Terminal, number: u64) -> Seat {
        if self.may_type && terminal.writer == Some(number) { Seat::Writer } else { Seat::Viewer }
    }

    /// Whether there is something to tell it.
    fn has_news(&self, terminal: &Terminal, number: u64) -> bool {
        let console = &terminal.console;
        self.told_seat != Some(self.seat(terminal, number))
            || self.told_size != Some(console.size())
            || !self.viewer.view.is_up_to_date(&console.ring)
            || console.ended.is_some()
    }

    /// The next things to tell it, and whether they are the last.
    fn news(&mut self, terminal: &Terminal, number: u64) -> (Vec<ToViewer>, bool) {
        let console = &terminal.console;
        let mut told = Vec::new();
        let (seat, size) = (self.seat(terminal, number), console.size());
        if self.told_seat.replace(seat) != Some(seat) {
            told.push(ToViewer::Seated(seat));
        }
        if self.told_size.replace(size) != Some(size) {
            told.push(ToViewer::Resized(size));
        }
        let mut budget = PAYLOAD_BYTES_MAX;
        while budget > 0
            && let Some(frame) = self.viewer.view.next(&console.ring)
        {
            budget = budget.saturating_sub(if let ToViewer::Output(bytes) = &frame { bytes.len() } else { 0 });
            told.push(frame);
        }
        self.viewer.note_progress(terminal);
        let last = console.ended.filter(|_| self.viewer.view.is_up_to_date(&console.ring));
        told.extend(last.map(ToViewer::Ended));
        (told, last.is_some())
    }
}

impl Control {
    fn attached(&self, terminal: u64) -> impl Iterator<Item = (&Client, &Attached)> {
        let attached = self.clients.values().filter_map(|client| Some((client, client.attached()?)));
        attached.filter(move |(_, attached)| attached.viewer.terminal == terminal)
    }

    /// Who looks at a terminal.
    pub(in crate::daemon) fn viewers(&self, terminal: u64) -> impl Iterator<Item = &Viewer> {
        self.attached(terminal).map(|(_, attached)| &attached.viewer)
    }

    /// The same, to be changed.
    pub(in crate::daemon) fn viewers_mut(&mut self, terminal: u64) -> impl Iterator<Item = &mut Viewer> {
        let viewers = self.clients.values_mut().filter_map(|client| Some(&mut client.attached_mut()?.viewer));
        viewers.filter(move |viewer| viewer.terminal == terminal)
    }
}

impl Daemon {
    /// The one worker that a target means, and its terminal.
    fn terminal_of_target(&self, target: &Target) -> Result<(String, u64), Error> {
        let resolved = self.resolve(target)?;
        let mut with = self.views(resolved).filter_map(|view| {
            let number = self.terminal_of(view.worker, MAIN)?;
            Some((self.worker_name(view.worker), number))
        });
        match (with.next(), with.next()) {
            (Some(one), None) => Ok(one),
            (Some((first, _)), Some(_)) => {
                Err(Error::Refused { reason: format!("{target} has several terminals: name one, such as {first}") })
            }
            (None, _) => Err(self.no_terminal(target)),
        }
    }

    fn no_terminal(&self, target: &Target) -> Error {
        let runs = self
            .resolve(target)
            .is_ok_and(|target| self.views(target).any(|view| self.live.contains_key(&view.worker)));
        let reason = if runs {
            format!("{target} has no terminal: `halsup logs {target}` shows what it writes")
        } else {
            format!("{target} does not run: `halsup start {target}` starts it")
        };
        Error::Refused { reason }
    }

    /// Shows a terminal to a client; with `steal` said, one that types.
    pub(super) fn attach(
        &mut self,
        asked: Asked,
        target: &Target,
        replay: Option<bool>,
        steal: Option<bool>,
    ) -> Outcome {
        if !asked.upgrade {
            return Error::Refused { reason: "this call needs \"upgrade\": true".into() }.into();
        }
        let (worker, number) = match self.terminal_of_target(target) {
            Ok(found) => found,
            Err(error) => return error.into(),
        };
        if let Some(worker) = self.terminals.get(number).map(|terminal| terminal.worker) {
            self.use_worker(worker);
        }
        let Some(terminal) = self.terminals.get_mut(number) else { return self.no_terminal(target).into() };
        let view = if replay == Some(false) { View::from_now(&terminal.console.ring) } else { View::from_the_start() };
        let may_type = steal.is_some();
        if may_type && (terminal.writer.is_none() || steal == Some(true)) {
            terminal.writer = Some(asked.number);
        }
        let attached = Attached::new(Viewer::new(number, view, may_type), may_type);
        // Who only looks leaves no trace, as who reads a log does not.
        if may_type {
            self.record_order(asked, EventKind::Order, format!("attach to {worker}"));
        }
        Outcome::Begin(Reply::last(&AttachReply { worker }), Task::Attached(Box::new(attached)))
    }

    /// Takes what an attached client says.
    pub(super) fn hear_viewer(&mut self, client: &mut Client) {
        let by = client.number;
        for _ in 0..FRAMES_A_TURN {
            let Some(attached) = client.attached_mut() else { return };
            let number = attached.viewer.terminal;
            if let Some(typed) = attached.untaken.take() {
                attached.untaken = self.type_in(number, by, typed);
                if attached.untaken.is_some() {
                    return;
                }
                continue;
            }
            match attached.frames.next_frame() {
                Ok(Some(FromViewer::Input(typed))) => attached.untaken = Some(typed),
                // A terminal has no end of input: its own control character is one.
                Ok(Some(FromViewer::InputEnded)) => {}
                Ok(Some(FromViewer::Resized(size))) => {
                    attached.size = Some(size);
                    let is_writer = self.terminals.get(number).and_then(|found| found.writer) == Some(by);
                    if is_writer && attached.may_type {
                        self.resize_terminal(number, size);
                    }
                }
                Ok(Some(FromViewer::Detach)) => return self.part(client, Parting::Detached),
                Ok(None) if client.has_ended() => return self.part(client, Parting::Detached),
                Ok(None) => return self.listen_on(client),
                Err(error) => {
                    tracing::debug!(target: "control", by = %client.peer, %error, "an attached client is closed");
                    return client.close(self.now);
                }
            }
        }
        self.sources.again(client.token);
    }

    /// Reads on, if the kernel will not say that there is more.
    pub(super) fn listen_on(&mut self, client: &Client) {
        if client.may_have_more() {
            self.sources.again(client.token);
        }
    }

    /// Types for a client; what the terminal does not take is given back. Who is not the writer is not heard.
    fn type_in(&mut self, number: u64, by: u64, typed: Vec<u8>) -> Option<Vec<u8>> {
        let terminal = self.terminals.get_mut(number).filter(|terminal| terminal.writer == Some(by))?;
        terminal.console.type_in(&typed).is_err().then_some(typed)
    }

    fn part(&mut self, client: &mut Client, parting: Parting) {
        client.say_frame(ToViewer::Parted(parting).encode());
        client.close(self.now);
    }

    /// A terminal has room again: whoever waited for it goes on.
    pub(in crate::daemon) fn resume_typists(&mut self, terminal: u64) {
        let waiting = |(client, attached): (&Client, &Attached)| attached.untaken.is_some().then_some(client.token);
        let tokens: Vec<_> = self.control.attached(terminal).filter_map(waiting).collect();
        for token in tokens {
            self.sources.again(token);
        }
    }

    /// Whether there is something to tell an attached client.
    pub(super) fn has_news_for(&self, client: &Client, attached: &Attached) -> bool {
        let terminal = self.terminals.get(attached.viewer.terminal);
        terminal.is_none_or(|terminal| attached.has_news(terminal, client.number))
    }

    /// Tells an attached client the next of what it does not know.
    pub(super) fn feed_viewer(&mut self, client: &mut Client) {
        let number = client.number;
        let Some(attached) = client.attached_mut() else { return };
        let Some(terminal) = self.terminals.get(attached.viewer.terminal) else {
            // It took too long over the rest.
            return client.close(self.now);
        };
        let (told, is_over) = attached.news(terminal, number);
        for frame in told {
            client.say_frame(frame.encode());
        }
        if is_over {
            client.close(self.now);
        }
    }

    /// A client looks at a terminal no more: somebody else may type, and nobody waits for it.
    pub(super) fn leave_terminal(&mut self, number: u64, client: u64) {
        if let Some(worker) = self.terminals.get(number).map(|terminal| terminal.worker) {
            self.use_worker(worker);
        }
        let heir = self.control.attached(number).filter(|(_, attached)| attached.may_type);
        let heir =
            heir.min_by_key(|(client, _)| client.number).map(|(client, attached)| (client.number, attached.size));
        if let Some(terminal) = self.terminals.get_mut(number).filter(|terminal| terminal.writer == Some(client)) {
            terminal.writer = heir.map(|(client, _)| client);
            if let Some(size) = heir.and_then(|(_, size)| size) {
                self.resize_terminal(number, size);
            }
        }
        self.go_on_with_terminal(number);
        self.leave_own_terminal(number);
        self.forget_terminal(number);
    }

    /// Types a text into every terminal of a target.
    pub(super) fn send(&mut self, asked: Asked, request: &SendRequest) -> Outcome {
        let target = match self.resolve(&request.target) {
            Ok(target) => target,
            Err(error) => return error.into(),
        };
        let number_of = |view: WorkerView| Some((view.worker, self.terminal_of(view.worker, MAIN)?));
        // A session of somebody else's is none of all of them.
        let own = self.views(target).filter(|view| self.may_touch(view.worker, asked.by));
        let found: Vec<_> = own.filter_map(number_of).collect();
        if found.is_empty() {
            return self.no_terminal(&request.target).into();
        }
        let mut reply = ChangeReply::default();
        for (worker, number) in found {
            reply.wanted += 1;
            self.use_worker(worker);
            let Some(terminal) = self.terminals.get_mut(number) else { continue };
            match terminal.console.type_in(request.text.as_bytes()) {
                Ok(()) => reply.achieved += 1,
                Err(super::super::terminal::Full) => {
                    let reason = "it does not read its terminal, and enough waits for it already".into();
                    reply.failures.push(Failure { worker: self.worker_name(worker), reason });
                }
            }
        }
        // What was typed may be a secret.
        self.record_order(asked, EventKind::Order, format!("type into {}", request.target));
        Outcome::Reply(Reply::last(&reply))
    }

    /// The workers that have a terminal.
    pub(super) fn sessions(&self, pool: Option<PoolName>) -> Outcome {
        let of_pool = |kept: &&Kept| pool.as_ref().is_none_or(|pool| kept.pool == pool.as_str());
        let kept: Vec<SessionInfo> = self.kept.values().filter(of_pool).map(Kept::info).collect();
        let target = match self.resolve(&pool.map_or(Target::All, Target::Pool)) {
            Ok(target) => target,
            Err(error) => return error.into(),
        };
        let living = self.views(target).filter_map(|view| self.session_info(&view));
        let sessions = living.chain(kept).collect();
        Outcome::Reply(Reply::last(&SessionsReply { sessions }))
    }

    fn session_info(&self, view: &WorkerView) -> Option<SessionInfo> {
        let claimed = self.sessions.of(view.worker);
        let number = self.terminal_of(view.worker, MAIN);
        let terminal = number.and_then(|number| self.terminals.get(number));
        if claimed.is_none() && terminal.is_none() {
            return None;
        }
        let live = self.live.get(&view.worker)?;
        let worker = self.worker_name(view.worker);
        let pool = &self.pools.get(&view.worker.pool)?.spec;
        let image = if let Root::Directory(path) = &pool.root { Some(path.display().to_string()) } else { None };
        let size = terminal.map(|terminal| terminal.console.size());
        let typing = |(client, _): &(&Client, &Attached)| terminal.is_some_and(|it| it.writer == Some(client.number));
        let mut attached = number.into_iter().flat_map(|number| self.control.attached(number));
        let writer: Option<Principal> = attached.find(typing).map(|(client, _)| client.peer);
        let viewers = number.map_or(0, |number| self.control.viewers(number).count());
        Some(SessionInfo {
            name: claimed.map_or_else(|| worker.clone(), |session| session.name.clone()),
            worker,
            pool: pool.name.to_string(),
            state: super::super::perform::worker_state(view.state),
            frozen: view.sleep == Sleep::Frozen,
            started: super::super::clock::rfc3339(live.started),
            image,
            owner: claimed.map(|session| session.owner),
            project: claimed.and_then(|session| session.project.clone()),
            columns: size.map(|size| size.columns),
            rows: size.map(|size| size.rows),
            viewers: u32::try_from(viewers).unwrap_or(u32::MAX),
            writer: writer.map(|writer| writer.to_string()),
            ended: None,
            exit: None,
        })
    }
}
