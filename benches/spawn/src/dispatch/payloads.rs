//! Bytes in both directions: in memory that is lent, and copied through a socket. Either way the worker has read all that was
//! sent, and the caller all that came back.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use halsup::protocol::control::SentPayload;
use serde_json::json;

use super::bare::Server;
use super::memory::{Mapping, fresh, pass, receive, sum};
use super::{Scene, request, warm};
use crate::place::now;
use crate::report::Verdict;
use crate::rows::{Row, Rows};
use crate::{Options, Result};

const MIB: usize = 1 << 20;

/// One direction's bytes and what their sum is, so that nobody can answer without having read them.
struct Question {
    bytes: Vec<u8>,
    sum: u64,
}

pub fn run(scene: &Scene<'_>, options: &Options, rows: &mut Rows) -> Result<()> {
    warm(scene, "memory")?;
    for size in [MIB, 16 * MIB] {
        let runs = (options.runs as usize).min(if size == MIB { 300 } else { 60 });
        rows.head(&format!("{} MiB to a worker and as many back, {runs} in turn", size / MIB));
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let question = Question { sum: sum(&bytes), bytes };
        let mut measured: [Row; 4] = Default::default();
        let turn = Server::start("turn", scene.socket(&format!("turn-{size}")), &[])?;
        let mut socket = UnixStream::connect(&turn.path)?;
        let lend_at = Server::start("lend", scene.socket(&format!("lend-{size}")), &[])?;
        let bare = UnixStream::connect(&lend_at.path)?;
        let (mut lent, mut lent_bare) = (Mapping::lent(size)?, Mapping::lent(size)?);
        let mut taken = vec![1; size];
        let mut caller = scene.caller()?;
        // The first of each maps and faults what the others find.
        for run in 0..=runs {
            let mut unmeasured: [Row; 4] = Default::default();
            let [copied, bare_loan, by_loan, anew] = if run == 0 { &mut unmeasured } else { &mut measured };
            timed(copied, || copy(&mut socket, &question, &mut taken))?;
            timed(bare_loan, || lend_bare(&bare, &question, &mut lent_bare))?;
            timed(by_loan, || lend(&mut caller, &question, &mut lent))?;
            timed(anew, || send(&mut caller, &question))?;
        }
        let [copied, bare_loan, by_loan, anew] = &measured;
        let against =
            |other: &Row| by_loan.samples.median().zip(other.samples.median()).map(|(loan, other)| other / loan);
        let ratio = against(copied);
        let least = against(bare_loan).map(f64::recip);
        let faster = Verdict { target: "faster than copying".to_owned(), met: ratio.map(|ratio| ratio > 1.0) };
        rows.row("copied through a bare socket, both directions", copied, &[], &[]);
        rows.row("in lent memory over a bare socket, both directions", bare_loan, &[], &[]);
        let of_least = Verdict { target: "≤ 1.2 × the bare one".to_owned(), met: least.map(|least| least <= 1.2) };
        let more = [("times_faster_than_copying", ratio.unwrap_or(0.0)), ("times_the_bare_one", least.unwrap_or(0.0))];
        rows.row("halsup: in memory that is lent, both directions", by_loan, &[faster, of_least], &more);
        rows.row("halsup: in memory made for it, there only", anew, &[], &[]);
    }
    Ok(())
}

fn timed(row: &mut Row, mut turn: impl FnMut() -> Result<()>) -> Result<()> {
    let began = now();
    turn()?;
    let taken = now() - began;
    row.samples.add(taken);
    row.wall += taken;
    Ok(())
}

fn right(heard: u64, question: &Question, back: &[u8]) -> Result<()> {
    let expected = u64::from_ne_bytes([7; 8]).wrapping_mul((question.bytes.len() / 8) as u64);
    if heard != question.sum || sum(back) != expected {
        return Err("other bytes came than were sent".into());
    }
    Ok(())
}

fn copy(socket: &mut UnixStream, question: &Question, taken: &mut [u8]) -> Result<()> {
    socket.write_all(&(question.bytes.len() as u64).to_ne_bytes())?;
    socket.write_all(&question.bytes)?;
    let mut word = [0; 8];
    socket.read_exact(&mut word)?;
    socket.read_exact(taken)?;
    right(u64::from_ne_bytes(word), question, taken)
}

fn lend(caller: &mut halsup::cli::Caller, question: &Question, lent: &mut Mapping) -> Result<()> {
    lent.bytes_mut().copy_from_slice(&question.bytes);
    let mut asked = request("memory", "turn", None)?;
    asked.payload = Some(SentPayload { bytes: question.bytes.len() as u64, shared: Some(true) });
    let (reply, _) = caller.call(asked, Some(lent.fd()))?;
    let heard = reply.result.as_ref().and_then(serde_json::Value::as_u64).ok_or("no sum")?;
    right(heard, question, lent.bytes())
}

fn lend_bare(socket: &UnixStream, question: &Question, lent: &mut Mapping) -> Result<()> {
    lent.bytes_mut().copy_from_slice(&question.bytes);
    pass(socket, &(question.bytes.len() as u64).to_ne_bytes(), Some(lent.fd()))?;
    let mut word = [0; 8];
    receive(socket, &mut word)?;
    right(u64::from_ne_bytes(word), question, lent.bytes())
}

fn send(caller: &mut halsup::cli::Caller, question: &Question) -> Result<()> {
    let memory = fresh(&question.bytes)?;
    let mut asked = request("memory", "turn", None)?;
    asked.payload = Some(SentPayload { bytes: question.bytes.len() as u64, shared: None });
    let (reply, _) = caller.call(asked, Some(memory.as_fd()))?;
    if reply.result == Some(json!(question.sum)) { Ok(()) } else { Err(format!("{reply:?}").into()) }
}
