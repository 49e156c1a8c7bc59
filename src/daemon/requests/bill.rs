//! What a request uses: its worker's counters when it gets it, and when it has answered.
//!
//! Only where a worker has one request at a time: the kernel counts by worker, so of several at once nobody can tell whose is what.
//! What the worker does by itself meanwhile is counted with it. Costs nothing where nobody asked for it.

use super::super::birth::chain;
use super::super::state::Daemon;
use super::{Metering, Open};
use crate::engine::{Delivery, RequestId};
use crate::host::cgroup::Meter;
use crate::protocol::control::Bill;

impl Daemon {
    /// Reads a worker's counters before it is given a request whose use is wanted.
    pub(super) fn begin_bill(&mut self, id: RequestId, delivery: Delivery) {
        let Some(open) = self.requests.open.get(&id) else { return };
        if matches!(open.meter, Metering::Unwanted) {
            return;
        }
        let capacity =
            self.pools.get(&open.pool).and_then(|pool| pool.spec.policy.dispatch).map_or(1, |policy| policy.capacity);
        let live = self.live.get(&delivery.worker).filter(|live| live.generation == delivery.generation);
        let meter = match live {
            Some(_) if capacity > 1 => Metering::Unknown(format!(
                "its worker has up to {capacity} requests at once, and the kernel counts by worker"
            )),
            Some(live) => match Meter::begin(&live.cgroup) {
                Ok(meter) => Metering::Running(Box::new(meter)),
                Err(error) => Metering::Unknown(chain(&error)),
            },
            None => Metering::Unknown("its worker has just ended".to_owned()),
        };
        if let Some(open) = self.requests.open.get_mut(&id) {
            open.meter = meter;
        }
    }

    /// What a request that was answered has used; `None` if nobody wants to know.
    pub(super) fn bill_of(&self, open: &Open) -> Option<Bill> {
        let unknown = |why: String| Some(Bill { note: Some(why), ..Bill::default() });
        let meter = match &open.meter {
            Metering::Unwanted => return None,
            Metering::Wanted => return unknown("no worker has had it".to_owned()),
            Metering::Unknown(why) => return unknown(why.clone()),
            Metering::Running(meter) => meter,
        };
        let live = open
            .delivery
            .and_then(|known| self.live.get(&known.worker).filter(|live| live.generation == known.generation));
        let Some(live) = live else { return unknown("its worker has ended".to_owned()) };
        let used = match meter.used(&live.cgroup) {
            Ok(used) => used,
            Err(error) => return unknown(chain(&error)),
        };
        let lacks = [
            (used.memory_peak_bytes.is_none(), "the peak of memory needs the memory controller and Linux 6.12"),
            (used.read_bytes.is_none(), "input and output need the io controller"),
            (used.leaked_processes.is_none(), "there are too many processes to tell which are new"),
        ];
        let lacks: Vec<&str> = lacks.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect();
        Some(Bill {
            cpu_usec: Some(used.cpu_us),
            user_usec: Some(used.user_us),
            system_usec: Some(used.system_us),
            memory_peak_bytes: used.memory_peak_bytes,
            read_bytes: used.read_bytes,
            written_bytes: used.written_bytes,
            leaked_processes: used.leaked_processes,
            note: (!lacks.is_empty()).then(|| lacks.join("; ")),
        })
    }
}
