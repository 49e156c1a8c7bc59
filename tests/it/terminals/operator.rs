//! An operator at a terminal: `halsup` runs on a pty of the test's, which reads its screen and types.

#![expect(clippy::disallowed_types, reason = "the test starts the program itself, as an operator's shell does")]
#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::fixture::{EVENT_DEADLINE, ready_for};
use crate::place::{Place, code};

/// What a session leaves a terminal with, as docs/sessions.md promises it.
pub(crate) const RESET: &str = "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m";

/// A terminal with a program on it.
pub(crate) struct Operator {
    master: File,
    slave: OwnedFd,
    child: Child,
    pidfd: OwnedFd,
    screen: vt100::Parser,
    /// Every byte that was shown.
    pub(crate) shown: Vec<u8>,
    before: Termios,
    /// How much of what was shown has been looked through for questions.
    asked_to: usize,
    /// Answers that this terminal, which is far away, has not given yet.
    answers: String,
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("a terminal has cells")
}

impl Operator {
    /// Runs `halsup` with these arguments on a terminal of 80 columns and 24 rows.
    pub(crate) fn at(place: &Place, arguments: &[&str]) -> Self {
        // It makes the terminal the controlling one, without which a change of size is told to nobody.
        Self::run(place.command_under(&["setsid", "--ctty"], arguments), 80, 24)
    }

    /// Attaches to a session; what is typed from now on reaches it.
    #[track_caller]
    pub(crate) fn attached(place: &Place, arguments: &[&str]) -> Self {
        let mut operator = Self::at(place, &[&["attach"], arguments].concat());
        operator
            .waits("a screen", |operator| operator.shown.windows(RESET.len()).any(|shown| shown == RESET.as_bytes()));
        operator
    }

    /// Runs `halsup` behind the line of a shell, which goes on with what is typed behind it.
    pub(crate) fn in_shell(place: &Place, arguments: &[&str]) -> Self {
        let halsup = place.command(arguments);
        let words: Vec<_> = std::iter::once(halsup.get_program()).chain(halsup.get_args()).collect();
        let line: Vec<String> = words.iter().map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let mut shell = crate::place::command_of("setsid".into());
        shell.args(["--ctty", "sh", "-c", &format!("{}; echo left=$?; cat", line.join(" "))]);
        Self::run(shell, 80, 24)
    }

    fn run(mut command: Command, columns: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("open a terminal");
        grantpt(&master).expect("grant it");
        unlockpt(&master).expect("unlock it");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("open its other end");
        let before = tcgetattr(&slave).expect("read its modes");
        let clone = || slave.try_clone().expect("copy a descriptor");
        tcsetwinsize(&master, window(columns, rows)).expect("set its size");
        let child = command.stdin(clone()).stdout(clone()).stderr(clone()).spawn().expect("run halsup");
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("open its pidfd");
        let screen = vt100::Parser::new(cells(rows), cells(columns), 0);
        Self {
            master: master.into(),
            slave,
            child,
            pidfd,
            screen,
            shown: Vec::new(),
            before,
            asked_to: 0,
            answers: String::new(),
        }
    }

    /// Types.
    pub(crate) fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    /// Makes the window another size.
    pub(crate) fn resizes(&mut self, columns: u16, rows: u16) {
        self.screen.screen_mut().set_size(cells(rows), cells(columns));
        tcsetwinsize(&self.master, window(columns, rows)).expect("set its size");
    }

    pub(crate) fn signals(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal halsup");
    }

    /// What is on the screen now.
    pub(crate) fn screen(&self) -> String {
        self.screen.screen().contents()
    }

    pub(crate) fn is_alternate(&self) -> bool {
        self.screen.screen().alternate_screen()
    }

    /// Reads what is shown until `reached`.
    ///
    /// # Panics
    /// At the deadline; the screen is shown.
    #[track_caller]
    pub(crate) fn waits(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + EVENT_DEADLINE;
        while !reached(self) {
            let came = self.reads(deadline);
            assert!(came, "{what}: it is not on the screen:\n{}\n{}", self.screen(), self.shown.escape_ascii());
        }
    }

    /// Reads until `text` is on the screen.
    #[track_caller]
    pub(crate) fn sees(&mut self, text: &str) {
        self.waits(text, |operator| operator.screen().contains(text));
    }

    /// Reads a piece of what is shown; `false` if none comes.
    fn reads(&mut self, deadline: Instant) -> bool {
        if ready_for(PollFlags::IN, [self.master.as_fd()], deadline).is_none() {
            return false;
        }
        let mut buffer = vec![0; 64 * 1024];
        let Ok(count) = self.master.read(&mut buffer) else { return false };
        self.screen.process(&buffer[..count]);
        self.shown.extend_from_slice(&buffer[..count]);
        self.answers_questions();
        count > 0
    }

    /// Answers where the cursor is, late: together with whether it is well, when it is asked that.
    fn answers_questions(&mut self) {
        while let Some(piece) = self.shown.get(self.asked_to..self.asked_to + 4) {
            match piece {
                b"\x1b[6n" => self.answers.push_str("\x1b[12;34R"),
                b"\x1b[5n" => {
                    let answers = std::mem::take(&mut self.answers) + "\x1b[0n";
                    self.types(&answers);
                }
                _ => {}
            }
            self.asked_to += 1;
        }
    }

    /// Reads until the program has ended; its exit status, after all that it has shown was read.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> i32 {
        let deadline = Instant::now() + EVENT_DEADLINE;
        loop {
            let ready = ready_for(PollFlags::IN, [self.master.as_fd(), self.pidfd.as_fd()], deadline);
            match ready {
                Some(0) => assert!(self.reads(deadline), "the terminal ended"),
                Some(_) => break,
                None => panic!("halsup has not ended:\n{}", self.screen()),
            }
        }
        while self.reads(Instant::now()) {}
        code(self.child.wait().expect("reap halsup"))
    }

    /// Whether the terminal is as it was before.
    pub(crate) fn is_as_before(&self) -> bool {
        let now = tcgetattr(&self.slave).expect("read its modes");
        let modes = |termios: &Termios| (termios.input_modes, termios.output_modes, termios.local_modes);
        assert!(self.before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
        modes(&now) == modes(&self.before)
    }
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Whoever still runs is a test's that has failed, or that has nothing more to see.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.child.kill().expect("end it");
            self.child.wait().expect("reap it");
        }
    }
}
