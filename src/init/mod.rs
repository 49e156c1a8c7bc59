//! The PID 1 inside every worker: starts the program, at once or when it is told to, and further ones beside it; reaps,
//! forwards signals, reports, and ends the worker when its main process ends or its supervisor has been gone for too long.
//!
//! It runs as the worker's own user without any capability, from a sealed memfd, and holds its socket and what a later daemon
//! needs to take the worker over (`protocol::init::kept`), which the program never gets. It knows no pools, states or
//! policies, allocates nothing and is built without std (`main.rs`); this file is also part of the crate, so that lints
//! and tests see it.

use crate::protocol::init::{
    ENTRY_MAGIC, Entry, IMAGE_FD, MAIN, PROGRAMS_MAX, Report, SOCKET_FD, START, SUPERVISOR, flag, how, kept, kind, step,
};
use crate::sys::pid1::{self, Image, NotStarted, Program, Standard};
use crate::sys::raw::{self, Errno};

const SIGKILL: usize = 9;
const SIGCHLD: u32 = 17;
/// The signals that a worker is usually asked to end with: HUP, INT, QUIT, TERM, and USR1 and USR2, which end a program that
/// does not know them.
const ENDING: [u32; 6] = [1, 2, 3, 15, 10, 12];
const EVERYBODY: usize = usize::MAX;
/// Signals taken before the init looks at its children and its deadline again.
const SIGNALS_A_PASS: u32 = 32;

/// Runs the worker and returns the status that the init exits with: the program's own, or 128 + its signal.
#[must_use]
pub fn run() -> i32 {
    const PR_SET_DUMPABLE: usize = 4;
    // While its own /proc files still belong to it, which ends with the next call.
    pid1::be_killable();
    // Before there is anybody inside: from now on the program cannot trace or read its init, whose uid it shares.
    if raw::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0).is_err() {
        return 127;
    }
    pid1::reset_signals();
    let image = match Image::map(IMAGE_FD) {
        Ok(image) => image,
        Err(errno) => return not_started(NotStarted { step: step::IMAGE, errno }, None),
    };
    let office = Office::of(&image);
    let mut programs = Programs { main: None, others: [None; PROGRAMS_MAX] };
    // Everything about it is non-blocking or bounded: a program must not be held back by a full pipe of its own dead.
    let Ok(signals) = pid1::signalfd_all() else { return 127 };
    if image.header().flags & flag::PARKED != 0 {
        if image.header().flags & flag::FILTERED != 0
            && let Err(errno) = pid1::install_filter(&image)
        {
            return not_started(NotStarted { step: step::SECCOMP, errno }, Some(&office));
        }
        tell(&Report { kind: kind::PARKED, ..Report::default() }, None);
    } else if let Err(failed) = start(&image, MAIN, None, &office, &mut programs) {
        return not_started(failed, Some(&office));
    }
    supervise(&mut programs, signals, &office)
}

/// What runs: the main program, whose end is the worker's, and those that were started beside it, by pid and number.
struct Programs {
    main: Option<Program>,
    others: [Option<(i32, u64)>; PROGRAMS_MAX],
}

/// Starts a program and says so; the caller says if it fails.
fn start(
    image: &Image,
    number: u64,
    given: Option<[i32; 3]>,
    office: &Office,
    programs: &mut Programs,
) -> Result<(), NotStarted> {
    let standard = match given {
        _ if image.header().flags & flag::TERMINAL != 0 => {
            let made = pid1::open_terminal(image.header().window);
            let terminal = made.map_err(|errno| NotStarted { step: step::TERMINAL, errno })?;
            let report = Report { kind: kind::TERMINAL, a: number, ..Report::default() };
            if number == MAIN && pid1::move_descriptor(terminal.master, office.kept(kept::TERMINAL)).is_ok() {
                // There a later daemon finds it.
                tell(&report, Some(office.kept(kept::TERMINAL)));
            } else {
                tell(&report, Some(terminal.master));
                drop_descriptor(terminal.master);
            }
            Standard::Terminal(terminal.slave)
        }
        Some(given) => Standard::Given(given),
        None => Standard::Inherited,
    };
    let started = pid1::start_program(image, standard, office.filtered.as_ref());
    if let Standard::Terminal(slave) = standard {
        drop_descriptor(slave);
    }
    let program = started?;
    let running = Report { kind: kind::STARTED, a: number, ..Report::default() };
    if number == MAIN {
        // First where a later daemon finds it: a daemon may hear the report and be killed with that.
        let pidfd = match pid1::move_descriptor(program.pidfd, office.kept(kept::MAIN)) {
            Ok(()) => office.kept(kept::MAIN),
            Err(_) => program.pidfd,
        };
        tell(&running, Some(pidfd));
        programs.main = Some(program);
    } else {
        tell(&running, Some(program.pidfd));
        drop_descriptor(program.pidfd);
        if let Some(place) = programs.others.iter_mut().find(|place| place.is_none()) {
            *place = Some((program.pid, number));
        }
    }
    Ok(())
}

/// What this init knows beside its program.
struct Office {
    kept_first: u64,
    ledger_at: u64,
    generation: u64,
    death_msec: u64,
    /// Its start image, if it is under the filter of that.
    filtered: Option<Image>,
}

impl Office {
    const fn of(image: &Image) -> Self {
        let header = image.header();
        Self {
            kept_first: header.kept_first,
            ledger_at: header.ledger_at,
            generation: header.generation,
            death_msec: header.death_msec,
            filtered: if header.flags & flag::FILTERED != 0 { Some(*image) } else { None },
        }
    }

    /// The number of a kept descriptor. The image was checked, so it is a small one.
    #[expect(clippy::cast_possible_truncation, reason = "at most a thousand and a few")]
    const fn kept(&self, place: u64) -> i32 {
        self.kept_first.wrapping_add(place) as i32
    }

    /// Writes the worker's end down, for a daemon that is not there now.
    fn write_down(&self, how: u64, value: u64, usage: [u64; 3]) {
        let [user_usec, system_usec, max_rss_kib] = usage;
        let (magic, generation) = (ENTRY_MAGIC, self.generation);
        let mut entry = Entry { magic, generation, how, value, user_usec, system_usec, max_rss_kib, sum: 0 };
        entry.sum = entry.sum();
        // Then what remains is the report and the exit status.
        match pid1::write_entry(self.kept(kept::LEDGER), self.ledger_at, &entry) {
            Ok(()) | Err(_) => {}
        }
    }
}

fn not_started(failed: NotStarted, office: Option<&Office>) -> i32 {
    if let Some(office) = office {
        office.write_down(how::NOT_STARTED, failed.step << 32 | number_of(failed.errno), [0; 3]);
    }
    tell_failed(failed, MAIN);
    127
}

fn tell_failed(failed: NotStarted, number: u64) {
    let errno = number_of(failed.errno);
    tell(&Report { kind: kind::NOT_STARTED, a: failed.step, b: errno, c: number, ..Report::default() }, None);
}

fn number_of(errno: Errno) -> u64 {
    u64::from(errno.0.cast_unsigned())
}

fn tell(report: &Report, passing: Option<i32>) {
    // The daemon may be gone: the report waits for the next one in the socket that this process keeps.
    match pid1::send_report(report, passing) {
        Ok(()) | Err(_) => {}
    }
}

fn supervise(programs: &mut Programs, signals: i32, office: &Office) -> i32 {
    let mut dies_at: Option<u64> = None;
    let mut orphaned = false;
    loop {
        let timeout = dies_at.map(|at| at.saturating_sub(pid1::now_msec()));
        if timeout == Some(0) {
            office.write_down(how::ABANDONED, 0, [0; 3]);
            return end(0, None, office);
        }
        // Once it is gone, its pidfd would be readable for ever.
        let daemon = if orphaned { -1 } else { office.kept(kept::DAEMON) };
        let [said, gone, signalled] = pid1::wait_readable([SOCKET_FD, daemon, signals], timeout);
        if gone {
            orphaned = true;
            dies_at = match office.death_msec {
                crate::protocol::init::DEATH_NEVER => None,
                msec => Some(pid1::now_msec().saturating_add(msec)),
            };
        }
        if said {
            match obey(programs, office) {
                // A daemon that comes at the very end of the time has come.
                Obeyed::Supervised => (orphaned, dies_at) = (false, None),
                Obeyed::Nothing => {}
                Obeyed::MainFailed(failed) => return not_started(failed, Some(office)),
            }
        }
        if signalled && let Some(code) = take_signals(programs, signals, office) {
            return code;
        }
    }
}

/// What came of a daemon's order.
enum Obeyed {
    /// There is a daemon again.
    Supervised,
    /// Nothing that concerns the worker as a whole.
    Nothing,
    /// The main program does not run.
    MainFailed(NotStarted),
}

/// Carries out one order of the daemon.
fn obey(programs: &mut Programs, office: &Office) -> Obeyed {
    let Ok((order, fds)) = pid1::receive_order() else { return Obeyed::Nothing };
    let [first, rest @ ..] = fds;
    if order.what == SUPERVISOR && first >= 0 {
        return match pid1::move_descriptor(first, office.kept(kept::DAEMON)) {
            Ok(()) => {
                if programs.main.is_none() {
                    // The daemon before this one may have been killed with that unread or not written down.
                    tell(&Report { kind: kind::PARKED, ..Report::default() }, None);
                }
                Obeyed::Supervised
            }
            Err(_) => {
                drop_descriptor(first);
                Obeyed::Nothing
            }
        };
    }
    let result = if order.what == START { start_ordered(order.program, first, rest, office, programs) } else { Ok(()) };
    for fd in fds {
        if fd >= 0 {
            drop_descriptor(fd);
        }
    }
    match result {
        Ok(()) => Obeyed::Nothing,
        Err(failed) if order.program == MAIN && programs.main.is_none() => Obeyed::MainFailed(failed),
        Err(failed) => {
            tell_failed(failed, order.program);
            Obeyed::Nothing
        }
    }
}

fn start_ordered(
    number: u64,
    image: i32,
    standard: [i32; 3],
    office: &Office,
    programs: &mut Programs,
) -> Result<(), NotStarted> {
    const EAGAIN: Errno = Errno(11);
    const EBUSY: Errno = Errno(16);
    if number == MAIN && programs.main.is_some() {
        return Err(NotStarted { step: step::CLONE, errno: EBUSY });
    }
    if number != MAIN && programs.others.iter().all(Option::is_some) {
        return Err(NotStarted { step: step::CLONE, errno: EAGAIN });
    }
    let given = standard.iter().all(|fd| *fd >= 0).then_some(standard);
    if number == MAIN {
        // First where a later daemon finds it, as with all that it keeps.
        let kept = pid1::copy_descriptor(image, office.kept(kept::CLAIM));
        kept.map_err(|errno| NotStarted { step: step::IMAGE, errno })?;
    }
    let image = Image::map(image).map_err(|errno| NotStarted { step: step::IMAGE, errno })?;
    let started = start(&image, number, given, office, programs);
    image.let_go();
    started
}

/// Forwards what came from outside and reaps; the status to exit with if that was the end.
fn take_signals(programs: &mut Programs, signals: i32, office: &Office) -> Option<i32> {
    // A bounded pass: whoever floods this process with signals must not keep it from reaping and from its deadline.
    for _ in 0..SIGNALS_A_PASS {
        let Some((signal, sender)) = pid1::next_signal(signals) else { break };
        // What comes from inside is for the one who sent it to deliver; only the outside needs this process for that.
        if signal == SIGCHLD || sender != 0 {
            continue;
        }
        match &programs.main {
            Some(program) => forward(program, signal),
            // Nothing is there that could take it: it has the effect that it has on a program without a handler.
            None if ENDING.contains(&signal) => {
                return Some(end(signal, Some(&pid1::Reaped { status: signal, ..pid1::Reaped::default() }), office));
            }
            None => {}
        }
    }
    reap_all(programs, office)
}

fn drop_descriptor(fd: i32) {
    // A close that fails leaves a descriptor that no one can reach: the program was started without it.
    let closed = raw::close(raw::fd_arg(fd));
    debug_assert!(closed.is_ok(), "the init owns what it closes");
}

fn forward(program: &Program, signal: u32) {
    // ESRCH: it has just ended, and the SIGCHLD that says so is on its way.
    match raw::kill_in_own_namespace(raw::fd_arg(program.pid), signal as usize) {
        Ok(_) | Err(_) => {}
    }
}

/// Reaps all that has ended; the status to exit with if the main process was among them.
fn reap_all(programs: &mut Programs, office: &Office) -> Option<i32> {
    loop {
        match pid1::reap(false) {
            Ok(Some(reaped)) if programs.main.is_some_and(|main| main.pid == reaped.pid) => {
                return Some(end(reaped.status, Some(&reaped), office));
            }
            Ok(Some(reaped)) => ended_beside(programs, &reaped),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Reports a program that was started beside the main one, if this is one; else it is an orphan and nobody's business.
fn ended_beside(programs: &mut Programs, reaped: &pid1::Reaped) {
    for place in &mut programs.others {
        if let Some((pid, number)) = *place
            && pid == reaped.pid
        {
            *place = None;
            let (signal, code) = (reaped.status & 0x7f, (reaped.status >> 8) & 0xff);
            let (by_signal, value) = if signal == 0 { (0, code) } else { (1, signal) };
            let (kind, c) = (kind::PROGRAM_ENDED, u64::from(value));
            tell(&Report { kind, a: number, b: by_signal, c, ..Report::default() }, None);
        }
    }
}

/// Ends the worker: reports the main process, kills and reaps all that it left behind, reports how many they were.
fn end(status: u32, main: Option<&pid1::Reaped>, office: &Office) -> i32 {
    let signal = status & 0x7f;
    let code = (status >> 8) & 0xff;
    if let Some(main) = main {
        let (how, value) = if signal == 0 { (how::EXITED, code) } else { (how::SIGNALLED, signal) };
        // First, because the daemon may be killed with the report unread, and this process is gone in a moment.
        office.write_down(how, u64::from(value), [main.user_usec, main.system_usec, main.max_rss_kib]);
        let report = Report {
            kind: kind::MAIN_EXITED,
            a: u64::from(signal != 0),
            b: u64::from(if signal == 0 { code } else { signal }),
            c: main.user_usec,
            d: main.system_usec,
            e: main.max_rss_kib,
        };
        tell(&report, None);
    }
    let mut swept = 0_u64;
    // One pass is enough: what is killed cannot fork, and -1 reaches every process of the namespace but this one.
    // ESRCH, nobody left, is the usual answer.
    match raw::kill_in_own_namespace(EVERYBODY, SIGKILL) {
        Ok(_) | Err(_) => {}
    }
    while let Ok(Some(_)) = pid1::reap(true) {
        swept = swept.wrapping_add(1);
    }
    tell(&Report { kind: kind::SWEPT, a: swept, ..Report::default() }, None);
    let exit = if signal == 0 { code } else { 128 + signal };
    exit.cast_signed()
}
