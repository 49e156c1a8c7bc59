//! Further programs in a running worker, each for the client that has asked for it: with a terminal of its own, or with
//! three pipes. The worker's init starts it; it has the identity, the limits and the filter of the main program.
//!
//! A program whose client has gone is killed: nobody would see what it does.

use super::super::state::Daemon;
use super::super::terminal::{Pipes, View, Viewer};
use super::Control;
use super::attached::Attached;
use super::client::{Client, Task};
use super::dispatch::{Asked, Outcome};
use crate::daemon::birth::chain;
use crate::daemon::environment;
use crate::daemon::live::Phase;
use crate::daemon::log::best_effort;
use crate::daemon::sources::Source;
use crate::host::init_image::{Begins, Start, Window, environment_of, start_image};
use crate::host::init_orders::order;
use crate::host::spawn::{pid_of, signal};
use crate::protocol::attach::{Decoder, Ended, Frame as _, FromViewer, PAYLOAD_BYTES_MAX, Size, ToViewer};
use crate::protocol::control::{AttachReply, Error, EventKind, ExecRequest, Target};
use crate::protocol::init::{Order, Report, START, step};
use crate::protocol::varlink::Reply;
use crate::spec::WorkerId;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// How many frames of one client are taken in one turn.
const FRAMES_A_TURN: u32 = 64;
const SIGKILL: i32 = 9;

/// A program with pipes, and its client's side of them.
#[derive(Debug)]
pub(in crate::daemon) struct Piped {
    worker: WorkerId,
    program: u64,
    pipes: Pipes,
    frames: Decoder<FromViewer>,
    untaken: Option<Vec<u8>>,
    pidfd: Option<OwnedFd>,
    ended: Option<Ended>,
}

impl Piped {
    /// Takes in what was read of its client.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// Whether more may be read of its client.
    pub(super) fn takes_more(&self) -> bool {
        self.untaken.is_none() && self.frames.waiting_bytes() <= PAYLOAD_BYTES_MAX
    }

    /// Whether there is something to tell its client.
    pub(super) const fn has_news(&self) -> bool {
        self.pipes.ready || self.ended.is_some()
    }
}

impl Control {
    /// Whether some client has a program running in a worker.
    pub(in crate::daemon) fn runs_program_in(&self, worker: WorkerId) -> bool {
        let runs = |client: &Client| match &client.task {
            Task::Piped(piped) => piped.worker == worker && piped.ended.is_none(),
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Pieces(_)
            | Task::Events(_)
            | Task::Telemetry(..)
            | Task::Logs(_)
            | Task::Story(_)
            | Task::Attached(_)
            | Task::Import(..)
            | Task::Shutdown(_) => false,
        };
        self.clients.values().any(runs)
    }
}

impl Daemon {
    /// Starts a program in a running worker.
    pub(super) fn exec(&mut self, asked: Asked, request: &ExecRequest) -> Outcome {
        if !asked.upgrade {
            return Error::Refused { reason: "this call needs \"upgrade\": true".into() }.into();
        }
        let worker = match self.running_worker(&request.target) {
            Ok(worker) => worker,
            Err(error) => return error.into(),
        };
        self.use_worker(worker);
        let name = self.worker_name(worker);
        let program = self.terminals.next_program();
        let failed =
            |cause: String| Error::Failed { operation: "start a program in".into(), object: name.clone(), cause };
        let size = Size::new(request.columns.unwrap_or(80), request.rows.unwrap_or(24)).unwrap_or_default();
        let begins = if request.terminal == Some(true) {
            Begins::Terminal(Window { rows: size.rows, columns: size.columns })
        } else {
            Begins::Program
        };
        let image = match self.program_image(worker, request, begins) {
            Ok(image) => image,
            Err(cause) => return failed(cause).into(),
        };
        let task = match self.run_beside(asked, worker, program, begins, &image, size) {
            Ok(task) => task,
            Err(error) => return failed(error.to_string()).into(),
        };
        // Its arguments may hold secrets.
        let shown = request.command.first().map_or("", String::as_str);
        self.record_order(asked, EventKind::Order, format!("run {shown} in {name}"));
        Outcome::Begin(Reply::last(&AttachReply { worker: name }), task)
    }

    /// The one worker that a target means, if its main program runs.
    fn running_worker(&self, target: &Target) -> Result<WorkerId, Error> {
        let resolved = self.resolve(target)?;
        let mut views = self.views(resolved).map(|view| view.worker);
        let worker = match (views.next(), views.next()) {
            (Some(one), None) => one,
            (Some(first), Some(_)) => {
                let first = self.worker_name(first);
                return Err(Error::Refused {
                    reason: format!("{target} has several workers: name one, such as {first}"),
                });
            }
            (None, _) => return Err(Error::Refused { reason: format!("{target} has no workers") }),
        };
        // One that waits to be claimed has no main program.
        let runs = self.live.get(&worker).is_some_and(|live| live.phase == Phase::Running && live.main.is_some());
        if runs { Ok(worker) } else { Err(Error::Refused { reason: format!("{target} does not run") }) }
    }

    fn program_image(&self, worker: WorkerId, request: &ExecRequest, begins: Begins) -> Result<OwnedFd, String> {
        let pool = self.pools.get(&worker.pool).ok_or("its pool is gone")?;
        let session = self.sessions.of(worker);
        // What a claim has given its program is in that program's image, and is kept nowhere else.
        let mut env = match self.live.get(&worker).and_then(|live| live.claim.as_ref()) {
            Some(claim) => environment_of(claim.as_fd()).map_err(|error| chain(&error))?,
            None => {
                let told = self.live.get(&worker).map(|live| live.told).unwrap_or_default();
                environment::of_worker(pool, worker.slot, &self.spec.instance.to_string(), told).1
            }
        };
        // Sockets that only the main program has.
        let is_own = |variable: &String| {
            ["LISTEN_", "HALSUP_CHANNEL_FD=", "NOTIFY_SOCKET=", "WATCHDOG_"].iter().any(|own| variable.starts_with(own))
        };
        env.retain(|variable| !is_own(variable));
        if matches!(begins, Begins::Terminal(_)) && !env.iter().any(|variable| variable.starts_with("TERM=")) {
            env.push("TERM=xterm-256color".to_owned());
        }
        for variable in request.env.iter().flatten() {
            let name = variable.split('=').next().unwrap_or_default();
            env.retain(|known| known.split('=').next() != Some(name));
            env.push(variable.clone());
        }
        let start = Start {
            argv: &request.command,
            env: &env,
            cwd: session.and_then(|session| session.cwd.as_deref()).unwrap_or(environment::WORK_DIR),
            rlimits: &pool.prepared.rlimits,
            seccomp: &pool.prepared.filter,
            begins,
            ..Start::default()
        };
        start_image(&start).map_err(|error| chain(&error))
    }

    fn run_beside(
        &mut self,
        asked: Asked,
        worker: WorkerId,
        program: u64,
        begins: Begins,
        image: &OwnedFd,
        size: Size,
    ) -> std::io::Result<Task> {
        if matches!(begins, Begins::Terminal(_)) {
            self.order_start(worker, program, &[image.as_fd()])?;
            let number = self.expect_terminal(worker, program, size, asked.number);
            let attached = Attached::new(Viewer::new(number, View::from_start_of_new(), true), true);
            return Ok(Task::Attached(Box::new(attached)));
        }
        let (pipes, [stdin, stdout, stderr]) = Pipes::make(Source::Client(asked.place), &mut self.sources)?;
        if let Err(error) =
            self.order_start(worker, program, &[image.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
        {
            pipes.close(&mut self.sources);
            return Err(error);
        }
        let (frames, untaken, pidfd, ended) = (Decoder::default(), None, None, None);
        Ok(Task::Piped(Box::new(Piped { worker, program, pipes, frames, untaken, pidfd, ended })))
    }

    fn order_start(&self, worker: WorkerId, program: u64, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let init = self.live.get(&worker).and_then(|live| live.init.as_ref());
        let init = init.ok_or(std::io::ErrorKind::NotConnected)?;
        order(init.fd.as_fd(), Order { what: START, program }, fds)
    }

    fn piped_of(&mut self, worker: WorkerId, program: u64) -> Option<&mut Piped> {
        self.control.clients.values_mut().find_map(|client| match &mut client.task {
            Task::Piped(piped) if piped.worker == worker && piped.program == program => Some(piped.as_mut()),
            Task::Idle
            | Task::Order
            | Task::Request(_)
            | Task::Tools
            | Task::Await(_)
            | Task::Pieces(_)
            | Task::Events(_)
            | Task::Telemetry(..)
            | Task::Logs(_)
            | Task::Story(_)
            | Task::Attached(_)
            | Task::Piped(_)
            | Task::Import(..)
            | Task::Shutdown(_) => None,
        })
    }

    /// A program beside the main one runs.
    pub(in crate::daemon) fn on_program_started(&mut self, worker: WorkerId, program: u64, pidfd: Option<OwnedFd>) {
        let number = self.terminal_of(worker, program);
        if let Some(terminal) = number.and_then(|number| self.terminals.get_mut(number)) {
            terminal.pidfd = pidfd;
        } else if let Some(piped) = self.piped_of(worker, program) {
            piped.pidfd = pidfd;
        } else if let Some(pidfd) = pidfd {
            // Its client has gone meanwhile, or was a client of the daemon before this one.
            tracing::debug!(target: "worker", pid = pid_of(&pidfd), "nobody waits for a program in {}", self.worker_name(worker));
            best_effort(signal(&pidfd, SIGKILL), "it has ended");
        }
    }

    /// A program beside the main one has ended, or was not started.
    pub(in crate::daemon) fn on_program_ended(&mut self, worker: WorkerId, program: u64, ended: Ended) {
        if let Some(number) = self.terminal_of(worker, program) {
            self.end_terminal(number, ended);
        } else if let Some(piped) = self.piped_of(worker, program) {
            piped.ended = Some(ended);
            piped.pipes.ready = true;
        }
    }

    /// A worker has ended, and with it every program in it.
    pub(in crate::daemon) fn end_programs(&mut self, worker: WorkerId) {
        for client in self.control.clients.values_mut() {
            if let Task::Piped(piped) = &mut client.task
                && piped.worker == worker
                && piped.ended.is_none()
            {
                piped.ended = Some(Ended::Signalled(9));
                piped.pipes.ready = true;
            }
        }
    }

    /// Takes what a client says to its program, or news of the program's pipes.
    pub(super) fn hear_runner(&mut self, client: &mut Client) {
        let Task::Piped(piped) = &mut client.task else { return };
        piped.pipes.ready = true;
        piped.pipes.write(&mut self.sources);
        for _ in 0..FRAMES_A_TURN {
            let Task::Piped(piped) = &mut client.task else { return };
            if let Some(typed) = piped.untaken.take() {
                if piped.pipes.type_in(&typed, &mut self.sources).is_err() {
                    piped.untaken = Some(typed);
                    return;
                }
                continue;
            }
            match piped.frames.next_frame() {
                Ok(Some(FromViewer::Input(typed))) => piped.untaken = Some(typed),
                Ok(Some(FromViewer::InputEnded)) => piped.pipes.end_input(&mut self.sources),
                Ok(Some(FromViewer::Resized(_))) => {}
                Ok(Some(FromViewer::Detach)) => return client.hang_up(),
                Ok(None) if client.has_ended() => return client.hang_up(),
                Ok(None) => return self.listen_on(client),
                Err(error) => {
                    tracing::debug!(target: "control", by = %client.peer, %error, "a client that runs a program is closed");
                    return client.hang_up();
                }
            }
        }
        self.sources.again(client.token);
    }

    /// Tells a client the next of what its program wrote, and at last how it ended.
    pub(super) fn feed_runner(&mut self, client: &mut Client) {
        let Task::Piped(piped) = &mut client.task else { return };
        let next = piped.pipes.next(&mut self.sources);
        let is_over = next.is_none();
        let ended = piped.ended.filter(|_| is_over);
        if let Some(frame) = next.or(ended.map(ToViewer::Ended)) {
            client.say_frame(frame.encode());
        }
        if ended.is_some() {
            client.close(self.now);
        }
    }

    /// A client has gone: its program has nobody any more.
    pub(super) fn leave_program(&mut self, piped: Piped) {
        if let Some(pidfd) = piped.pidfd.filter(|_| piped.ended.is_none()) {
            best_effort(signal(&pidfd, SIGKILL), "it has ended by itself");
        }
        piped.pipes.close(&mut self.sources);
    }
}

/// How a program that was not started is told: an error of exec has its number, what failed before it has none.
pub(in crate::daemon) fn not_started(report: &Report) -> Ended {
    let errno = if report.a == step::EXEC { u32::try_from(report.b).unwrap_or(0) } else { 0 };
    Ended::NotStarted(errno)
}

/// How a program beside the main one ended.
pub(in crate::daemon) fn program_ended(report: &Report) -> Ended {
    match (report.b, u8::try_from(report.c)) {
        (0, Ok(code)) => Ended::Exited(code),
        (_, Ok(signal)) => Ended::Signalled(signal),
        (_, Err(_)) => Ended::Unknown,
    }
}
