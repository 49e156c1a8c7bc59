//! The loop: readiness becomes inputs, inputs become effects, effects become system calls; then it sleeps until the
//! earliest deadline.
//!
//! One turn reads the clock once. Exits are heard before anything else, so that a worker which has ended is not taken for
//! one that is late. A source whose budget was spent is named again in the next turn, which then does not sleep.

use std::collections::BTreeSet;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::reports::Budget;
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use super::{Error, clock};
use crate::engine::{Effect, Input};

/// Events that one turn takes from the kernel.
const EVENTS_A_TURN: usize = 1024;

impl Daemon {
    /// Runs until everything has ended after a shutdown.
    ///
    /// # Errors
    /// Only when the kernel refuses to wait for events, after which there is nothing left to do.
    pub(super) fn run(&mut self, poll: &mut Poll) -> Result<(), Error> {
        let mut events = Events::with_capacity(EVENTS_A_TURN);
        while !self.finished {
            match poll.poll(&mut events, self.sleep()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Poll { source }),
            }
            self.now = clock::now();
            let mut ready: Vec<Token> = self.sources.take_again().into();
            ready.extend(events.iter().map(mio::event::Event::token));
            self.hear(&ready);
            self.tick();
            self.decide();
            self.flush_audit();
            self.flush_clients();
            self.confirm_handover();
            self.go_on_with_upgrade();
            self.beat();
        }
        Ok(())
    }

    /// How long there is nothing to do; `None` is until something happens.
    fn sleep(&self) -> Option<Duration> {
        if self.handover.is_some() || self.sources.has_more() || !self.inputs.is_empty() || !self.chores.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.engine.next_deadline(), self.timers.next()].into_iter().flatten().min()?;
        // A little late rather than a little early: an early turn would find nothing due and only sleep again.
        Some(clock::since(clock::now(), next) + Duration::from_micros(50))
    }

    fn hear(&mut self, ready: &[Token]) {
        for token in ready {
            if let Some(Source::Exit(worker)) = self.sources.source(*token) {
                self.on_exit(worker);
            }
        }
        for token in ready {
            match self.sources.source(*token) {
                Some(Source::Signals) => self.on_signals(),
                Some(Source::Listener) => self.on_listener(),
                Some(Source::Gateway) => self.on_gateway(),
                Some(Source::Client(place)) => self.on_client(place),
                Some(Source::Init(worker)) => self.on_init(worker, *token, Budget::Turn),
                Some(Source::Output(worker, stream)) => self.on_output(worker, stream, *token, Budget::Turn),
                Some(Source::Terminal(number)) => self.on_terminal(number, *token, Budget::Turn),
                Some(Source::Notify(worker)) => self.on_notify(worker, *token, Budget::Turn),
                Some(Source::Channel(worker)) => {
                    self.send_held_chunks(worker);
                    self.on_channel(worker, *token, Budget::Turn);
                }
                Some(Source::Cgroup(worker)) => {
                    if let Some(generation) = self.live.get(&worker).map(|live| live.generation) {
                        self.empty(worker, generation);
                    }
                }
                Some(Source::Probe(place)) => self.on_probe(place),
                Some(Source::Lease(worker, attempt)) => self.on_lease(worker, attempt),
                Some(Source::Files) => self.on_files(),
                Some(Source::Trial) => self.on_trial(),
                Some(Source::Job(number)) => self.on_job(number),
                Some(Source::ThawGuard) => self.on_thaw_guard(),
                Some(Source::Reclaim) => self.on_reclaim(),
                Some(Source::OwnFiles) => self.on_own_files(),
                Some(Source::Limits) => self.on_limits(),
                Some(Source::Import(number)) => self.on_import(number),
                Some(Source::ImportEnd(number)) => self.on_import_end(number),
                Some(Source::PullEnd(number)) => self.on_pull_end(number),
                // Heard above; and what was closed meanwhile has nothing more to say.
                Some(Source::Exit(_)) | None => {}
            }
        }
    }

    fn tick(&mut self) {
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::RemoveCgroup(worker, generation) => self.empty(worker, generation),
                Timer::Spawn(worker, generation, tries) => {
                    if self.postponed.get(&worker).is_some_and(|(known, _)| *known == generation) {
                        self.spawn_once(worker, generation, tries);
                    }
                }
                Timer::ReadyProbe(worker, generation) => self.on_ready_probe_timer(worker, generation),
                Timer::ProbeTimeout(place, number) => self.on_probe_timeout(place, number),
                Timer::ClientTimeout(place, number) => self.on_client_timeout(place, number),
                Timer::TerminalHeld(number) => self.on_terminal_held(number),
                Timer::TerminalEnded(number) => self.on_terminal_ended(number),
                Timer::TaskPrompt(number) => self.on_task_prompt_timer(number),
                Timer::ResumeAccept => self.resume_accept(),
                Timer::WatchLimits(worker, generation) => self.rearm_limits(worker, generation),
                Timer::LookForFiles => self.look_for_files(),
                Timer::Hold(number) => self.on_hold_timer(number),
                Timer::Job(number) => self.on_job_timeout(number),
                Timer::LookAtFreeze(worker, generation) => self.look_at_freeze(worker, generation),
                Timer::Reclaim => self.on_reclaim_timeout(),
                Timer::Upgrade => self.on_upgrade_timer(),
                Timer::Import(number) => self.on_import_timeout(number),
                Timer::Pull(number) => self.on_pull_timeout(number),
                Timer::Chores => self.chores.append(&mut self.late_chores),
                Timer::Foresee => self.on_foresee_timer(),
                Timer::SessionFiles => self.session_files_are_due(),
                Timer::WriteState => self.write_state_again(),
                Timer::LookAtExit(worker, generation) => {
                    if self.live_mut(worker, generation).is_some() {
                        self.on_exit(worker);
                    }
                }
                Timer::Watchdog => self.watchdog.due = true,
                Timer::FdStore => self.send_pidfds_again(),
                Timer::Notify => {
                    self.manager.say_again();
                    self.catch_up_with_manager();
                }
            }
        }
        self.do_chores();
    }

    /// Notes of whom it was heard in this turn that they are well: by what they said themselves, before anything is said for them.
    fn note_health(&mut self) {
        for input in &self.inputs {
            if let Input::Beat(worker, generation) | Input::BecameReady(worker, generation) = input
                && let Some(live) = self.live.get_mut(worker).filter(|live| live.generation == *generation)
            {
                live.last_health = Some(clock::wall());
            }
        }
    }

    /// Has the engine take all inputs, writes down what it decided, and carries it out.
    pub(super) fn decide(&mut self) {
        self.note_health();
        self.beat_for_held();
        for input in std::mem::take(&mut self.inputs) {
            self.tell_input(&input);
            self.engine.handle(input, self.now);
        }
        self.engine.handle_timeout(self.now);
        let effects: Vec<Effect> = std::iter::from_fn(|| self.engine.poll_effect()).collect();
        for effect in &effects {
            if let Effect::Certify(worker, generation, cause) = effect {
                self.write_end(*worker, *generation, *cause);
            }
        }
        let (urgent, effects) = urgent_first(effects);
        for effect in urgent {
            self.write_down_of(&effect);
            self.tell_effect(&effect);
            self.perform(effect);
        }
        self.write_down();
        // Here there is nothing that the engine has not heard of yet: what is told of a worker is what is so.
        self.write_session_files();
        for effect in effects {
            self.tell_effect(&effect);
            self.perform(effect);
        }
        self.forget_unclaimed_answers();
        self.forget_pools();
    }
}

/// Takes out what somebody waits for who claims a worker: to that end nothing has to be written down, or done, of any other.
/// What concerns one worker stays in its order.
fn urgent_first(effects: Vec<Effect>) -> (Vec<Effect>, Vec<Effect>) {
    let mut held = BTreeSet::new();
    effects.into_iter().partition(|effect| match *effect {
        Effect::Thaw(worker, _) | Effect::Bind(worker, ..) => !held.contains(&worker),
        Effect::Spawn(worker, _)
        | Effect::Signal(worker, ..)
        | Effect::Kill(worker, _)
        | Effect::Ping(worker, _)
        | Effect::Measure(worker, _)
        | Effect::Freeze(worker, _)
        | Effect::StateChanged(worker, _)
        | Effect::Certify(worker, ..)
        | Effect::Forget(worker) => {
            held.insert(worker);
            false
        }
        Effect::Answer(..) | Effect::Request(_) | Effect::Task(_) | Effect::Finished => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CallId, Origin, State};
    use crate::spec::{Generation, PoolId, WorkerId};

    #[test]
    fn a_claim_goes_first_and_not_before_what_concerns_its_own_worker() {
        let worker = |slot| WorkerId { pool: PoolId(1), slot };
        let bind = |slot| Effect::Bind(worker(slot), Generation(7), CallId(u64::from(slot)), Origin::Warm);
        let spawn = Effect::Spawn(worker(3), Generation(8));
        let thaw = Effect::Thaw(worker(1), Generation(7));
        let ready = Effect::StateChanged(worker(2), State::Healthy);
        let all = vec![ready.clone(), bind(2), spawn.clone(), thaw.clone(), bind(1), Effect::Finished];
        let (urgent, others) = urgent_first(all);
        assert_eq!(urgent, [thaw, bind(1)]);
        assert_eq!(others, [ready, bind(2), spawn, Effect::Finished]);
    }
}
