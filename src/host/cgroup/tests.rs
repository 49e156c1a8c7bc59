//! The cgroup tree against the running kernel, below whatever version 2 mount this machine has. Directory operations only.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::host::test_needs::{Need, met};
use crate::spec::{Generation, InstanceName, Limit, Limits, LimitsMode, PoolName};

/// These tests move this very process from cgroup to cgroup, so one at a time.
static MOVING: Mutex<()> = Mutex::new(());
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Leaves nothing of a test that failed half way: goes back to where the process came from and removes what is empty.
struct Cleanup {
    base: std::path::PathBuf,
    back: std::path::PathBuf,
}

impl Cleanup {
    fn of(location: &Location) -> Self {
        Self { base: location.path(), back: location.mount_point.join(&location.own) }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        fn remove(dir: &std::path::Path) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            std::fs::remove_dir(dir).unwrap_or_default();
        }
        if self.base.exists() {
            std::fs::write(self.back.join("cgroup.procs"), "0").unwrap_or_default();
            remove(&self.base);
        }
    }
}

fn with_root(test: impl FnOnce(&CgroupRoot, &PoolCgroup)) {
    if !met(&[Need::Root, Need::Cgroup2]) {
        return;
    }
    let _one_at_a_time = MOVING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let instance = InstanceName::parse(&format!("test-{}-{number}", std::process::id())).unwrap();
    let location = Location::discover(&instance, None).unwrap();
    let path = location.path();
    let _cleanup = Cleanup::of(&location);
    let root = CgroupRoot::prepare(location).unwrap();
    let own = std::fs::read_to_string(path.join("supervisor/cgroup.procs")).unwrap();
    assert!(own.lines().any(|pid| pid == std::process::id().to_string()), "the process is in its leaf: {own:?}");
    let pool = PoolCgroup::create(&root, &PoolName::parse("web").unwrap()).unwrap();
    test(&root, &pool);
    assert_eq!(pool.remove(&root).unwrap(), Removal::Removed);
    if root.location().delegation == Delegation::HierarchyRoot {
        assert_eq!(root.release().unwrap(), Removal::Removed);
        assert!(!path.exists(), "{path:?} is left");
    }
}

fn no_limits() -> Limits {
    Limits {
        memory_bytes: None,
        memory_high_bytes: None,
        swap_bytes: None,
        oom_group: false,
        cpu_millis: None,
        cpu_weight: None,
        pids: None,
        cpuset: None,
    }
}

fn all_limits(asked: bool) -> Limits {
    Limits {
        memory_bytes: Some(Limit { value: (64 << 20) + 1, asked }),
        memory_high_bytes: Some(Limit { value: 32 << 20, asked }),
        swap_bytes: None,
        oom_group: true,
        cpu_millis: Some(Limit { value: 500, asked }),
        cpu_weight: Some(Limit { value: 50, asked }),
        pids: Some(Limit { value: 16, asked }),
        cpuset: None,
    }
}

fn missing(pool: &PoolCgroup, controller: Controller) -> Option<Missing> {
    match pool.controllers().availability(controller) {
        Availability::Enabled => None,
        Availability::Missing(reason) => Some(reason),
    }
}

#[test]
fn a_worker_cgroup_lives_and_goes() {
    with_root(|root, pool| {
        let (mut worker, enforcement) =
            WorkerCgroup::create(pool, 3, Generation(7), &no_limits(), LimitsMode::Require).unwrap();
        assert!(enforcement.enforced());
        assert!(!worker.populated().unwrap());
        worker.events_fd().unwrap();
        assert!(!worker.populated().unwrap());
        assert_eq!(worker.pids(10).unwrap(), Pids::default());
        let below = rustix::fs::mkdirat(worker.dir(), "below", rustix::fs::Mode::RWXU);
        assert_eq!(below, Err(rustix::io::Errno::AGAIN), "a worker has no cgroups of its own");
        worker.freeze().unwrap();
        assert!(worker.events().unwrap().frozen, "an empty cgroup is frozen at once");
        worker.thaw().unwrap();
        worker.kill().unwrap();

        let walk = root.walk().unwrap();
        let pool_name = PoolName::parse("web").unwrap();
        assert_eq!(walk.workers, [FoundWorker { pool: pool_name.clone(), slot: 3, generation: Generation(7) }]);
        assert_eq!(walk.pools, [pool_name]);
        assert!(walk.strangers.is_empty() && !walk.truncated);
        assert_eq!(pool.remove(root).unwrap(), Removal::Busy, "a pool with a worker stays");

        assert_eq!(worker.remove().unwrap(), Removal::Removed);
        assert_eq!(worker.remove().unwrap(), Removal::Removed, "gone is removed");
        assert!(!worker.populated().unwrap(), "gone is not populated");
        worker.kill().unwrap();
        assert!(worker.memory_events().unwrap().is_none());
    });
}

#[test]
fn a_worker_cannot_have_cgroups_of_its_own() {
    with_root(|_, pool| {
        let (worker, _) = WorkerCgroup::create(pool, 0, Generation(1), &no_limits(), LimitsMode::Auto).unwrap();
        let made = rustix::fs::mkdirat(worker.dir(), "x", rustix::fs::Mode::RWXU);
        assert_eq!(made, Err(Errno::AGAIN));
        assert_eq!(worker.remove().unwrap(), Removal::Removed);
    });
}

#[test]
fn a_generation_is_made_once() {
    with_root(|_, pool| {
        let (worker, _) = WorkerCgroup::create(pool, 0, Generation(1), &no_limits(), LimitsMode::Auto).unwrap();
        let again = WorkerCgroup::create(pool, 0, Generation(1), &no_limits(), LimitsMode::Auto);
        assert!(matches!(again, Err(CgroupError::Create { source: Errno::EXIST, .. })), "{again:?}");
        assert!(WorkerCgroup::open(pool, 0, Generation(1)).is_ok(), "the first is untouched");
        assert_eq!(worker.remove().unwrap(), Removal::Removed);
    });
}

#[test]
fn limits_are_enforced_or_named() {
    with_root(|_, pool| {
        let (worker, enforcement) =
            WorkerCgroup::create(pool, 0, Generation(1), &all_limits(false), LimitsMode::Auto).unwrap();
        for name in [LimitName::MemoryMax, LimitName::OomGroup, LimitName::CpuMax, LimitName::PidsMax] {
            let missed = enforcement.missing.iter().find(|missed| missed.limit == name).map(|missed| missed.reason);
            assert_eq!(missed, missing(pool, name.controller()), "{name}");
        }
        let counted = worker.memory_events().unwrap().is_some();
        assert_eq!(counted, missing(pool, Controller::Memory).is_none());
        assert_eq!(worker.pids_events().unwrap().is_some(), missing(pool, Controller::Pids).is_none());
        let stats = worker.stats().unwrap();
        assert_eq!(stats.pids, missing(pool, Controller::Pids).is_none().then_some(0));
        assert_eq!(worker.remove().unwrap(), Removal::Removed);
    });
}

#[test]
fn a_limit_that_was_asked_for_is_enforced_or_refused() {
    with_root(|root, pool| {
        for (limits, mode) in [(all_limits(true), LimitsMode::Auto), (all_limits(false), LimitsMode::Require)] {
            let outcome = WorkerCgroup::create(pool, 0, Generation(1), &limits, mode);
            match missing(pool, Controller::Memory) {
                None => assert_eq!(outcome.unwrap().0.remove().unwrap(), Removal::Removed),
                Some(reason) => {
                    let error = outcome.unwrap_err();
                    assert_eq!(error.to_string(), "set memory.high to 33554432");
                    let cause = std::error::Error::source(&error).unwrap().to_string();
                    assert_eq!(cause, reason.to_string());
                    assert!(cause.contains("memory"), "{cause}");
                    assert!(root.walk().unwrap().workers.is_empty(), "nothing is left of it");
                }
            }
        }
    });
}

#[test]
fn a_cgroup_that_was_delegated_is_the_base() {
    if !met(&[Need::Root, Need::Cgroup2]) {
        return;
    }
    let _one_at_a_time = MOVING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let instance = InstanceName::default();
    let before = Location::discover(&instance, None).unwrap();
    let unit = before.mount_point.join(format!("halsup-test-unit-{}", std::process::id()));
    let back = before.mount_point.join(&before.own);
    let enter = |dir: &std::path::Path| std::fs::write(dir.join("cgroup.procs"), "0").unwrap();
    let _cleanup = Cleanup { base: unit.clone(), back: back.clone() };
    std::fs::create_dir(&unit).unwrap();
    rustix::fs::setxattr(&unit, "trusted.delegate", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    enter(&unit);
    for born in ["as the unit starts it", "after a restart, born in its leaf"] {
        let location = Location::discover(&instance, None).unwrap();
        assert_eq!((location.delegation, location.path()), (Delegation::Delegated, unit.clone()), "{born}");
        let foreseen = location.controllers().unwrap();
        let root = CgroupRoot::prepare(location).unwrap();
        assert_eq!(root.controllers(), &foreseen, "{born}");
        let pool = PoolCgroup::create(&root, &PoolName::parse("web").unwrap()).unwrap();
        let (worker, _) = WorkerCgroup::create(&pool, 0, Generation(1), &no_limits(), LimitsMode::Auto).unwrap();
        assert!(unit.join("pool.web/w-0-1").is_dir());
        std::fs::create_dir(unit.join("pool.web/x")).unwrap();
        std::fs::create_dir(unit.join("pool.UP")).unwrap();
        assert_eq!(root.walk().unwrap().strangers, ["pool.UP", "pool.web/x"], "{born}");
        std::fs::remove_dir(unit.join("pool.web/x")).unwrap();
        std::fs::remove_dir(unit.join("pool.UP")).unwrap();
        assert_eq!(worker.remove().unwrap(), Removal::Removed);
        assert_eq!(pool.remove(&root).unwrap(), Removal::Removed);
        assert_eq!(root.release().unwrap(), Removal::Busy, "whoever gave it removes it");
    }
    enter(&back);
    // From another unit, as a daemon that is started anew while workers are there: named, and nobody is moved.
    let name = std::path::Path::new("/").join(unit.strip_prefix(&before.mount_point).unwrap());
    let location = Location::discover(&instance, Some(&name)).unwrap();
    assert_eq!((location.delegation, location.path()), (Delegation::Named, unit.clone()));
    let foreseen = location.controllers().unwrap();
    let root = CgroupRoot::prepare(location).unwrap();
    assert_eq!(root.controllers(), &foreseen);
    assert_eq!(Location::discover(&instance, None).unwrap().own, before.own, "nobody has moved");
    assert_eq!(root.release().unwrap(), Removal::Busy, "whoever gave it removes it");
    rustix::fs::removexattr(&unit, "trusted.delegate").unwrap();
    let refused = Location::discover(&instance, Some(&name)).unwrap_err();
    assert!(matches!(refused, CgroupError::NotDelegated { .. }), "{refused:?}");
    std::fs::remove_dir(unit.join("supervisor")).unwrap();
    std::fs::remove_dir(&unit).expect("nothing is left in it");
}

fn only(cpu: usize) -> crate::spec::Cpuset {
    let mut bits = [0; 16];
    bits[cpu / 64] = 1 << (cpu % 64);
    crate::spec::Cpuset { bits }
}

#[test]
fn the_kernel_holds_what_was_written() {
    with_root(|root, pool| {
        let limits = Limits { cpuset: Some(Limit { value: only(0), asked: false }), ..all_limits(false) };
        let (worker, _) = WorkerCgroup::create(pool, 0, Generation(1), &limits, LimitsMode::Auto).unwrap();
        let dir = root.location().path().join("pool.web").join(worker.leaf());
        let table = [
            (LimitName::MemoryMax, "67108864"),
            (LimitName::MemoryHigh, "33554432"),
            (LimitName::OomGroup, "1"),
            (LimitName::CpuMax, "50000 100000"),
            (LimitName::CpuWeight, "50"),
            (LimitName::PidsMax, "16"),
            (LimitName::Cpus, "0"),
        ];
        for (limit, value) in table {
            let held = std::fs::read_to_string(dir.join(limit.file())).ok();
            let expected = missing(pool, limit.controller()).is_none().then(|| format!("{value}\n"));
            assert_eq!(held, expected, "{limit}");
        }
        assert_eq!(worker.remove().unwrap(), Removal::Removed);
    });
}

#[test]
fn processors_that_are_not_there_are_no_limit() {
    with_root(|_, pool| {
        let cpuset = Some(Limit { value: only(1000), asked: true });
        let outcome = WorkerCgroup::create(pool, 0, Generation(1), &Limits { cpuset, ..no_limits() }, LimitsMode::Auto);
        let error = outcome.unwrap_err();
        let CgroupError::Limit { limit: LimitName::Cpus, source, .. } = error else { panic!("{error:?}") };
        match missing(pool, Controller::Cpuset) {
            // An older kernel refuses the number itself.
            None => assert!(matches!(source, Missing::NoSuchProcessor | Missing::Refused(Errno::RANGE | Errno::INVAL))),
            Some(reason) => assert_eq!(source, reason),
        }
    });
}
