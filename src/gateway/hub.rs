//! What many read, read once: the daemon's events and the snapshots of the page, once for each caller that the daemon tells
//! apart, for as long as somebody listens.
//!
//! A reader of events that is too slow misses some and is told how many; one of snapshots sees the latest. Nobody waits for
//! either.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::Bytes;
use halsup::protocol::control::{Event, EventsReply, EventsRequest, IdentifyReply, LAST_MAX, Request};
use halsup::spec::PoolName;
use tokio::sync::{broadcast, watch};

use crate::guard::Shown;
use crate::link::{Link, LinkError};
use crate::serve::Shared;
use crate::snapshot::Observer;
use crate::sse::message;

/// Events that are kept: for those who come back, and for the slowest reader; who is further behind misses some.
const EVENTS_MAX: usize = 1_024;
/// How long there is no new snapshot after one.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(250);
/// How often what has no event is measured: memory, processor time, requests.
const SAMPLE_PAUSE: Duration = Duration::from_secs(2);

/// What is said of one event, to all.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) sequence: u64,
    pub(crate) message: Bytes,
}

impl Told {
    /// Says it; `daemon` tells the daemon's life from others, whose sequences begin anew.
    pub(crate) fn new(daemon: &str, event: &Event) -> Self {
        let id = format!("{daemon}.{}", event.sequence);
        Self { sequence: event.sequence, message: message(&event.kind.to_string(), Some(&id), event) }
    }
}

/// The events of one daemon as one caller sees them.
#[derive(Debug)]
struct Events {
    sender: broadcast::Sender<Told>,
    /// The latest, for those who come later or come back.
    kept: Mutex<VecDeque<Told>>,
}

impl Events {
    /// What is kept, and everything from now on.
    fn join(&self) -> (Vec<Told>, broadcast::Receiver<Told>) {
        let kept = lock(&self.kept);
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }

    fn add(&self, told: Told) {
        let mut kept = lock(&self.kept);
        if kept.len() >= EVENTS_MAX {
            kept.pop_front();
        }
        kept.push_back(told.clone());
        if self.sender.send(told).is_err() {
            tracing::trace!("nobody listens");
        }
    }
}

/// What is read for whom.
#[derive(Debug, Default)]
pub(crate) struct Hubs {
    open: Mutex<Open>,
    /// Held by who begins to read something, so that a crowd that comes at once finds it read.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Open {
    events: BTreeMap<String, Weak<Events>>,
    snapshots: BTreeMap<String, watch::Receiver<Bytes>>,
}

/// What a caller is known by here. Whether it may still look is asked of the daemon again and again.
pub(crate) fn caller(who: &IdentifyReply) -> String {
    match &who.name {
        None => "nobody".to_owned(),
        Some(name) => format!("token {name} {} {}", who.role, who.pool.as_deref().unwrap_or("all")),
    }
}

/// The pool that a caller is limited to.
pub(crate) fn pool_of(who: &IdentifyReply) -> Option<PoolName> {
    who.pool.as_deref().and_then(|pool| PoolName::parse(pool).ok())
}

impl Hubs {
    /// The daemon's latest events, and those from now on.
    ///
    /// # Errors
    /// [`LinkError`], as the daemon answers.
    pub(crate) async fn events(
        &self,
        shared: &Shared,
        shown: &Shown,
        who: &IdentifyReply,
        daemon: &str,
    ) -> Result<(Vec<Told>, broadcast::Receiver<Told>), LinkError> {
        let key = format!("{daemon} {}", caller(who));
        let there = || lock(&self.open).events.get(&key).and_then(Weak::upgrade).map(|events| events.join());
        if let Some(joined) = there() {
            return Ok(joined);
        }
        let _making = self.making.lock().await;
        if let Some(joined) = there() {
            return Ok(joined);
        }
        let (mut link, _) = shared.connect(shown).await?;
        // The first answer is what has been; then nothing is missed.
        let first = ask_for_events(&mut link, LAST_MAX, pool_of(who)).await?;
        let kept = first.events.iter().map(|event| Told::new(daemon, event)).collect();
        let events = Arc::new(Events { sender: broadcast::Sender::new(EVENTS_MAX), kept: Mutex::new(kept) });
        let joined = events.join();
        let mut open = lock(&self.open);
        open.events.retain(|_, events| events.strong_count() > 0);
        open.events.insert(key, Arc::downgrade(&events));
        drop(open);
        tokio::spawn(follow(link, events, daemon.to_owned()));
        Ok(joined)
    }

    /// The snapshots for this caller: the present one, then others.
    ///
    /// # Errors
    /// [`LinkError`], as the daemon answers.
    pub(crate) async fn snapshots(
        &self,
        shared: &Shared,
        shown: &Shown,
        who: &IdentifyReply,
    ) -> Result<watch::Receiver<Bytes>, LinkError> {
        let key = caller(who);
        let there = || lock(&self.open).snapshots.get(&key).filter(|receiver| receiver.has_changed().is_ok()).cloned();
        if let Some(mut receiver) = there() {
            receiver.mark_changed();
            return Ok(receiver);
        }
        let _making = self.making.lock().await;
        if let Some(mut receiver) = there() {
            receiver.mark_changed();
            return Ok(receiver);
        }
        let (link, _) = shared.connect(shown).await?;
        let (mut news, _) = shared.connect(shown).await?;
        ask_for_events(&mut news, 0, None).await?;
        let mut observer = Observer::new(link);
        let first = observer.snapshot(true).await?;
        let (sender, mut receiver) = watch::channel(first);
        receiver.mark_changed();
        let mut open = lock(&self.open);
        open.snapshots.retain(|_, receiver| receiver.has_changed().is_ok());
        // Kept here is a receiver that nobody reads: `observe` counts it.
        open.snapshots.insert(key, receiver.clone());
        drop(open);
        tokio::spawn(observe(observer, news, sender));
        Ok(receiver)
    }
}

fn lock<T>(held: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows the daemon's events; the last so many of them are the first answer.
async fn ask_for_events(link: &mut Link, last: u32, pool: Option<PoolName>) -> Result<EventsReply, LinkError> {
    let request = EventsRequest { last: Some(last), follow: Some(true), telemetry: None, pool };
    link.ask(&Request::Events(request), true).await?;
    link.answer().await.map(|(reply, _)| reply)
}

/// Passes on events until nobody listens, or nobody tells any.
async fn follow(mut link: Link, events: Arc<Events>, daemon: String) {
    loop {
        let answer = tokio::select! {
            answer = link.answer::<EventsReply>() => answer,
            () = events.sender.closed() => return,
        };
        let Ok((reply, _)) = answer else { return };
        for event in &reply.events {
            events.add(Told::new(&daemon, event));
        }
    }
}

/// Makes snapshots, on what happens and now and then, until nobody looks at them or none can be made.
async fn observe(mut observer: Observer, mut news: Link, sender: watch::Sender<Bytes>) {
    let mut samples = tokio::time::interval(SAMPLE_PAUSE);
    samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    samples.tick().await;
    loop {
        tokio::time::sleep(SNAPSHOT_PAUSE).await;
        let sample = tokio::select! {
            answer = news.answer::<EventsReply>() => match answer {
                Ok((reply, _)) => {
                    observer.note(&reply);
                    false
                }
                Err(_) => return,
            },
            _ = samples.tick() => true,
        };
        // Beside the one that is kept for those who come later.
        if sender.receiver_count() <= 1 {
            return;
        }
        match observer.snapshot(sample).await {
            Ok(snapshot) => {
                sender.send_replace(snapshot);
            }
            Err(error) => return tracing::debug!(%error, "no more snapshots"),
        }
    }
}
