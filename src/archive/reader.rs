//! The process that reads an archive: takes its job, shuts itself in, works, reports.

use std::fs::File;
use std::io::{BufReader, Chain, Cursor, Read, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat, syncfs};

use super::bundle::{Bundle, check, is_bundle};
use super::confine::confine;
use super::header::{BLOCK, parse};
use super::image::{self, Image, Layer};
use super::job::{Delivery, Done, Job, Report, Task, receive_job};
use super::names::name;
use super::pack::pack;
use super::refusal::{Refusal, writing};
use super::stream::{Compression, Count, Counted, Hashed, Plain, plain};
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
    let file = File::from(archive);
    let (counted, count) = Counted::new(&file);
    let mut unpacker = match &job.task {
        Task::Pack(wanted) => return pack(&root, wanted, file, |_| ()).map(Report::Packed),
        Task::Tree | Task::Image => Unpacker::new(root, job.limits, reporter(socket, count.clone())),
    };
    let plain = plain(counted)?;
    let mut done = if job.task == Task::Image {
        let (first, rest) = first_block(plain.reader)?;
        let done = if is_bundle(&first) {
            let lies_plain = plain.compression == Compression::None && is_regular(&file)?;
            let bundle = if lies_plain {
                drop(rest);
                Bundle::open(file.try_clone().map_err(Refusal::Read)?, count)?
            } else {
                Bundle::open(spool(&mut unpacker, job, rest)?, Count::default())?
            };
            of_bundle(&mut unpacker, &bundle)?
        } else {
            tree(&mut unpacker, rest)?
        };
        unpacker.make_places()?;
        done
    } else {
        tree(&mut unpacker, plain.reader)?
    };
    syncfs(unpacker.tree().root()).map_err(writing("write to the disk", b""))?;
    done.totals = unpacker.totals();
    Ok(Report::Done(Box::new(done)))
}

/// A tar of files goes into the target as it is.
fn tree(unpacker: &mut Unpacker<'_>, reader: impl Read) -> Result<Done, Refusal> {
    let (hashed, sum) = Hashed::new(reader);
    unpacker.unpack(hashed, Whiteouts::Names)?;
    Ok(Done { digest: sum.digest(), config: ImageConfig::default(), ..Done::default() })
}

/// A reader whose first bytes were looked at.
type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// The name in the first header of a tar, and the whole again.
fn first_block<R: Read>(mut reader: R) -> Result<(Vec<u8>, Begun<R>), Refusal> {
    let mut block = Vec::with_capacity(BLOCK);
    reader.by_ref().take(BLOCK as u64).read_to_end(&mut block).map_err(Refusal::of_read)?;
    let first = <&[u8; BLOCK]>::try_from(block.as_slice()).ok().and_then(|block| parse(block).ok());
    // What is no header is found out by whoever reads on.
    let first = first.and_then(|header| name(&header.path).ok()).unwrap_or_default();
    Ok((first, Cursor::new(block).chain(reader)))
}

fn is_regular(file: &File) -> Result<bool, Refusal> {
    let found = fstat(file).map_err(|errno| Refusal::Read(errno.into()))?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
}

/// Puts a bundle that cannot be read twice where it can: into a file of the target that has no name.
fn spool(unpacker: &mut Unpacker<'_>, job: &Job, mut reader: impl Read) -> Result<File, Refusal> {
    const PIECE: u64 = 16 << 20;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let made = openat(unpacker.tree().root(), ".", flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(made.map_err(writing("make a file without a name in", b""))?);
    let mut written = 0;
    loop {
        unpacker.look(PIECE)?;
        let copied = std::io::copy(&mut reader.by_ref().take(PIECE), &mut file).map_err(Refusal::of_read)?;
        written += copied;
        if written > job.limits.bytes {
            return Err(Refusal::TooMuch { what: "bytes", most: job.limits.bytes });
        }
        if copied == 0 {
            file.seek(SeekFrom::Start(0)).map_err(Refusal::Read)?;
            return Ok(file);
        }
    }
}

fn of_bundle(unpacker: &mut Unpacker<'_>, bundle: &Bundle) -> Result<Done, Refusal> {
    let Image { digest, names, config, layers } = image::find(bundle)?;
    for layer in &layers {
        unpack_layer(unpacker, bundle, layer)?;
    }
    Ok(Done { digest, names, config, totals: Totals::default() })
}

/// Puts a layer over those before; its bytes are hashed as they lie and as they are unpacked, and both have to be right.
fn unpack_layer(unpacker: &mut Unpacker<'_>, bundle: &Bundle, layer: &Layer) -> Result<(), Refusal> {
    let mut part = bundle.part(&layer.part)?;
    let Plain { reader, compression } = plain(&mut part.reader)?;
    if layer.compression.is_some_and(|said| said != compression) {
        return Err(Refusal::part(&layer.part, "it is compressed otherwise than its media type says"));
    }
    let (hashed, sum) = Hashed::new(reader);
    let mut hashed = unpacker.unpack(BufReader::new(hashed), Whiteouts::Apply)?;
    std::io::copy(&mut hashed, &mut std::io::sink()).map_err(Refusal::of_read)?;
    drop(hashed);
    check(&layer.diff_id, sum.digest())?;
    match &layer.digest {
        Some(digest) => part.verify(digest),
        None => Ok(()),
    }
}

/// Says now and then how far it is.
fn reporter(socket: BorrowedFd<'_>, count: Count) -> impl FnMut(&Totals) {
    const STEP_BYTES: u64 = 4 << 20;
    let mut last = 0_u64;
    move |totals| {
        let read = count.get();
        let seen = read.saturating_add(totals.bytes);
        if seen.saturating_sub(last) >= STEP_BYTES {
            last = seen;
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
