//! halsup's spawn as the daemon makes it, called directly: cgroup, directory, sockets, start image, clone, init, program.
//!
//! The order and the calls are those of `daemon::birth`; what is missing is the daemon's bookkeeping.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use halsup::host::cgroup::{CgroupRoot, Location, PoolCgroup, Removal, WorkerCgroup};
use halsup::host::init_image::{Begins, Start, init_program, start_image};
use halsup::host::seccomp::Filter;
use halsup::host::spawn::{self, Child, Gone, PASSED_MAX, Plan, SLOTTED_STACKS_MAX, Stack};
use halsup::host::workdir::{self, LinkKind, Owner, WorkDir};
use halsup::protocol::init::kept;
use halsup::spec::{Generation, InstanceName, Limit, Limits, LimitsMode, PoolName};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::Result;
use crate::place::{INSIDE, Place, now, readable};

const UID: u32 = 1_879_048_192;
const PATIENCE: Duration = Duration::from_secs(10);
/// About as long as the birth record of a worker of the daemon.
const RECORD_BYTES: usize = 300;
/// The steps before the clone and the clone, as `--steps` names them.
pub const STEPS: [&str; 6] = ["cgroup", "directory", "sockets", "start image", "plan", "clone"];

const _: () = assert!(kept::COUNT == 10, "Library::keep gives all that there are");

/// What all spawns share, prepared once as the daemon does.
pub struct Library {
    template: Rc<OwnedFd>,
    init: Rc<OwnedFd>,
    filter: Vec<u8>,
    cgroups: CgroupRoot,
    pool: PoolCgroup,
    work_dirs: OwnedFd,
    null: OwnedFd,
    /// This process, and what an end is written into.
    own: OwnedFd,
    ledger: OwnedFd,
    stacks: Vec<Stack>,
    generation: u64,
    _low: Vec<OwnedFd>,
}

/// A worker whose program has been asked for.
pub struct Worker {
    child: Child,
    cgroup: WorkerCgroup,
    name: String,
    init: OwnedFd,
    _output: [OwnedFd; 2],
    /// When it was asked for, when the caller could go on.
    pub asked: u64,
    pub free: u64,
    /// Nanoseconds of each of [`STEPS`].
    pub steps: [u64; STEPS.len()],
}

impl Library {
    pub fn prepare(place: &Place, template: Rc<OwnedFd>) -> Result<Self> {
        let low = occupy_low()?;
        let null = low.first().ok_or("descriptors were inherited")?;
        let instance = InstanceName::parse(&format!("bench-{}", std::process::id()))?;
        let cgroups = CgroupRoot::prepare(Location::discover(&instance, None)?)?;
        let pool = PoolCgroup::create(&cgroups, &PoolName::parse("bench")?)?;
        let dir = place.path("work");
        std::fs::create_dir(&dir)?;
        let filter = Filter::allow_list()?;
        Ok(Self {
            template,
            init: Rc::new(init_program()?),
            filter: filter.program().iter().flat_map(|word| word.to_ne_bytes()).collect(),
            cgroups,
            pool,
            work_dirs: open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?,
            null: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
            own: pidfd_open(getpid(), PidfdFlags::empty())?,
            ledger: std::fs::File::create(place.path("ledger"))?.into(),
            stacks: (0..SLOTTED_STACKS_MAX)
                .map(|_| Stack::with_slots(null.as_fd()))
                .collect::<std::result::Result<_, _>>()?,
            generation: 0,
            _low: low,
        })
    }

    /// A directory in the hierarchy for what else is measured there.
    pub fn base(&self) -> std::path::PathBuf {
        self.cgroups.location().path()
    }

    /// Leaves nothing in the hierarchy.
    pub fn end(self) -> Result<()> {
        self.pool.remove(&self.cgroups)?;
        self.cgroups.release()?;
        Ok(())
    }

    /// Asks for one worker that runs the measured program.
    pub fn spawn(&mut self) -> Result<Worker> {
        let asked = now();
        let mut steps = [0; STEPS.len()];
        let mut last = asked;
        let mut step = |place: usize| {
            let at = now();
            steps[place] = at - last;
            last = at;
        };
        self.generation += 1;
        let generation = Generation(self.generation);
        let (cgroup, _) = WorkerCgroup::create(&self.pool, 0, generation, &limits(), LimitsMode::Auto)?;
        step(0);
        let name = format!("bench.0-{}", self.generation);
        let owner = Owner { uid: UID, gid: UID };
        let (work, _) = WorkDir::create(self.work_dirs.as_fd(), &name, &[], LinkKind::Symlink, owner)?;
        step(1);
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let (init, their_init) = pair()?;
        let null = self.null.try_clone()?;
        step(2);
        let start = Start {
            argv: &[format!("{INSIDE}/first"), format!("{INSIDE}/fifo")],
            env: &environment(),
            cwd: "/run/worker/work",
            rlimits: &[(4, 0)],
            seccomp: &self.filter,
            passed: 0,
            death_msec: Some(60_000),
            ledger_at: 0,
            generation: self.generation,
            record: &[0; RECORD_BYTES],
            begins: Begins::Program,
        };
        let image = start_image(&start)?;
        step(3);
        let mut passed = vec![null, their_stdout, their_stderr, their_init, image];
        self.keep([&init, &stdout, &stderr], &mut passed)?;
        let plan = self.plan(&work, passed)?;
        step(4);
        let child = spawn::begin(plan, Some(cgroup.dir()), self.stacks.pop())?;
        step(5);
        Ok(Worker { child, cgroup, name, init, _output: [stdout, stderr], asked, free: now(), steps })
    }

    /// Adds what an init keeps for a later daemon, in the order of `protocol::init::kept`.
    fn keep(&self, [init, stdout, stderr]: [&OwnedFd; 3], passed: &mut Vec<OwnedFd>) -> Result<()> {
        let null = &self.null;
        let kept = [init, &self.own, &self.ledger, stdout, stderr, null, null, null, null, null];
        for fd in kept {
            passed.push(fd.try_clone()?);
        }
        Ok(())
    }

    fn plan(&self, work: &WorkDir, passed: Vec<OwnedFd>) -> Result<Plan> {
        let options = || CString::new(format!("mode=1777,size={},nr_inodes=65536", 4_u64 << 30));
        Ok(Plan {
            template: Rc::clone(&self.template),
            net: None,
            own_net: false,
            userns: None,
            work_dir: work.dir().try_clone_to_owned()?,
            notify_dir: None,
            overlay: None,
            extra: Vec::new(),
            init: Rc::clone(&self.init),
            hostname: CString::new("bench-0")?,
            tmp_options: options()?,
            shm_options: options()?,
            mask_proc: false,
            dies_with_parent: false,
            uid: UID,
            gid: UID,
            passed,
        })
    }

    /// Waits for a worker's end and removes what it had.
    pub fn finish(&mut self, worker: Worker) -> Result<()> {
        let Worker { child, cgroup, name, init, .. } = worker;
        if !readable(&child.pidfd, PATIENCE) {
            return Err("a worker of the library did not end".into());
        }
        let mut report = [0; 64];
        let said = recv(&init, &mut report, RecvFlags::DONTWAIT).map_or(0, |(length, _)| length);
        let waited = spawn::try_wait(&child.pidfd)?;
        if said == 0 || waited.is_none_or(|end| end.status != spawn::Status::Exited(0)) {
            return Err(Box::new(spawn::step_failed(&child.birth)));
        }
        self.stacks.push(child.birth.release(Gone::Waited));
        let deadline = now() + 1_000_000_000;
        while cgroup.remove()? == Removal::Busy && now() < deadline {
            std::thread::yield_now();
        }
        workdir::remove(self.work_dirs.as_fd(), &name)?;
        Ok(())
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// What a worker is given has to lie above the numbers where it is put.
fn occupy_low() -> Result<Vec<OwnedFd>> {
    use std::os::fd::AsRawFd as _;
    let mut low = Vec::new();
    loop {
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        if usize::try_from(null.as_raw_fd())? >= PASSED_MAX {
            return Ok(low);
        }
        low.push(null);
    }
}

/// A pool's defaults.
fn limits() -> Limits {
    let default = |value| Some(Limit { value, asked: false });
    Limits {
        memory_bytes: default(4 << 30),
        memory_high_bytes: None,
        swap_bytes: default(0),
        oom_group: true,
        cpu_millis: default(2000),
        cpu_weight: None,
        pids: default(1024),
        cpuset: None,
    }
}

/// As many variables as a worker of the daemon has.
fn environment() -> Vec<String> {
    let text = [
        "HOME=/run/worker/work",
        "USER=worker",
        "LOGNAME=worker",
        "LANG=C.UTF-8",
        "HALSUP_INSTANCE=bench",
        "HALSUP_POOL=bench",
        "HALSUP_SLOT=0",
        "HALSUP_WORKER=bench.0",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ];
    text.map(str::to_owned).to_vec()
}
