//! The command line: argv becomes one call, its answer is printed. A file per verb, the verb is the file's name.
//!
//! Never looks at pools or kernel objects itself: it asks the daemon, or becomes it. Data goes to stdout, everything else
//! to stderr; an error is printed once, here.

mod attach;
mod audit;
mod backup;
mod breaker;
mod call;
mod caller;
mod capture;
mod check;
mod claim;
mod claim_options;
mod client;
mod completions;
mod config;
mod context;
mod daemon;
mod daemon_reexec;
mod daemon_reset;
mod daemon_run;
mod daemon_start;
mod daemon_stop;
mod dashboard;
mod debug_bundle;
mod doctor;
mod error;
mod events;
mod exec;
mod gc;
mod helper;
mod hold;
mod human;
mod image;
mod image_import;
mod image_layout;
mod image_pull;
mod input;
mod inspect;
mod kill;
mod log;
mod logs;
mod man;
mod notify;
mod order;
mod output;
mod pool;
mod pool_wait;
mod ps;
mod release;
mod reset;
mod restart;
mod scale;
mod send;
mod session;
mod sessions;
mod spawn;
mod start;
mod stats;
mod status;
mod stop;
mod stopwatch;
mod table;
mod task;
mod terminal;
mod token;
mod up;
mod volume;
mod volume_export;

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::exit_code::ExitCode;
use crate::protocol::escape;
use crate::spec::InstanceName;
pub use caller::{CallError, Caller};
use context::Context;
use error::Error;

/// Keeps pools of isolated Linux workers warm, alive and inside their limits.
#[derive(Debug, Parser)]
#[command(name = "halsup", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    /// Print JSON, one object a line, instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Talk to (or be) the halsup of this name.
    #[arg(long, global = true, value_name = "NAME", value_parser = instance_name)]
    instance: Option<InstanceName>,
    /// Talk over this control socket.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration [default: /etc/halsup/halsup.toml].
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run, start, stop and look after the daemon itself.
    #[command(subcommand)]
    Daemon(daemon::Verb),
    Up(Box<up::Up>),
    Ps(ps::Ps),
    Status(status::Status),
    Inspect(inspect::Inspect),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(restart::Restart),
    Kill(kill::Kill),
    Scale(scale::Scale),
    Call(Box<call::Call>),
    Queue(breaker::Queue),
    /// Look at circuit breakers, and close them.
    #[command(subcommand)]
    Breaker(breaker::Verb),
    /// Make, list and revoke what people who come by HTTP are known by.
    #[command(subcommand)]
    Token(token::Verb),
    Dashboard(dashboard::Dashboard),
    Spawn(Box<spawn::Spawn>),
    Claim(Box<claim::Claim>),
    Release(release::Release),
    /// Look after the warm workers of a pool that can be claimed.
    #[command(subcommand)]
    Pool(pool::Verb),
    Reset(reset::Reset),
    #[command(subcommand)]
    Task(task::Verb),
    /// Import, list and remove images, the root file systems of workers.
    #[command(subcommand)]
    Image(image::Verb),
    Logs(logs::Logs),
    Attach(attach::Attach),
    Send(send::Send),
    Broadcast(send::Broadcast),
    Capture(capture::Capture),
    Exec(exec::Exec),
    #[command(visible_alias = "ls")]
    Sessions(sessions::Sessions),
    Events(events::Events),
    Stats(stats::Stats),
    #[command(subcommand)]
    Volume(volume::Verb),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Gc(gc::Gc),
    #[command(subcommand)]
    Audit(audit::Verb),
    Check(check::Check),
    Doctor(doctor::Doctor),
    DebugBundle(debug_bundle::DebugBundle),
    Log(log::Log),
    Completions(completions::Completions),
    Man(man::Man),
    #[command(hide = true)]
    Helper(helper::Helper),
}

impl Verb {
    fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Daemon(verb) => verb.run(context),
            Self::Up(verb) => verb.run(context),
            Self::Ps(verb) => verb.run(context),
            Self::Status(verb) => verb.run(context),
            Self::Inspect(verb) => verb.run(context),
            Self::Start(verb) => verb.run(context),
            Self::Stop(verb) => verb.run(context),
            Self::Restart(verb) => verb.run(context),
            Self::Kill(verb) => verb.run(context),
            Self::Scale(verb) => verb.run(context),
            Self::Call(verb) => verb.run(context),
            Self::Queue(verb) => verb.run(context),
            Self::Breaker(verb) => verb.run(context),
            Self::Token(verb) => verb.run(context),
            Self::Dashboard(verb) => verb.run(context),
            Self::Spawn(verb) => verb.run(context),
            Self::Claim(verb) => verb.run(context),
            Self::Release(verb) => verb.run(context),
            Self::Pool(verb) => verb.run(context),
            Self::Reset(verb) => verb.run(context),
            Self::Task(verb) => verb.run(context),
            Self::Image(verb) => verb.run(context),
            Self::Logs(verb) => verb.run(context),
            Self::Attach(verb) => verb.run(context),
            Self::Send(verb) => verb.run(context),
            Self::Broadcast(verb) => verb.run(context),
            Self::Capture(verb) => verb.run(context),
            Self::Exec(verb) => verb.run(context),
            Self::Sessions(verb) => verb.run(context),
            Self::Events(verb) => verb.run(context),
            Self::Stats(verb) => verb.run(context),
            Self::Check(verb) => verb.run(context),
            Self::Doctor(verb) => verb.run(context),
            Self::DebugBundle(verb) => verb.run(context),
            Self::Log(verb) => verb.run(context),
            Self::Completions(verb) => verb.run(context),
            Self::Man(verb) => verb.run(context),
            Self::Volume(verb) => verb.run(context),
            Self::Audit(verb) => verb.run(context),
            Self::Backup(verb) => verb.run(context),
            Self::Restore(verb) => verb.run(context),
            Self::Gc(verb) => verb.run(context),
            Self::Helper(verb) => verb.run(context),
        }
    }
}

/// Runs the program and returns its exit status.
pub fn main() -> std::process::ExitCode {
    // Not for people, and before anything that a caller could have set is looked at.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == crate::archive::VERB) {
        return crate::archive::main().into();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(error).into(),
    };
    let Arguments { json, instance, socket, config, verb } = arguments;
    let context = Context::new(output::Output::new(json), instance, socket, config);
    match verb.run(&context) {
        Ok(()) => ExitCode::Done,
        Err(Error::Ended { code }) => return code.into(),
        Err(error) => {
            output::complain(&error);
            match error.code_of_program() {
                Some(code) => return code.into(),
                None => error.exit_code(),
            }
        }
    }
    .into()
}

/// Prints what clap has to say: help and version are what was asked for, all else is a wrong command line.
fn usage(mut error: clap::Error) -> ExitCode {
    let is_help = !error.use_stderr();
    if is_help || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        if !is_help && error.render().to_string().contains("Usage: halsup pool ") {
            output::complain_text("No command specified");
        }
        return match error.print() {
            Ok(()) if is_help => ExitCode::Done,
            Ok(()) => ExitCode::Usage,
            Err(cause) => Error::output(cause).exit_code(),
        };
    }
    suggest_dashes(&mut error);
    output::complain_text(&usage_sentence(error));
    ExitCode::Usage
}

/// What clap says in paragraphs, as one sentence; what the caller wrote is escaped before it can begin a paragraph.
fn usage_sentence(mut error: clap::Error) -> String {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue, ContextKind::InvalidSubcommand] {
        let Some(ContextValue::String(written)) = error.get(kind) else { continue };
        let safe = escape::text(written).into_owned();
        error.insert(kind, ContextValue::String(safe));
    }
    let mut text = error.render().to_string();
    let of_pool = matches!(error.get(ContextKind::Usage), Some(ContextValue::StyledStr(usage))
        if usage.to_string().contains("halsup pool "));
    if of_pool && matches!(error.kind(), ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument) {
        text = in_the_words_of_the_seed(&error, text);
    }
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.starts_with("For more information"));
    let parts = paragraphs.map(|paragraph| {
        let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.split_once(": ") {
            Some(("error" | "tip", rest)) => rest.to_owned(),
            Some(("Usage", rest)) => format!("usage: {rest}"),
            Some(_) | None => line,
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}

/// What the pool of the system before this one said of a word that it did not know.
fn in_the_words_of_the_seed(error: &clap::Error, text: String) -> String {
    let kinds = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg];
    let unknown = kinds.into_iter().find_map(|kind| match error.get(kind) {
        Some(ContextValue::String(unknown)) => Some(unknown),
        Some(_) | None => None,
    });
    match (unknown, text.split_once('\n')) {
        (Some(unknown), Some((_, rest))) => format!("error: Unknown argument: {unknown}\n{rest}"),
        (Some(_) | None, _) => text,
    }
}

/// Whoever writes `halsup up python3 -m http.server` is told that the whole command goes after `--`, not its option alone.
fn suggest_dashes(error: &mut clap::Error) {
    let in_up = matches!(error.get(ContextKind::Usage), Some(ContextValue::StyledStr(usage))
        if usage.to_string().contains("halsup up "));
    if in_up && error.kind() == ErrorKind::UnknownArgument && error.get(ContextKind::Suggested).is_some() {
        let tip = "a program goes after `--`, as in: halsup up -- python3 -m http.server";
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}

fn instance_name(text: &str) -> Result<InstanceName, String> {
    InstanceName::parse(text).map_err(|error| error.to_string())
}

/// For clap: a target as `all`, `web`, `web.3` or the name of a session.
fn target(text: &str) -> Result<session::Named, String> {
    text.parse().map_err(|error: crate::protocol::control::TargetError| error.to_string())
}

/// For clap: the name of a volume.
fn volume_name(text: &str) -> Result<crate::spec::VolumeName, String> {
    crate::spec::VolumeName::parse(text).map_err(|error| error.to_string())
}

/// For clap: the name of a pool.
fn pool_name(text: &str) -> Result<crate::spec::PoolName, String> {
    crate::spec::PoolName::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
