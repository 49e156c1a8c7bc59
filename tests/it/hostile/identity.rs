//! Who a worker is: no capability, no group and no way to get one, in every identity.

use super::{attack, hostile, identities, init_pid, proc_file, told};
use crate::fixture::Daemon;
use crate::needs::needs;

const TRY: &str = "
for line in open('/proc/self/status'):
    key, _, value = line.partition(':')
    if key in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Groups', 'Uid', 'Gid'):
        tell(key, ' '.join(value.split()))
attempt('setuid', lambda: os.setuid(os.getuid() ^ 1))
attempt('setgid', lambda: os.setgid(os.getgid() ^ 1))
attempt('setgroups', lambda: os.setgroups([]))
attempt('chown', lambda: (open('file', 'w').close(), os.chown('file', os.getuid() ^ 1, -1)))
attempt('ambient', lambda: call(157, 47, 2, 1, 0, 0))
attempt('hostname', lambda: socket.sethostname('mine'))
attempt('nice', lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
attempt('device', lambda: os.mknod('device', 0o20666, os.makedev(1, 1)))
";

fn is_nobody(identity: &str, told: &std::collections::BTreeMap<String, String>) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(told[set], "0000000000000000", "{identity}: {set}");
    }
    assert_eq!(told["NoNewPrivs"], "1", "{identity}");
    assert_eq!(told["Groups"], told["Gid"].split(' ').next().unwrap_or_default(), "{identity}: only its own group");
    for deed in ["setuid", "setgid", "setgroups", "chown", "ambient", "hostname", "device"] {
        assert!(["EPERM", "EINVAL"].contains(&told[deed].as_str()), "{identity}: {deed} is {}", told[deed]);
    }
    assert_eq!(told["nice"], "EACCES", "{identity}");
}

#[test]
fn no_identity_has_a_capability_or_a_way_to_one() {
    needs!(Root, CgroupTree, Python3);
    for identity in identities() {
        let (daemon, told) = attack(&format!("identity = '{identity}'\n"), TRY);
        is_nobody(identity, &told);
        let init = proc_file(init_pid(&daemon), "status");
        let of = |key: &str| {
            let line = init.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {key} in {init}")).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(of(set), "0000000000000000", "the init of {identity}: {set}");
        }
        assert_eq!(of("NoNewPrivs"), "1", "the init of {identity}");
        assert_eq!(of("Groups"), of("Gid").split(' ').next().unwrap_or_default(), "the init of {identity}");
    }
}

#[test]
fn groups_and_capabilities_of_whoever_started_the_daemon_are_not_inherited() {
    needs!(Root, CgroupTree, Python3);
    // All that it has is inheritable, as a container's runtime once left it (CVE-2022-29162).
    let grouped = "import ctypes,os,struct,sys\nos.setgroups([0, 4, 27, 1234])\nlibc = ctypes.CDLL(None)\n\
        header = struct.pack('Ii', 0x20080522, 0)\nsets = ctypes.create_string_buffer(24)\n\
        assert libc.capget(header, sets) == 0\ne, p, _, e2, p2, _ = struct.unpack('6I', sets.raw)\n\
        assert libc.capset(header, struct.pack('6I', e, p, p, e2, p2, p2)) == 0\nlibc.prctl(47, 2, 0, 0, 0)\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    for identity in identities() {
        let config = format!("[pool.web]\nidentity = '{identity}'\n{}", hostile(TRY));
        let mut daemon = Daemon::start_under(&["python3", "-c", grouped], &config);
        let told = told(&mut daemon);
        is_nobody(identity, &told);
        let init = proc_file(init_pid(&daemon), "status");
        // By whole numbers: the worker's own may have those digits.
        let groups = init.lines().find_map(|line| line.strip_prefix("Groups:")).expect("it has groups");
        let given = groups.split_whitespace().any(|group| ["4", "27", "1234"].contains(&group));
        assert!(!given && init.contains("CapInh:\t0000000000000000"), "{identity}: {init}");
        let own = proc_file(daemon.pid().into(), "status");
        assert!(!own.contains("CapInh:\t0000000000000000"), "the daemon has them: {own}");
    }
}
