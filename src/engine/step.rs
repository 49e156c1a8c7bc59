//! The table of the worker's state machine: each phase and each event has its written action.
//!
//! Owns nothing and does nothing: `worker.rs` carries the actions out. There is no wildcard row, so a new phase or event
//! does not compile until somebody has thought about every pair.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cause, Ended, Time, Usage};

/// Where a worker is, finer than [`super::State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Down on request; its cgroup is empty.
    Stopped,
    /// Down by policy; its cgroup is empty.
    Crashed,
    /// Waits for its turn in a start-up batch.
    Queued,
    /// Spawn asked for, not answered.
    Spawning,
    /// As `Spawning`, but unwanted by now: killed as soon as it runs.
    Aborting,
    /// Its program runs, it is not ready.
    Starting,
    /// Ready.
    Running,
    /// Asked to end, or said that it ends; inside its grace.
    Stopping,
    /// Killed, its end not reported yet.
    Killing,
    /// Ended; its cgroup is not empty yet.
    Emptying,
    /// Waits out its restart delay.
    Waiting,
    /// Not emptied by the deadline.
    Stuck,
}

/// What becomes of a worker that is being ended by order, once it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum After {
    /// Stays down.
    Down,
    /// Starts again at once, past the restart policy.
    Again,
    /// Gives up its place.
    Gone,
}

/// What can happen to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It is its turn in a start-up batch.
    Admitted,
    /// See [`super::Input`] for this and the next ten.
    Spawned,
    SpawnFailed,
    BecameReady,
    Beat,
    PingFailed,
    TimeoutExtended(Duration),
    BeatIntervalSet(Duration),
    StopAnnounced,
    BreakageAnnounced,
    Exited(Ended),
    Emptied,
    /// The phase's deadline has come.
    Overdue,
    /// The heartbeat's deadline has come.
    BeatDue,
    /// It is to be measured by now.
    MeasureDue,
    /// See [`super::Input`] for this and the next three.
    Used,
    Measured(Usage),
    Froze,
    FreezeFailed,
    /// It is to be up.
    Start,
    /// It is to end gracefully.
    Stop(After, Cause),
    /// It is to end now.
    Kill(Cause),
    /// Its program is to get this signal.
    Signal(i32),
    /// Its restarts are forgiven.
    Reset,
}

impl Event {
    /// Whether nothing comes of it, in the same phase, that another daemon could use.
    pub(super) const fn leaves_nothing(self) -> bool {
        match self {
            Self::Beat
            | Self::BeatDue
            | Self::PingFailed
            | Self::MeasureDue
            | Self::Used
            | Self::Measured(_)
            | Self::Froze
            | Self::FreezeFailed => true,
            Self::Admitted
            | Self::Spawned
            | Self::SpawnFailed
            | Self::BecameReady
            | Self::TimeoutExtended(_)
            | Self::BeatIntervalSet(_)
            | Self::StopAnnounced
            | Self::BreakageAnnounced
            | Self::Exited(_)
            | Self::Emptied
            | Self::Overdue
            | Self::Start
            | Self::Stop(..)
            | Self::Kill(_)
            | Self::Signal(_)
            | Self::Reset => false,
        }
    }
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing: late news, or already so.
    Ignore,
    /// Spawn it.
    Spawn,
    /// Its program runs: wait for readiness, if it is to say so.
    Run,
    /// It is ready.
    BeReady,
    /// It showed life.
    Beat,
    /// A ping failed outright.
    Miss,
    /// It is broken by its own word.
    Break,
    /// Look for misses, ping.
    Look,
    /// Ask what it has used.
    Measure,
    /// Freeze it, if it has been idle for long enough.
    Weigh(Usage),
    /// It stands still.
    BeFrozen,
    /// It goes on if it was frozen, and has its time anew.
    Wake,
    /// Move the phase's deadline.
    Extend(Duration),
    /// Change how often it beats.
    SetInterval(Duration),
    /// It ends by itself: begin the grace.
    WindDown,
    /// Remember that it is unwanted until its spawn is answered.
    Abort(Option<After>, Cause),
    /// Ask it to end, unless it was asked already.
    Terminate(After, Cause),
    /// Only what becomes of it changes.
    Turn(After),
    /// It is wanted up again, whatever was to become of it.
    Revive,
    /// Kill it, for this cause if there is none yet.
    Kill(Cause),
    /// Kill it for the cause that began its end.
    KillAsMeant,
    /// Kill it once more.
    KillAgain,
    /// Send it this signal.
    Signal(i32),
    /// It ended: certify, judge, wait for its cgroup.
    End(Ended),
    /// It ended after it was given up: certify, judge, stay.
    EndLate(Ended),
    /// It never ran and nothing is left.
    Fail,
    /// Nothing is left: become what it was to become.
    Conclude,
    /// Not emptied in time.
    Stick,
    /// Its restart delay is over: wait for a batch.
    Enqueue,
    /// Forget its failures and start it.
    Renew,
    /// It is down already: become what it is to become.
    Rest(After),
    /// Forget its failures.
    ForgetFailures,
    /// Forget its failures and the verdict about its last end.
    Forgive,
}

/// The table. Rows are grouped by event, phases of a group that differ in nothing stand together.
#[rustfmt::skip]
pub(super) const fn step(phase: Phase, event: Event) -> Action {
    use Action as A;
    use Event as E;
    use Phase::{Aborting, Crashed, Emptying, Killing, Queued, Running, Spawning, Starting, Stopped, Stopping, Stuck, Waiting};
    match (phase, event) {
        (Queued, E::Admitted) => A::Spawn,
        (Stopped | Crashed | Spawning | Aborting | Starting | Running | Stopping | Killing | Emptying | Waiting | Stuck, E::Admitted) => A::Ignore,

        (Spawning, E::Spawned) => A::Run,
        (Aborting, E::Spawned) => A::KillAsMeant,
        (Stopped | Crashed | Queued | Starting | Running | Stopping | Killing | Emptying | Waiting | Stuck, E::Spawned) => A::Ignore,

        // Readiness may have overtaken the news of an exec that never came: what failed did not run, whatever it said.
        (Spawning | Aborting | Starting | Running | Stopping | Killing | Stuck, E::SpawnFailed) => A::Fail,
        (Stopped | Crashed | Queued | Emptying | Waiting, E::SpawnFailed) => A::Ignore,

        // Readiness may overtake the news of the exec: they come over different descriptors.
        (Spawning | Starting, E::BecameReady) => A::BeReady,
        (Stopped | Crashed | Queued | Aborting | Running | Stopping | Killing | Emptying | Waiting | Stuck, E::BecameReady) => A::Ignore,

        (Running, E::Beat) => A::Beat,
        (Running, E::PingFailed) => A::Miss,
        (Running, E::BreakageAnnounced) => A::Break,
        (Running, E::BeatDue) => A::Look,
        (Stopped | Crashed | Queued | Spawning | Aborting | Starting | Stopping | Killing | Emptying | Waiting | Stuck,
            E::Beat | E::PingFailed | E::BreakageAnnounced | E::BeatDue) => A::Ignore,

        (Running, E::MeasureDue) => A::Measure,
        (Running, E::Measured(usage)) => A::Weigh(usage),
        (Running, E::Froze) => A::BeFrozen,
        (Running, E::FreezeFailed | E::Used) => A::Wake,
        (Stopped | Crashed | Queued | Spawning | Aborting | Starting | Stopping | Killing | Emptying | Waiting | Stuck,
            E::MeasureDue | E::Measured(_) | E::Froze | E::FreezeFailed | E::Used) => A::Ignore,

        (Spawning | Starting | Stopping, E::TimeoutExtended(duration)) => A::Extend(duration),
        (Stopped | Crashed | Queued | Aborting | Running | Killing | Emptying | Waiting | Stuck, E::TimeoutExtended(_)) => A::Ignore,

        (Spawning | Starting | Running, E::BeatIntervalSet(interval)) => A::SetInterval(interval),
        (Stopped | Crashed | Queued | Aborting | Stopping | Killing | Emptying | Waiting | Stuck, E::BeatIntervalSet(_)) => A::Ignore,

        (Starting | Running, E::StopAnnounced) => A::WindDown,
        (Stopped | Crashed | Queued | Spawning | Aborting | Stopping | Killing | Emptying | Waiting | Stuck, E::StopAnnounced) => A::Ignore,

        (Spawning | Aborting | Starting | Running | Stopping | Killing, E::Exited(ended)) => A::End(ended),
        (Stuck, E::Exited(ended)) => A::EndLate(ended),
        (Stopped | Crashed | Queued | Emptying | Waiting, E::Exited(_)) => A::Ignore,

        (Spawning | Aborting | Starting | Running | Stopping | Killing | Emptying | Stuck, E::Emptied) => A::Conclude,
        (Stopped | Crashed | Queued | Waiting, E::Emptied) => A::Ignore,

        (Spawning | Starting, E::Overdue) => A::Kill(Cause::ReadyTimeout),
        (Aborting | Stopping, E::Overdue) => A::KillAsMeant,
        (Killing | Emptying, E::Overdue) => A::Stick,
        (Waiting, E::Overdue) => A::Enqueue,
        (Stopped | Crashed | Queued | Running | Stuck, E::Overdue) => A::Ignore,

        (Stopped | Crashed, E::Start) => A::Renew,
        (Waiting, E::Start) => A::Enqueue,
        (Queued | Spawning | Starting | Running, E::Start) => A::Ignore,
        (Aborting | Stopping | Killing | Emptying | Stuck, E::Start) => A::Revive,

        (Stopped | Crashed | Queued | Waiting, E::Stop(after, _)) => A::Rest(after),
        (Spawning, E::Stop(after, cause)) => A::Abort(Some(after), cause),
        (Starting | Running | Stopping, E::Stop(after, cause)) => A::Terminate(after, cause),
        (Aborting | Killing | Emptying | Stuck, E::Stop(after, _)) => A::Turn(after),

        (Spawning, E::Kill(cause)) => A::Abort(None, cause),
        (Aborting | Starting | Running | Stopping, E::Kill(cause)) => A::Kill(cause),
        (Stuck, E::Kill(_)) => A::KillAgain,
        (Stopped | Crashed | Queued | Killing | Emptying | Waiting, E::Kill(_)) => A::Ignore,

        (Starting | Running | Stopping, E::Signal(signal)) => A::Signal(signal),
        (Stopped | Crashed | Queued | Spawning | Aborting | Killing | Emptying | Waiting | Stuck, E::Signal(_)) => A::Ignore,

        (Crashed | Waiting, E::Reset) => A::Renew,
        (Emptying | Stuck, E::Reset) => A::Forgive,
        (Stopped | Queued | Spawning | Aborting | Starting | Running | Stopping | Killing, E::Reset) => A::ForgetFailures,
    }
}

/// What a worker in `Emptying` or `Stuck` becomes when the restart policy decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Starts again at this time.
    Restart(Time),
    /// Stays down behind the barrier, or because restart is off.
    Crash,
    /// Stays down because it ended well and restart is off.
    #[default]
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [(&str, Phase); 12] = [
        ("stopped", Phase::Stopped),
        ("crashed", Phase::Crashed),
        ("queued", Phase::Queued),
        ("spawning", Phase::Spawning),
        ("aborting", Phase::Aborting),
        ("starting", Phase::Starting),
        ("running", Phase::Running),
        ("stopping", Phase::Stopping),
        ("killing", Phase::Killing),
        ("emptying", Phase::Emptying),
        ("waiting", Phase::Waiting),
        ("stuck", Phase::Stuck),
    ];

    /// One row an event; one column a phase, in the order of `PHASES`; `-` is `Ignore`.
    const TABLE: &str = "\
        Admitted    -      -      Spawn -          -           -         -         -         -        -        -       -
        Spawned     -      -      -     Run        KillAsMeant -         -         -         -        -        -       -
        SpawnFailed -      -      -     Fail       Fail        Fail      Fail      Fail      Fail     -        -       Fail
        BecameReady -      -      -     BeReady    -           BeReady   -         -         -        -        -       -
        Beat        -      -      -     -          -           -         Beat      -         -        -        -       -
        PingFailed  -      -      -     -          -           -         Miss      -         -        -        -       -
        Extended    -      -      -     Extend     -           Extend    -         Extend    -        -        -       -
        IntervalSet -      -      -     SetInterval -          SetInterval SetInterval -     -        -        -       -
        Announced   -      -      -     -          -           WindDown  WindDown  -         -        -        -       -
        Breakage    -      -      -     -          -           -         Break     -         -        -        -       -
        Exited      -      -      -     End        End         End       End       End       End      -        -       EndLate
        Emptied     -      -      -     Conclude   Conclude    Conclude  Conclude  Conclude  Conclude Conclude -       Conclude
        Overdue     -      -      -     Kill       KillAsMeant Kill      -         KillAsMeant Stick  Stick    Enqueue -
        BeatDue     -      -      -     -          -           -         Look      -         -        -        -       -
        MeasureDue  -      -      -     -          -           -         Measure   -         -        -        -       -
        Used        -      -      -     -          -           -         Wake      -         -        -        -       -
        Measured    -      -      -     -          -           -         Weigh     -         -        -        -       -
        Froze       -      -      -     -          -           -         BeFrozen  -         -        -        -       -
        FreezeFailed -     -      -     -          -           -         Wake      -         -        -        -       -
        Start       Renew  Renew  -     -          Revive      -         -         Revive    Revive   Revive   Enqueue Revive
        Stop        Rest   Rest   Rest  Abort      Turn        Terminate Terminate Terminate Turn     Turn     Rest    Turn
        Kill        -      -      -     Abort      Kill        Kill      Kill      Kill      -        -        -       KillAgain
        Signal      -      -      -     -          -           Signal    Signal    Signal    -        -        -       -
        Reset       ForgetFailures Renew ForgetFailures ForgetFailures ForgetFailures ForgetFailures ForgetFailures ForgetFailures ForgetFailures Forgive Renew Forgive";

    fn event(name: &str) -> Event {
        match name {
            "Admitted" => Event::Admitted,
            "Spawned" => Event::Spawned,
            "SpawnFailed" => Event::SpawnFailed,
            "BecameReady" => Event::BecameReady,
            "Beat" => Event::Beat,
            "PingFailed" => Event::PingFailed,
            "Extended" => Event::TimeoutExtended(Duration::from_secs(1)),
            "IntervalSet" => Event::BeatIntervalSet(Duration::from_secs(1)),
            "Announced" => Event::StopAnnounced,
            "Breakage" => Event::BreakageAnnounced,
            "Exited" => Event::Exited(Ended::Exited(0)),
            "Emptied" => Event::Emptied,
            "Overdue" => Event::Overdue,
            "BeatDue" => Event::BeatDue,
            "MeasureDue" => Event::MeasureDue,
            "Used" => Event::Used,
            "Measured" => Event::Measured(Usage { cpu_usec: 0, in_use: false }),
            "Froze" => Event::Froze,
            "FreezeFailed" => Event::FreezeFailed,
            "Start" => Event::Start,
            "Stop" => Event::Stop(After::Down, Cause::Requested),
            "Kill" => Event::Kill(Cause::Requested),
            "Signal" => Event::Signal(1),
            "Reset" => Event::Reset,
            other => panic!("no event {other}"),
        }
    }

    #[test]
    fn every_pair_has_its_written_outcome() {
        let mut pairs = 0;
        for row in TABLE.lines() {
            let mut cells = row.split_whitespace();
            let name = cells.next().unwrap();
            for (phase_name, phase) in PHASES {
                let expected = cells.next().unwrap().replace('-', "Ignore");
                let action = format!("{:?}", step(phase, event(name)));
                let action = action.split('(').next().unwrap();
                assert_eq!(action, expected, "{phase_name} × {name}");
                pairs += 1;
            }
            assert_eq!(cells.next(), None, "{name}");
        }
        assert_eq!(pairs, 12 * 24);
    }

    #[test]
    fn an_overdue_worker_is_killed_for_its_readiness() {
        assert_eq!(step(Phase::Starting, Event::Overdue), Action::Kill(Cause::ReadyTimeout));
        assert_eq!(
            step(Phase::Running, Event::Stop(After::Again, Cause::Requested)),
            Action::Terminate(After::Again, Cause::Requested)
        );
        assert_eq!(step(Phase::Spawning, Event::Kill(Cause::Requested)), Action::Abort(None, Cause::Requested));
    }
}
