//! `halsup kill`: sends a signal to main programs, or ends every process of workers at once.

use clap::Args;
use nix::sys::signal::Signal;

use super::context::Context;
use super::error::Error;
use super::order;
use crate::protocol::control::{KillRequest, Request, Target};

/// Send a signal to main programs; without -s, kill every process of the workers at once.
///
/// Whether the workers are started again is decided as for any other death.
#[derive(Debug, Args)]
pub(super) struct Kill {
    /// Name or number of a signal for the main programs.
    #[arg(short, long, value_name = "SIGNAL", value_parser = signal)]
    pub(super) signal: Option<i32>,
    /// all, a pool such as web, or a worker such as web.3.
    #[arg(required = true, value_name = "TARGET", value_parser = super::target)]
    pub(super) targets: Vec<Target>,
}

impl Kill {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let signal = self.signal;
        let done = if signal.is_some() { "signalled" } else { "killed" };
        order::give(context, "kill", done, &self.targets, |target| Request::Kill(KillRequest { target, signal }))
    }
}

/// `TERM`, `SIGTERM`, `sigterm` or `15`.
fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        let known = (1..=64).contains(&number);
        return if known { Ok(number) } else { Err("expected a signal from 1 to 64".into()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match format!("SIG{name}").parse::<Signal>() {
        Ok(signal) => Ok(i32::from(signal as u8)),
        Err(_unknown) => Err("expected the name of a signal, such as TERM, or its number".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("SIGTERM", 15), ("sighup", 1), ("9", 9), ("64", 64), ("usr1", 10)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "TERMINATE", "SIGSIGTERM"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
