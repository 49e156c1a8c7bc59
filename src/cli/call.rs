//! `halsup call`: gives a worker of a pool something to do, and prints what comes of it.
//!
//! JSON that no frame of the channel holds goes beside the request as memory, and comes back so, as it does with the SDK: in its
//! place stands `{"halsup.payload": "json"}`. Whoever calls does not notice.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde_json::{Value, json};

use super::context::Context;
use super::error::Error;
use super::human;
use super::input::Input;
use super::output;
use crate::protocol::channel::FRAME_BYTES_MAX;
use crate::protocol::control::{
    AffinityMode, Bill, CallFailure, Error as ControlError, ExecuteReply, ExecuteRequest, Request, SentPayload,
};
use crate::spec::{PoolName, parse_duration};

/// Arguments and results that are longer than this are memory, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = FRAME_BYTES_MAX - 2048;

/// The longest arguments that are read, and the longest result that is printed, in bytes.
pub(super) const JSON_BYTES_MAX: u64 = 256 << 20;

/// Give a worker of a pool something to do, and print its result. With `--json` a failure is printed too, with all that is known
/// of it.
#[derive(Debug, Args)]
pub(super) struct Call {
    /// The pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pool: PoolName,
    /// What to do, a name that the worker knows.
    #[arg(value_name = "COMMAND")]
    command: String,
    /// With what: any JSON; `-` reads it from standard input.
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    args: Option<String>,
    /// Belong to this session: its requests go to one worker.
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// What the session means by its worker [default: as the pool has it].
    #[arg(long, value_name = "MODE", requires = "session")]
    affinity: Option<Mode>,
    /// Give up after this long, as in `30s` [default: as the pool has it].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Wait for a free worker no longer than this [default: as the pool has it].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    queue_timeout: Option<Duration>,
    /// It may run twice: another worker gets it if one dies with it.
    #[arg(long)]
    idempotent: bool,
    /// Print chunks as they are made, one a line.
    #[arg(long)]
    stream: bool,
    /// What ties it to records of your own.
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Send this file's content beside the arguments, without copying it through anybody; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// Send it chunks while it runs: each line of this file is one, any JSON; `-` is standard input, as it comes.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Also say what it has used: processor time, memory, input and output, processes left behind.
    #[arg(long)]
    bill: bool,
    /// Where a payload that comes back is written; `-` is standard output, and then nothing else is printed there.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// [`AffinityMode`] as it is typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// It if it is free, else any.
    Hint,
    /// Only it.
    StrictQueue,
    /// Only it, and only now.
    StrictFailFast,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

impl Call {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        self.check_standard_input()?;
        let mut told = Told::new(context, self.output.clone())?;
        let mut input = self.input.as_deref().map(Input::open).transpose()?;
        let (args, memory) = self.beside()?;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Execute(Box::new(ExecuteRequest {
            args,
            session: self.session,
            affinity: self.affinity.map(|mode| match mode {
                Mode::Hint => AffinityMode::Hint,
                Mode::StrictQueue => AffinityMode::StrictQueue,
                Mode::StrictFailFast => AffinityMode::StrictFailFast,
            }),
            timeout_ms: self.timeout.map(ms),
            queue_timeout_ms: self.queue_timeout.map(ms),
            idempotent: self.idempotent.then_some(true),
            stream: self.stream.then_some(true),
            correlation: self.correlation,
            bill: self.bill.then_some(true),
            input: input.is_some().then_some(true),
            payload: memory.as_ref().map(|(_, bytes)| SentPayload { bytes: *bytes, shared: None }),
            ..ExecuteRequest::of(self.pool, self.command)
        }));
        let fd = memory.as_ref().map(|(memory, _)| memory.as_fd());
        let mut client = context.client()?;
        let called =
            client.execute(&request, self.stream, fd, input.as_mut(), |reply, passed| told.tell(reply, passed));
        // A program wants to know more of a failure than the sentence that people get.
        if let Err(Error::Refused(CallFailure::Control(ControlError::RequestFailed(failure)))) = &called
            && context.output.is_json()
        {
            context.output.json_line(failure)?;
        }
        called
    }

    /// Standard input can be one thing.
    fn check_standard_input(&self) -> Result<(), Error> {
        let args = self.args.as_deref() == Some("-");
        let files = [&self.payload, &self.input].into_iter().flatten().filter(|path| is_standard(path)).count();
        if usize::from(args) + files <= 1 {
            return Ok(());
        }
        let reason = "standard input is either the arguments, the payload or the input".into();
        Err(Error::Usage { reason })
    }

    /// The arguments, and what goes beside them: a payload, or the arguments themselves where no frame holds them.
    fn beside(&self) -> Result<(Option<Value>, Option<Beside>), Error> {
        let text = self.args.as_deref().map(read_text).transpose()?;
        let args = text.as_deref().map(parse_json).transpose()?;
        if let Some(path) = &self.payload {
            return Ok((args, Some(payload(path)?)));
        }
        // What counts is how long it is when it is written without blanks.
        let written = args.as_ref().map(Value::to_string).filter(|written| written.len() > VALUE_BYTES_MAX);
        let Some(written) = written else { return Ok((args, None)) };
        let failed = |source| Error::ReadFile { path: "the arguments".into(), source };
        let memory = sealed(|memory| memory.write_all(written.as_bytes())).map_err(failed)?;
        Ok((Some(in_payload()), Some((memory, u64::try_from(written.len()).unwrap_or(u64::MAX)))))
    }
}

/// Memory that goes beside a request, and how many bytes of it count.
type Beside = (OwnedFd, u64);

/// What stands in the place of JSON that is memory.
pub(super) fn in_payload() -> Value {
    json!({ "halsup.payload": "json" })
}

/// Where answers go.
struct Told<'c> {
    context: &'c Context,
    path: Option<PathBuf>,
    file: Option<File>,
}

impl<'c> Told<'c> {
    fn new(context: &'c Context, path: Option<PathBuf>) -> Result<Self, Error> {
        if context.output.is_json() && path.as_deref().is_some_and(is_standard) {
            let reason = "standard output is either for JSON or for the payload: name a file with --output".into();
            return Err(Error::Usage { reason });
        }
        Ok(Self { context, path, file: None })
    }

    /// Prints a chunk or an answer, and writes the payload that came with it.
    fn tell(&mut self, mut reply: ExecuteReply, passed: Option<OwnedFd>) -> Result<(), Error> {
        if let Some(said) = reply.payload {
            let lost = || Error::WriteFile { path: "a payload".into(), source: std::io::ErrorKind::NotFound.into() };
            let memory = File::from(passed.ok_or_else(lost)?);
            let place =
                [&mut reply.chunk, &mut reply.result].into_iter().flatten().find(|value| **value == in_payload());
            if let Some(value) = place {
                *value = read_value(memory, said.bytes)?;
                reply.payload = None;
            } else {
                self.keep(memory, said.bytes)?;
            }
        }
        // Beside the result, which is for programs.
        if let Some(bill) = reply.bill.as_ref().filter(|_| !self.context.output.is_json()) {
            output::complain_text(&bill_line(bill));
        }
        if self.path.as_deref().is_some_and(is_standard) {
            return Ok(());
        }
        self.context.output.answer(&reply, |reply| match (&reply.chunk, &reply.result) {
            (Some(value), _) | (None, Some(value)) => value.to_string(),
            (None, None) => String::new(),
        })
    }

    /// Writes a payload where it is wanted; those of a stream one behind the other.
    fn keep(&mut self, mut memory: File, bytes: u64) -> Result<(), Error> {
        let Some(path) = &self.path else {
            if !self.context.output.is_json() {
                output::complain_text(&format!(
                    "a payload of {} came back: --output FILE keeps it",
                    human::bytes(bytes)
                ));
            }
            return Ok(());
        };
        // Whoever wrote it may have left off anywhere in it.
        let failed = |source| Error::WriteFile { path: path.clone(), source };
        memory.rewind().map_err(failed)?;
        let mut payload = memory.take(bytes);
        if is_standard(path) {
            let mut stdout = std::io::stdout().lock();
            let copied = std::io::copy(&mut payload, &mut stdout).and_then(|_| stdout.flush());
            return copied.map_err(Error::output);
        }
        if self.file.is_none() {
            self.file = Some(File::create(path).map_err(failed)?);
        }
        if let Some(file) = &mut self.file {
            std::io::copy(&mut payload, file).map_err(failed)?;
        }
        Ok(())
    }
}

/// `cpu 1.2ms (user 1ms, system 200us), memory 12m at most, …`.
fn bill_line(bill: &Bill) -> String {
    let time = |usec: Option<u64>| {
        usec.map_or_else(|| "-".to_owned(), |usec| humantime::format_duration(Duration::from_micros(usec)).to_string())
    };
    let (cpu, user, system) = (time(bill.cpu_usec), time(bill.user_usec), time(bill.system_usec));
    let bytes = |bytes| human::or_dash(bytes, human::bytes);
    let (peak, read, written) = (bytes(bill.memory_peak_bytes), bytes(bill.read_bytes), bytes(bill.written_bytes));
    let left = human::or_dash(bill.leaked_processes, |count| count.to_string());
    let note = bill.note.as_ref().map_or_else(String::new, |note| format!("; {note}"));
    format!(
        "bill: cpu {cpu} (user {user}, system {system}), memory {peak} at most, read {read}, written {written}, processes left {left}{note}"
    )
}

pub(super) fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A result that is memory.
fn read_value(mut memory: File, bytes: u64) -> Result<Value, Error> {
    let unclear = |reason: String| Error::Answer { method: "Execute", reason };
    if bytes > JSON_BYTES_MAX {
        return Err(unclear(format!("its result is {} of JSON", human::bytes(bytes))));
    }
    let failed = |source| Error::ReadFile { path: "the result".into(), source };
    let mut text = Vec::new();
    memory.rewind().and_then(|()| memory.take(bytes).read_to_end(&mut text)).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| unclear(format!("its result is no JSON: {error}")))
}

fn read_text(text: &str) -> Result<String, Error> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let failed = |source| Error::ReadFile { path: "standard input".into(), source };
    let mut read = String::new();
    std::io::stdin().lock().take(JSON_BYTES_MAX + 1).read_to_string(&mut read).map_err(failed)?;
    if u64::try_from(read.len()).is_ok_and(|length| length <= JSON_BYTES_MAX) {
        return Ok(read);
    }
    let reason = format!("the arguments are longer than {}", human::bytes(JSON_BYTES_MAX));
    Err(Error::Usage { reason })
}

fn parse_json(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| {
        let reason = format!("the arguments are not JSON: {error}; expected something like '{{\"x\": 1}}'");
        Error::Usage { reason }
    })
}

/// A file's content as memory that nobody can change any more, and how long it is.
fn payload(path: &Path) -> Result<(OwnedFd, u64), Error> {
    let mut bytes = 0;
    let memory = sealed(|memory| {
        bytes = if is_standard(path) {
            std::io::copy(&mut std::io::stdin().lock(), memory)?
        } else {
            std::io::copy(&mut File::open(path)?, memory)?
        };
        Ok(())
    });
    let memory = memory.map_err(|source| Error::ReadFile { path: path.to_owned(), source })?;
    Ok((memory, bytes))
}

/// Memory that nobody can change any more, filled by `fill`.
pub(super) fn sealed(fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> std::io::Result<OwnedFd> {
    let mut memory = File::from(memfd_create("payload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    fill(&mut memory)?;
    memory.rewind()?;
    fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(memory.into())
}
