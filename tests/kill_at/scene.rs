//! What a scenario acts on: a daemon, a connection for its orders, one that follows events.
//!
//! Every wait ends with `None` when the daemon is gone, which is how a round ends that reached its boundary.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::checker::line::{Call, Line};
use crate::site::Site;
use crate::{leases, requests, tasks, tokens};

/// How long a daemon may take to carry out an order.
const PATIENCE: Duration = Duration::from_secs(20);

/// What callers were told in a scene, and what the next daemon is judged by.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) requests: Vec<requests::Heard>,
    pub(crate) tasks: Vec<tasks::Heard>,
    pub(crate) tokens: Vec<tokens::Heard>,
    pub(crate) leases: Vec<leases::Heard>,
}

/// A daemon that is acted on.
#[derive(Debug)]
pub(crate) struct Scene<'s> {
    pub(crate) site: &'s Site,
    /// The pid of the daemon, for signals.
    pub(crate) daemon: u32,
    pub(crate) told: Told,
    orders: Option<Line>,
    events: Option<Line>,
}

impl<'s> Scene<'s> {
    pub(crate) fn new(site: &'s Site, daemon: u32) -> Self {
        Self { site, daemon, told: Told::default(), orders: None, events: None }
    }

    /// Connects, once the daemon is ready.
    pub(crate) fn connect(&mut self) -> Option<()> {
        self.orders = Some(self.line()?);
        let mut events = self.line()?;
        events.follow();
        self.events = Some(events);
        Some(())
    }

    /// A further connection.
    pub(crate) fn line(&self) -> Option<Line> {
        Line::connect(&self.site.instance.control(), PATIENCE).ok()
    }

    /// Calls a method and waits for its answer.
    pub(crate) fn ask(&mut self, method: &str, parameters: &Value) -> Option<Value> {
        self.orders.as_mut()?.ask(method, parameters)
    }

    /// The same for a method with a target.
    pub(crate) fn order(&mut self, method: &str, target: &str) -> Option<Value> {
        self.ask(method, &json!({ "target": target }))
    }

    /// Waits for the next event that says that this worker is in this state.
    pub(crate) fn state(&mut self, worker: &str, state: &str) -> Option<()> {
        self.events.as_mut()?.event(|event| event["worker"] == worker && event["state"] == state).map(drop)
    }

    /// Waits for the next death of this worker.
    pub(crate) fn death(&mut self, worker: &str) -> Option<()> {
        self.events.as_mut()?.event(|event| event["worker"] == worker && event["kind"] == "death").map(drop)
    }

    /// Waits until the daemon has closed the stream of events.
    pub(crate) fn until_gone(&mut self) {
        if let Some(events) = &mut self.events {
            while events.next().is_some() {}
        }
    }

    /// What is told of this worker.
    pub(crate) fn worker(&mut self, name: &str) -> Option<Value> {
        let list = self.ask("List", &json!({}))?;
        list["parameters"]["workers"].as_array()?.iter().find(|worker| worker["name"] == name).cloned()
    }

    /// Signals a worker's program from outside.
    pub(crate) fn signal(&mut self, worker: &str, signal: Signal) -> Option<()> {
        let pid = self.worker(worker)?["pid"].as_i64()?;
        send(i32::try_from(pid).ok()?, signal)
    }

    /// Signals the daemon.
    pub(crate) fn signal_daemon(&self, signal: Signal) -> Option<()> {
        send(i32::try_from(self.daemon).ok()?, signal)
    }

    /// The books of the connection for orders, with what was said after the last answer.
    pub(crate) fn books(&mut self) -> Vec<Call> {
        self.orders.as_mut().map_or_else(Vec::new, |line| {
            line.surplus();
            line.calls.clone()
        })
    }
}

/// Signals a process by a pidfd.
pub(crate) fn send(pid: i32, signal: Signal) -> Option<()> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    pidfd_send_signal(&pidfd, signal).ok()
}
