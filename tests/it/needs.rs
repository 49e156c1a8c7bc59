//! What a test needs of the machine: a missing need skips the test aloud, or fails it where `HALSUP_TEST_REQUIRE` names it.
//!
//! `HALSUP_TEST_REQUIRE` is a list such as `root,cgroup2:memory`, separated by commas or blanks. CI and the guests set it, so
//! that a skip there is an error. `tests/run` counts the lines that say `skipped: needs`.

#![expect(clippy::disallowed_types, reason = "asks the machine's own programs; nothing here is supervised")]

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a guest of `tests/vm` runs, where it is unpacked.
const GUEST_JOB: &str = "/vm/job";

/// Something that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need<'a> {
    /// Effective uid 0.
    Root,
    /// A cgroup v2 hierarchy that cgroups can be made in.
    CgroupTree,
    /// This controller, on version 2.
    Cgroup2(&'a str),
    /// A machine without this controller on version 2, for what is then said.
    Lacks(&'a str),
    /// User namespaces.
    Userns,
    /// The overlay file system.
    Overlay,
    /// Landlock, version 2 or newer.
    Landlock,
    /// File systems in user space.
    Fuse,
    /// A busybox without shared libraries, to make a root file system of.
    Busybox,
    /// Python 3 with its standard library.
    Python3,
    /// A package that this Python 3 has besides.
    PythonPackage(&'a str),
    /// A program in the search path.
    Program(&'a str),
    /// An interpreter with the package `varlink`, which `HALSUP_TEST_VARLINK_PYTHON` names.
    VarlinkPython,
    /// An interpreter with the package `grpcio`, which `HALSUP_TEST_GRPC_PYTHON` names.
    GrpcPython,
    /// An interpreter with the package `schemathesis`, which `HALSUP_TEST_SCHEMATHESIS_PYTHON` names.
    SchemathesisPython,
    /// An address of this host that is not of loopback.
    OwnAddress,
    /// A Docker daemon that answers, and the image that `HALSUP_TEST_IMAGE` names.
    Docker,
    /// A wall clock that may be set: a machine of its own, as `HALSUP_TEST_CLOCK` says.
    WallClock,
    /// This many open files for one process.
    Descriptors(u64),
    /// A guest of `tests/vm` whose PID 1 is systemd. No other machine: the tests that need it install units.
    Systemd,
    /// Such a guest with this version or a newer one.
    SystemdSince(u32),
}

impl fmt::Display for Need<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::CgroupTree => f.write_str("cgroup2"),
            Self::Cgroup2(controller) => write!(f, "cgroup2:{controller}"),
            Self::Lacks(controller) => write!(f, "lacks:{controller}"),
            Self::Userns => f.write_str("userns"),
            Self::Overlay => f.write_str("overlay"),
            Self::Landlock => f.write_str("landlock"),
            Self::Fuse => f.write_str("fuse"),
            Self::Busybox => f.write_str("busybox"),
            Self::Python3 => f.write_str("python3"),
            Self::PythonPackage(name) => write!(f, "python3:{name}"),
            Self::Program(name) => write!(f, "program:{name}"),
            Self::VarlinkPython => f.write_str("varlink-python"),
            Self::GrpcPython => f.write_str("grpc-python"),
            Self::SchemathesisPython => f.write_str("schemathesis-python"),
            Self::OwnAddress => f.write_str("own-address"),
            Self::Docker => f.write_str("docker"),
            Self::WallClock => f.write_str("wall-clock"),
            Self::Descriptors(count) => write!(f, "descriptors:{count}"),
            Self::Systemd => f.write_str("systemd"),
            Self::SystemdSince(version) => write!(f, "systemd:{version}"),
        }
    }
}

impl<'a> Need<'a> {
    fn parse(word: &'a str) -> Option<Self> {
        Some(match word {
            "root" => Self::Root,
            "cgroup2" => Self::CgroupTree,
            "userns" => Self::Userns,
            "overlay" => Self::Overlay,
            "landlock" => Self::Landlock,
            "fuse" => Self::Fuse,
            "busybox" => Self::Busybox,
            "python3" => Self::Python3,
            _ if word.starts_with("python3:") => Self::PythonPackage(word.split_once(':')?.1),
            _ if word.starts_with("program:") => Self::Program(word.split_once(':')?.1),
            "varlink-python" => Self::VarlinkPython,
            "grpc-python" => Self::GrpcPython,
            "schemathesis-python" => Self::SchemathesisPython,
            "own-address" => Self::OwnAddress,
            "docker" => Self::Docker,
            "systemd" => Self::Systemd,
            _ if word.starts_with("systemd:") => Self::SystemdSince(word.split_once(':')?.1.parse().ok()?),
            "wall-clock" => Self::WallClock,
            _ if word.starts_with("descriptors:") => Self::Descriptors(word.split_once(':')?.1.parse().ok()?),
            _ if word.starts_with("lacks:") => {
                Self::Lacks(word.strip_prefix("lacks:").filter(|name| !name.is_empty())?)
            }
            _ => Self::Cgroup2(word.strip_prefix("cgroup2:").filter(|controller| !controller.is_empty())?),
        })
    }

    fn met(self) -> bool {
        match self {
            Self::Root => rustix::process::geteuid().is_root(),
            Self::CgroupTree => cgroup_mount().is_some_and(|mount| {
                let probe = mount.join(format!("halsup-test-{}", std::process::id()));
                // Another test's probe of the same process is as good a proof.
                fs::create_dir(&probe).map_or_else(|e| e.kind() == std::io::ErrorKind::AlreadyExists, |()| true)
                    && fs::remove_dir(&probe).map_or_else(|e| e.kind() == std::io::ErrorKind::NotFound, |()| true)
            }),
            Self::Cgroup2(controller) => cgroup_mount()
                .and_then(|mount| fs::read_to_string(mount.join("cgroup.controllers")).ok())
                .is_some_and(|there| there.split_whitespace().any(|one| one == controller)),
            Self::Lacks(controller) => !Need::Cgroup2(controller).met(),
            Self::Userns => succeeds("unshare", &["--user", "true"]),
            Self::Overlay => fs::read_to_string("/proc/filesystems")
                .is_ok_and(|all| all.lines().any(|line| line.split_whitespace().next_back() == Some("overlay"))),
            // Of the kernel itself, which may have been started without it: landlock_create_ruleset(2), which only tells a number.
            Self::Landlock => {
                let ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(444, 0, 0, 1) < 2)";
                succeeds("python3", &["-c", ask])
            }
            Self::Fuse => File::options().read(true).write(true).open("/dev/fuse").is_ok(),
            Self::Busybox => busybox().is_some(),
            Self::Python3 => succeeds("python3", &["-c", "import http.server"]),
            Self::PythonPackage(name) => succeeds("python3", &["-c", &format!("import {name}")]),
            Self::Program(name) => std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(name).is_file())),
            Self::VarlinkPython => varlink_python().is_some_and(|python| succeeds(&python, &["-c", "import varlink"])),
            Self::GrpcPython => grpc_python().is_some_and(|python| succeeds(&python, &["-c", "import grpc"])),
            Self::SchemathesisPython => {
                schemathesis_python().is_some_and(|python| succeeds(&python, &["-c", "import schemathesis"]))
            }
            Self::OwnAddress => own_address().is_some(),
            Self::Docker => test_image().is_some() && succeeds("docker", &["version"]),
            Self::Systemd => {
                let first = fs::read_to_string("/proc/1/comm");
                first.is_ok_and(|name| name.trim_end() == "systemd") && Path::new(GUEST_JOB).exists()
            }
            Self::SystemdSince(version) => Self::Systemd.met() && systemd_version().is_some_and(|here| here >= version),
            Self::WallClock => std::env::var_os("HALSUP_TEST_CLOCK").is_some(),
            Self::Descriptors(count) => {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
                limit.maximum.is_none_or(|maximum| maximum >= count)
            }
        }
    }
}

/// The interpreter that has the package `varlink`.
pub(crate) fn varlink_python() -> Option<String> {
    std::env::var("HALSUP_TEST_VARLINK_PYTHON").ok().filter(|path| !path.is_empty())
}

/// The interpreter that has the package `grpcio`.
pub(crate) fn grpc_python() -> Option<String> {
    std::env::var("HALSUP_TEST_GRPC_PYTHON").ok().filter(|path| !path.is_empty())
}

/// The interpreter that has the package `schemathesis`.
pub(crate) fn schemathesis_python() -> Option<String> {
    std::env::var("HALSUP_TEST_SCHEMATHESIS_PYTHON").ok().filter(|path| !path.is_empty())
}

/// The address from which this host would speak to others.
pub(crate) fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: it only has the kernel choose.
    socket.connect("192.0.2.254:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

/// The archive of the image under test, which `container/build` made.
pub(crate) fn test_image() -> Option<String> {
    std::env::var("HALSUP_TEST_IMAGE").ok().filter(|path| !path.is_empty())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn systemd_version() -> Option<u32> {
    let printed = Command::new("systemctl").arg("--version").output().ok()?;
    String::from_utf8(printed.stdout).ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// Where busybox is.
pub(crate) fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists())
}

/// Where the cgroup v2 hierarchy is mounted.
pub(crate) fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The needs in `list`, which is a `HALSUP_TEST_REQUIRE`.
///
/// # Errors
/// The word that names no need.
fn parse_list(list: &str) -> Result<Vec<Need<'_>>, &str> {
    list.split([',', ' ']).filter(|word| !word.is_empty()).map(|word| Need::parse(word).ok_or(word)).collect()
}

/// Whether every need is met; says so where not.
///
/// # Panics
/// If a need is not met that `HALSUP_TEST_REQUIRE` names, or if that is not a list of needs.
pub(crate) fn met(needs: &[Need<'_>]) -> bool {
    let list = std::env::var("HALSUP_TEST_REQUIRE").unwrap_or_default();
    let required = parse_list(&list).unwrap_or_else(|word| panic!("HALSUP_TEST_REQUIRE: {word:?} is not a need"));
    needs.iter().all(|&need| {
        let met = need.met();
        if !met {
            assert!(!required.contains(&need), "HALSUP_TEST_REQUIRE asks for {need}, which this machine lacks");
            let thread = std::thread::current();
            let line = format!("skipped: needs {need} ({})\n", thread.name().unwrap_or("?"));
            // Not by `println!`, which libtest swallows when a test passes.
            std::io::stderr().write_all(line.as_bytes()).expect("write to stderr");
        }
        met
    })
}

/// Returns from the test, aloud, where the machine lacks one of these needs: `needs!(Root, Cgroup2("memory"))`.
macro_rules! needs {
    ($($need:ident $(($argument:expr))?),+ $(,)?) => {
        if !$crate::needs::met(&[$($crate::needs::Need::$need $(($argument))?),+]) {
            return;
        }
    };
}
pub(crate) use needs;

#[test]
fn a_list_of_needs_is_read_back_as_written() {
    let needs = [
        Need::Root,
        Need::CgroupTree,
        Need::Cgroup2("memory"),
        Need::Lacks("cpu"),
        Need::Busybox,
        Need::Userns,
        Need::Overlay,
        Need::Landlock,
        Need::Fuse,
        Need::Python3,
        Need::PythonPackage("numpy"),
        Need::Program("vim"),
        Need::VarlinkPython,
        Need::GrpcPython,
        Need::SchemathesisPython,
        Need::OwnAddress,
        Need::Docker,
        Need::WallClock,
        Need::Descriptors(12_000),
        Need::Systemd,
        Need::SystemdSince(253),
    ];
    let list = needs.map(|need| need.to_string());
    assert_eq!(parse_list(&list.join(",")), Ok(needs.to_vec()));
    assert_eq!(parse_list(&list.join(" ")), Ok(needs.to_vec()));
    assert_eq!(parse_list(""), Ok(Vec::new()));
}

#[test]
fn an_unknown_need_is_an_error_and_not_ignored() {
    assert_eq!(parse_list("root,cgroup:memory"), Err("cgroup:memory"));
    assert_eq!(parse_list("cgroup2:"), Err("cgroup2:"));
    assert_eq!(parse_list("descriptors:many"), Err("descriptors:many"));
}

#[test]
fn a_need_that_no_machine_meets_is_missing() {
    assert!(!Need::Cgroup2("no-such-controller").met());
    assert!(!succeeds("false", &[]));
}
