//! The process that reads an archive: takes its job, shuts itself in, works, reports.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::syncfs;

use super::confine::confine;
use super::job::{Delivery, Done, Job, Report, Task, receive_job};
use super::pack::pack;
use super::refusal::{Refusal, writing};
use super::stream::{Count, Counted, Hashed, plain};
use super::unpack::{Totals, Unpacker, Whiteouts};
use crate::spec::ImageConfig;

/// What it ends with when it could report, whatever it reported.
const REPORTED: u8 = 0;
/// What it ends with when it could not.
const FAILED: u8 = 1;

/// Does what comes over standard input; its exit status.
#[must_use]
pub fn main() -> u8 {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let (job, [archive, tree, userns]) = match receive_job(socket) {
        Ok(received) => received,
        Err(errno) => return complain("receive its job", errno),
    };
    let report = match confine(tree, userns, &[&archive], (job.parent, job.limits.bytes)) {
        Ok(root) => work(&job, archive, root, socket).unwrap_or_else(|refusal| Report::Refused(sentence(&refusal))),
        Err(error) => Report::Refused(sentence(&error)),
    };
    match report.send(socket, Delivery::Certain) {
        Ok(()) => REPORTED,
        Err(errno) => complain("report", errno),
    }
}

/// Says what keeps it from reporting, for the daemon to pass on.
fn complain(operation: &str, errno: rustix::io::Errno) -> u8 {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{operation}: {errno}").unwrap_or_default();
    FAILED
}

fn work(job: &Job, archive: OwnedFd, root: OwnedFd, socket: BorrowedFd<'_>) -> Result<Report, Refusal> {
    if let Task::Pack(wanted) = &job.task {
        let packed = pack(&root, wanted, File::from(archive), |_| ())?;
        return Ok(Report::Packed(packed));
    }
    let (counted, count) = Counted::new(File::from(archive));
    let progress = reporter(socket, count);
    let mut unpacker = Unpacker::new(root, job.limits, progress);
    let plain = plain(counted)?;
    let (hashed, sum) = Hashed::new(plain.reader);
    unpacker.unpack(hashed, Whiteouts::Names)?;
    if job.task == Task::Image {
        unpacker.make_places()?;
    }
    syncfs(unpacker.tree().root()).map_err(writing("write to the disk", b""))?;
    let done =
        Done { digest: sum.digest(), totals: unpacker.totals(), names: Vec::new(), config: ImageConfig::default() };
    Ok(Report::Done(Box::new(done)))
}

/// Says now and then how far it is.
fn reporter(socket: BorrowedFd<'_>, count: Count) -> impl FnMut(&Totals) {
    const STEP_BYTES: u64 = 4 << 20;
    let last = Rc::new(RefCell::new(0_u64));
    move |totals| {
        let read = count.get();
        let mut last = last.borrow_mut();
        if read.saturating_sub(*last) >= STEP_BYTES {
            *last = read;
            let report = Report::Progress { read, totals: *totals };
            // A daemon that is gone ends this process by a signal; there is nothing else to do about it.
            report.send(socket, Delivery::IfThereIsRoom).unwrap_or_default();
        }
    }
}

/// An error and its causes as one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
