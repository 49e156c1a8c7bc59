//! The worker that requests are given to: this very program, at the end of a channel.
//!
//! `ping` says its arguments again, `job` takes as many milliseconds as they say, `turn` reads all of the memory that was lent and
//! writes its answer there.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use halsup::protocol::channel::{
    Answer, AnswerPayload, FRAME_BYTES_MAX, FromWorker, PROTOCOL, Request, ToWorker, Verbatim,
};

use super::memory::{Taker, pass, receive};
use crate::Result;
use crate::place::{now, wait_until};

/// Serves until the daemon is gone.
pub fn serve() -> Result<()> {
    // A job is as long as it is said to be.
    rustix::thread::set_current_timer_slack(Some(std::num::NonZeroU64::MIN))?;
    let number = std::env::var("HALSUP_CHANNEL_FD")?.parse()?;
    // SAFETY: halsup has opened this descriptor for this process, and nobody else here knows of it.
    let channel = unsafe { OwnedFd::from_raw_fd(number) };
    say(&channel, &FromWorker::Hello { protocol: PROTOCOL, pid: None })?;
    say(&channel, &FromWorker::Ready)?;
    let mut taker = Taker::default();
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let (length, passed) = receive(&channel, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        match ToWorker::decode(&buffer[..length])? {
            ToWorker::Ping { id } => say(&channel, &FromWorker::Pong { id })?,
            ToWorker::Forget => say(&channel, &FromWorker::Ready)?,
            ToWorker::Request(request) => {
                let answer = answer(&request, passed, &mut taker)?;
                say(&channel, &FromWorker::Result(answer))?;
            }
            ToWorker::Drain => return Ok(()),
            ToWorker::Hello { .. }
            | ToWorker::Cancel { .. }
            | ToWorker::Credit(_)
            | ToWorker::Reply(_)
            | ToWorker::Chunk(_) => {}
            ToWorker::Unsupported(_) => {}
        }
    }
}

fn answer(request: &Request, passed: Option<OwnedFd>, taker: &mut Taker) -> Result<Answer> {
    let id = request.id;
    let args = request.args.clone();
    match (request.command.as_str(), request.payload.zip(passed)) {
        ("job", None) => {
            let ms: u64 = args.as_ref().ok_or("a job of no length")?.text().parse()?;
            wait_until(now() + u64::try_from(Duration::from_millis(ms).as_nanos())?);
            Ok(Answer { id, result: args, payload: None })
        }
        ("turn", Some((said, fd))) => {
            let read = taker.turn(fd, usize::try_from(said.bytes)?, said.shared)?;
            let result = Some(Verbatim::parse(read.to_string().as_bytes())?);
            let payload = said.shared.then_some(AnswerPayload { bytes: said.bytes, in_request: true });
            Ok(Answer { id, result, payload })
        }
        _ => Ok(Answer { id, result: args, payload: None }),
    }
}

fn say(channel: &OwnedFd, frame: &FromWorker) -> Result<()> {
    pass(channel, &frame.encode()?, None)
}
