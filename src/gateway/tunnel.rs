//! A connection that has changed its protocol: bytes both ways between a client and the worker that it holds, whatever they
//! mean, until either has nothing more to say, the lease is over, nothing was said for too long, or the gateway ends.
//!
//! Nobody is read from faster than the other side takes it. What holds the connection's places holds them to its end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use halsup::protocol::control::LeaseOutcome;
use hyper::body::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep_until, timeout};

use crate::clock::{self, Instant};
use crate::lease::{Held, end};
use crate::strict::Strict;

/// As much is under way in each direction, in bytes, beside what the kernel keeps.
const BUFFER_BYTES: usize = 16 * 1024;
/// The client has taken the answer that changes the protocol within this time.
const BEGIN_PATIENCE: Duration = Duration::from_secs(15);
/// Once one side has nothing more to say, the other may be silent for this long.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// One end: its connection, and what came of it before it was one.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) stream: TcpStream,
    pub(crate) early: Bytes,
}

/// A worker that has agreed to another protocol.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) worker: End,
    pub(crate) held: Held,
}

/// What a connection holds of the gateway while it lasts.
#[derive(Debug)]
pub(crate) struct Places {
    /// Among all connections.
    pub(crate) _room: Option<Arc<OwnedSemaphorePermit>>,
    /// Among those that have changed their protocol.
    pub(crate) _upgrade: OwnedSemaphorePermit,
}

/// Which side has ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Worker,
}

/// Passes on what both say.
pub(crate) async fn run(client: OnUpgrade, changed: Changed, mut ending: watch::Receiver<()>, places: Places) {
    let Changed { mut worker, mut held } = changed;
    let idle = Duration::from_millis(held.told.idle_ms.unwrap_or(0));
    // Dropped without a word, a lease is one that nobody wants any more.
    let Ok(Ok(upgraded)) = timeout(BEGIN_PATIENCE, client).await else { return };
    let Some(mut client) = client_end(upgraded) else { return };
    let ended = tokio::select! {
        ended = both(&mut client, &mut worker, idle) => ended,
        () = held.link.closed() => None,
        _ = ending.changed() => None,
    };
    drop((client, worker));
    let outcome = match ended {
        Some(Ok(())) => LeaseOutcome::Done,
        Some(Err(Side::Worker)) => LeaseOutcome::Failed,
        // The worker is not done with it, and has to let go of it first.
        Some(Err(Side::Client)) | None => return,
    };
    end(&mut held.link, &held.told.lease, outcome).await;
    drop(places);
}

/// The client's connection, taken back from what spoke HTTP on it.
fn client_end(upgraded: Upgraded) -> Option<End> {
    let parts = upgraded.downcast::<TokioIo<Strict<TcpStream>>>().ok()?;
    let (stream, held) = parts.io.into_inner().into_parts();
    let mut early = parts.read_buf.to_vec();
    early.extend_from_slice(&held);
    Some(End { stream, early: early.into() })
}

/// Both directions; `None` where nothing was said for too long.
async fn both(client: &mut End, worker: &mut End, idle: Duration) -> Option<Result<(), Side>> {
    let beat = Beat { last: Mutex::new(clock::now()), ended: AtomicBool::new(false), idle };
    let (from_client, to_client) = client.stream.split();
    let (from_worker, to_worker) = worker.stream.split();
    let up = flow((Side::Client, from_client), (Side::Worker, to_worker), &client.early, &beat);
    let down = flow((Side::Worker, from_worker), (Side::Client, to_client), &worker.early, &beat);
    tokio::select! {
        ended = async { tokio::try_join!(up, down).map(|_both| ()) } => Some(ended),
        () = beat.missed() => None,
    }
}

/// When something was said last, by either.
struct Beat {
    last: Mutex<Instant>,
    /// Whether one of them has nothing more to say.
    ended: AtomicBool,
    idle: Duration,
}

impl Beat {
    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = clock::now();
    }

    fn due(&self) -> Instant {
        let ended = self.ended.load(Ordering::Relaxed);
        let most = if ended { self.idle.min(LAST_PATIENCE) } else { self.idle };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) + most
    }

    async fn missed(&self) {
        while clock::now() < self.due() {
            // An end that comes meanwhile brings what is due nearer: it is looked at that often.
            sleep_until(self.due().min(clock::now() + LAST_PATIENCE)).await;
        }
    }
}

/// One direction, to its end.
async fn flow(
    (source, mut from): (Side, impl AsyncRead + Unpin),
    (target, mut to): (Side, impl AsyncWrite + Unpin),
    early: &[u8],
    beat: &Beat,
) -> Result<(), Side> {
    let failed = |side: Side| move |_error: io::Error| side;
    to.write_all(early).await.map_err(failed(target))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await.map_err(failed(source))?;
        beat.touch();
        if count == 0 {
            beat.ended.store(true, Ordering::Relaxed);
            return to.shutdown().await.map_err(failed(target));
        }
        to.write_all(buffer.get(..count).unwrap_or_default()).await.map_err(failed(target))?;
        beat.touch();
    }
}
