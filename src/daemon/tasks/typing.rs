//! Types prompts when programs are ready for them, and listens to what they write.

use std::os::fd::AsFd as _;
use std::time::Duration;

use super::super::clock;
use super::super::state::Daemon;
use super::super::timers::Timer;
use super::story::Happened;
use crate::engine::TaskId;
use crate::protocol::init::MAIN;
use crate::spec::WorkerId;

/// A program that has written something and then nothing for this long waits for input.
const QUIET: Duration = Duration::from_millis(50);
/// Pause before a terminal is tried again that has no room.
const FULL_PAUSE: Duration = Duration::from_millis(100);

impl Daemon {
    /// Its program runs: the prompt is typed as soon as it is ready for it.
    pub(in crate::daemon) fn await_prompt(&mut self, id: TaskId) {
        let Some(spec) = &self.tasks.spec else { return };
        let due = clock::after(self.now, spec.prompt_delay);
        if let Some(task) = self.tasks.known.get_mut(&id).filter(|task| !task.kept.typed) {
            task.prompt_due = Some(due);
            self.timers.set(due, Timer::TaskPrompt(id.0));
            if task.wrote.is_some() {
                self.timers.set(clock::after(self.now, QUIET), Timer::TaskPrompt(id.0));
            }
        }
    }

    /// Looks whether it is time to type a prompt.
    pub(in crate::daemon) fn on_task_prompt_timer(&mut self, number: u64) {
        let (id, now) = (TaskId(number), self.now);
        let Some(task) = self.tasks.known.get(&id) else { return };
        let Some(due) = task.prompt_due else { return };
        let quiet = task.wrote.map(|wrote| clock::after(wrote, QUIET));
        if now >= due || quiet.is_some_and(|quiet| now >= quiet) {
            self.type_prompt(id);
        } else if let Some(quiet) = quiet {
            self.timers.set(quiet.min(due), Timer::TaskPrompt(number));
        }
    }

    /// Types it, once: a daemon that is killed in between leaves it untyped rather than typed twice.
    fn type_prompt(&mut self, id: TaskId) {
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        let Some((worker, _)) = task.worker else { return };
        task.prompt_due = None;
        if !std::mem::replace(&mut task.kept.typed, true) {
            self.put_task(id);
            self.write_state_now();
        }
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        let mut typed = task.kept.prompt.clone().into_bytes();
        typed.push(b'\r');
        let number = self.terminal_of(worker, MAIN);
        let Some(terminal) = number.and_then(|number| self.terminals.get_mut(number)) else {
            return tracing::warn!(target: "task", "the terminal of {} is not there: its prompt is not typed", self.worker_name(worker));
        };
        if terminal.console.type_in(&typed).is_err() {
            // Somebody who is attached to it has typed a lot.
            if let Some(task) = self.tasks.known.get_mut(&id) {
                task.prompt_due = Some(self.now);
                self.timers.set(clock::after(self.now, FULL_PAUSE), Timer::TaskPrompt(id.0));
            }
        }
    }

    /// A worker's main program has written this to its terminal.
    pub(in crate::daemon) fn task_wrote(&mut self, worker: WorkerId, written: &[u8]) {
        let Some(id) = self.tasks.by_worker.get(&worker).copied() else { return };
        let Some(task) = self.tasks.known.get_mut(&id) else { return };
        let further = task.keep_output(self.shared.task_dir.as_fd(), written);
        let is_first = task.wrote.replace(self.now).is_none();
        if is_first && task.prompt_due.is_some() {
            self.timers.set(clock::after(self.now, QUIET), Timer::TaskPrompt(id.0));
        }
        if let Some(percent) = further {
            self.task_progressed(id, percent);
            self.put_task(id);
        }
    }

    /// It is thought to be further than before.
    pub(super) fn task_progressed(&mut self, id: TaskId, percent: u8) {
        if let Some(task) = self.tasks.known.get_mut(&id) {
            task.story.add(Happened::Progress(percent), clock::msec(clock::wall()));
        }
    }
}
