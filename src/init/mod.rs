//! The PID 1 inside every worker: starts the program, reaps, forwards signals, reports, and ends the worker when its main
//! process ends or its supervisor has been gone for too long.
//!
//! It runs as the worker's own user without any capability, from a sealed memfd, and holds nothing but its socket. It
//! knows no pools, states or policies, allocates nothing and is built without std (`main.rs`); this file is also part of
//! the crate, so that lints and tests see it.

use crate::protocol::init::{Report, SOCKET_FD, kind, step};
use crate::sys::pid1::{self, Image, NotStarted, Program};
use crate::sys::raw;

const SIGKILL: usize = 9;
const SIGCHLD: u32 = 17;
const EVERYBODY: usize = usize::MAX;
/// Signals taken before the init looks at its children and its deadline again.
const SIGNALS_A_PASS: u32 = 32;

/// Runs the worker and returns the status that the init exits with: the program's own, or 128 + its signal.
#[must_use]
pub fn run() -> i32 {
    const PR_SET_DUMPABLE: usize = 4;
    // Before there is anybody inside: from now on the program cannot trace or read its init, whose uid it shares.
    if raw::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0).is_err() {
        return 127;
    }
    pid1::reset_signals();
    pid1::be_killable();
    let started = Image::map()
        .map_err(|errno| NotStarted { step: step::IMAGE, errno })
        .and_then(|image| Ok((pid1::start_program(&image)?, image.header().death_msec)));
    let (program, death_msec) = match started {
        Ok(started) => started,
        Err(failed) => {
            let errno = u64::from(failed.errno.0.cast_unsigned());
            tell(&Report { kind: kind::NOT_STARTED, a: failed.step, b: errno, ..Report::default() }, None);
            return 127;
        }
    };
    tell(&Report { kind: kind::STARTED, ..Report::default() }, Some(program.pidfd));
    drop_descriptor(program.pidfd);
    // A program that must not be held back by a full pipe of its own dead: everything below is non-blocking or bounded.
    let Ok(signals) = pid1::signalfd_all() else { return 127 };
    supervise(&program, signals, death_msec)
}

fn drop_descriptor(fd: i32) {
    // A close that fails leaves a descriptor that no one can reach: the program was started without it.
    let closed = raw::close(raw::fd_arg(fd));
    debug_assert!(closed.is_ok(), "the init owns what it closes");
}

fn tell(report: &Report, passing: Option<i32>) {
    // The daemon may be gone: then nobody is there to tell, and the exit status below is what remains.
    match pid1::send_report(report, passing) {
        Ok(()) | Err(_) => {}
    }
}

fn supervise(program: &Program, signals: i32, death_msec: u64) -> i32 {
    let mut socket = SOCKET_FD;
    let mut dies_at: Option<u64> = None;
    loop {
        let timeout = dies_at.map(|at| at.saturating_sub(pid1::now_msec()));
        if timeout == Some(0) {
            return end(0, None);
        }
        let (said, signalled) = pid1::wait_readable(socket, signals, timeout);
        if said && pid1::supervisor_is_gone() {
            socket = -1;
            dies_at = match death_msec {
                crate::protocol::init::DEATH_NEVER => None,
                msec => Some(pid1::now_msec().saturating_add(msec)),
            };
        }
        if signalled {
            // A bounded pass: whoever floods this process with signals must not keep it from reaping and from its deadline.
            for _ in 0..SIGNALS_A_PASS {
                let Some((signal, sender)) = pid1::next_signal(signals) else { break };
                // What comes from inside is for the one who sent it to deliver; only the outside needs this process for that.
                if signal != SIGCHLD && sender == 0 {
                    forward(program, signal);
                }
            }
            if let Some(code) = reap_all(program) {
                return code;
            }
        }
    }
}

fn forward(program: &Program, signal: u32) {
    // ESRCH: it has just ended, and the SIGCHLD that says so is on its way.
    match raw::kill_in_own_namespace(raw::fd_arg(program.pid), signal as usize) {
        Ok(_) | Err(_) => {}
    }
}

/// Reaps all that has ended; the status to exit with if the main process was among them.
fn reap_all(program: &Program) -> Option<i32> {
    loop {
        match pid1::reap(false) {
            Ok(Some(reaped)) if reaped.pid == program.pid => return Some(end(reaped.status, Some(&reaped))),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Ends the worker: reports the main process, kills and reaps all that it left behind, reports how many they were.
fn end(status: u32, main: Option<&pid1::Reaped>) -> i32 {
    let signal = status & 0x7f;
    let code = (status >> 8) & 0xff;
    if let Some(main) = main {
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
