//! A worker shares the network, and must make nothing of it but connections.

use std::collections::BTreeSet;
use std::fs;

use super::{attack, hostile, identities, python};
use crate::fixture::Daemon;
use crate::look::wait_healthy;
use crate::needs::needs;

#[test]
fn no_socket_of_halsups_has_an_abstract_name() {
    needs!(Root, CgroupTree, Python3);
    let example = |name: &str| {
        let path = format!("{}/examples/workers/{name}.py", env!("CARGO_MANIFEST_DIR"));
        python(&fs::read_to_string(path).expect("read the example"))
    };
    let config = format!(
        "[pool.channel]\nready = 'channel'\n{}[pool.notify]\nready = 'notify'\n{}",
        example("channel_worker"),
        example("notify_worker")
    );
    let mut daemon = Daemon::start(&config);
    let workers = wait_healthy(&mut daemon, 2);
    let mut own: Vec<u64> = vec![daemon.pid().into()];
    own.extend(workers.iter().flat_map(|worker| [worker["pid"].as_u64(), worker["init_pid"].as_u64()]).flatten());
    let mut sockets = BTreeSet::new();
    for pid in own {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors").flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
            sockets.extend(link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
        }
    }
    let table = fs::read_to_string("/proc/net/unix").expect("read /proc/net/unix");
    let mut known = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(6).is_some_and(|inode| sockets.contains(*inode)) {
            known += 1;
            assert!(!fields.get(7).is_some_and(|name| name.starts_with('@')), "{line}");
        }
    }
    assert!(known >= 8, "control, init sockets, notify and channel are among them: {known}");
}

const SOCKETS: &str = "
FAMILIES = dict(packet=17, key=15, alg=38, vsock=40, rds=21, tipc=30, xdp=44, bluetooth=31, can=29, smc=43, qrtr=42, kcm=41, llc=26, ax25=3, appletalk=5, x25=9, phonet=35, ieee802154=36, caif=37, nfc=39)
for name, family in FAMILIES.items():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        attempt(f'family {name} {int(kind)}', lambda: call(41, family, kind, 0))
        attempt(f'family {name} {int(kind)} high', lambda: call(41, family | 1 << 32, kind, 0))
        attempt(f'family {name} {int(kind)} pair', lambda: call(53, family, kind, 0, ctypes.byref(ctypes.c_int64())))
for protocol in (2, 4, 6, 7, 9, 10, 12, 13, 15, 16, 20, 21):
    attempt(f'netlink {protocol}', lambda: call(41, 16, 3, protocol))
    attempt(f'netlink {protocol} high', lambda: call(41, 16, 3, protocol | 1 << 32))
attempt('raw icmp', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt('raw tcp', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
attempt('raw six', lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
attempt('raw packet', lambda: socket.socket(socket.AF_INET, 10, 768))
attempt('low port', lambda: socket.socket().bind(('127.0.0.1', 1)) if int(open('/proc/sys/net/ipv4/ip_unprivileged_port_start').read()) > 1 else open('/'))
attempt('mark', lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
attempt('device up', lambda: __import__('fcntl').ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0)))
route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def new_link():
    # RTM_DELLINK of interface 1.
    route.send(struct.pack('=IHHIIBxHiII', 32, 17, 5, 1, 0, 0, 0, 1, 0, 0))
    error = -struct.unpack_from('=i', route.recv(4096), 16)[0]
    if error:
        raise OSError(error, 'refused')
attempt('delete link', new_link)
attempt('fine tcp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
attempt('fine udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt('fine unix', lambda: socket.socketpair())
attempt('fine interfaces', lambda: socket.if_nameindex())
";

#[test]
fn only_ordinary_sockets_can_be_had() {
    needs!(Root, CgroupTree, Python3);
    for identity in identities() {
        let (_daemon, told) = attack(&format!("identity = '{identity}'\n"), SOCKETS);
        assert!(told.len() > 100, "{told:?}");
        for (deed, outcome) in told.iter().filter(|(deed, _)| *deed != "told") {
            // Told by the filter itself: a kernel without the family would say EAFNOSUPPORT too, but EPROTONOSUPPORT or EPERM
            // from a family that it has.
            let wanted: &[&str] = match deed.split(' ').next().unwrap_or_default() {
                "fine" => &["done"],
                "family" => &["EAFNOSUPPORT"],
                "netlink" => &["EPROTONOSUPPORT"],
                _ => &["EPERM", "EACCES"],
            };
            assert!(wanted.contains(&outcome.as_str()), "{identity}: {deed} is {outcome}");
        }
    }
}

const WRITES: &str = "
real = os.path.realpath('/etc/resolv.conf')
for name in ('/etc/resolv.conf', '/etc/hosts', '/etc/passwd', real):
    attempt(f'write {name}', lambda: os.open(name, os.O_WRONLY | os.O_CREAT, 0o600))
    attempt(f'replace {name}', lambda: (os.symlink('/x', '/tmp/l'), os.rename('/tmp/l', name)))
for top in ('/proc/sys', '/sys'):
    for where, _, names in os.walk(top):
        for name in names:
            path = os.path.join(where, name)
            try:
                os.close(os.open(path, os.O_WRONLY))
                # Some can be opened by everybody and check at the write; it gets what it has.
                with open(path, 'rb+', buffering=0) as file:
                    file.write(file.read() or b'')
                tell('wrote ' + path, 'done')
            except OSError:
                pass
for name in ('/proc/sysrq-trigger', '/proc/self/../sys/kernel/core_pattern', '/proc/sys/net/ipv4/ip_forward', '/proc/irq/default_smp_affinity', '/proc/kcore', '/proc/kmsg'):
    attempt(f'write {name}', lambda: os.open(name, os.O_RDWR))
";

#[test]
fn the_hosts_resolver_and_settings_cannot_be_written() {
    needs!(Root, CgroupTree, Python3);
    let before = fs::read("/etc/resolv.conf").ok();
    for identity in identities() {
        let (daemon, told) = attack(&format!("identity = '{identity}'\n"), WRITES);
        for (deed, outcome) in told.iter().filter(|(deed, _)| *deed != "told") {
            let harmless = identity == "unsafe-root" && deed.contains("/proc/k");
            assert!(outcome != "done" || harmless, "{identity}: {deed} is {outcome}");
        }
        drop(daemon);
    }
    assert_eq!(before, fs::read("/etc/resolv.conf").ok());
}

#[test]
fn a_socket_path_that_is_no_socket_is_refused_and_stays() {
    needs!(Root, CgroupTree, Python3);
    let dir = crate::place::directory();
    let file = dir.path().join("precious");
    fs::write(&file, "precious").expect("write a file");
    let config = format!("[pool.web]\nlisten = ['unix:{}']\n{}", file.display(), hostile(""));
    let refusal = Daemon::try_start(crate::place::directory(), &[], &config).err().expect("it is refused");
    assert!(refusal.contains("listen on") && refusal.contains("precious"), "{refusal}");
    assert_eq!(fs::read_to_string(&file).expect("it is still there"), "precious");
}
