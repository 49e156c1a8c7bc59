//! A pool as the daemon holds it: its specification, and what every spawn of it needs, prepared once at start or reload.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, getrlimit};

use super::foresight::Habit;
use super::session_files::{POOL, SESSIONS};
use crate::host::cgroup::{CgroupError, CgroupRoot, PoolCgroup};
use crate::host::identity::{IdentityError, host_user};
use crate::host::image_store;
use crate::host::mounts::{MountError, TemplateSpec, build_template, carried_bind};
use crate::host::port;
use crate::host::seccomp::{Filter, PROFILE_BYTES_MAX, SeccompError};
use crate::host::workdir::{LinkEntry, WorkDirError, expand_links};
use crate::spec::{Config, DaemonSpec, Identity, ImageName, Listen, Net, PoolId, PoolSpec, Root, Seccomp};

/// A pool cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Its cgroup.
    #[error("prepare its cgroup")]
    Cgroup(#[from] CgroupError),
    /// Its root.
    #[error("build its root")]
    Mount(#[from] MountError),
    /// The images.
    #[error("look its image up")]
    Images(#[from] image_store::StoreError),
    /// Its user.
    #[error("find its user")]
    Identity(#[from] IdentityError),
    /// Its links.
    #[error("find the files of `link`")]
    Links(#[from] WorkDirError),
    /// Its filter.
    #[error("make its system call filter")]
    Seccomp(#[from] SeccompError),
    /// Its user is root by another name.
    #[error("run as user {name:?}: that is the host's root, which only the word unsafe-root gives")]
    HostRoot {
        /// The name.
        name: String,
    },
    /// A file it names.
    #[error("{operation} {path}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A socket it listens on is somebody else's.
    #[error("listen on {address}: the address is in use{}", .holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    InUse {
        /// The address.
        address: String,
        /// Who has it, if that can be seen.
        holder: Option<String>,
    },
    /// A socket it listens on cannot be had.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl PoolError {
    /// Whether the daemon must not go on after it.
    pub(super) const fn is_fatal(&self) -> bool {
        matches!(self, Self::Mount(error) if error.is_fatal())
    }
}

/// What every spawn of a pool needs.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Finished mount namespace.
    pub(super) template: Rc<OwnedFd>,
    /// For a root that is a directory: that directory, to be id-mapped.
    pub(super) lower: Option<OwnedFd>,
    /// Digest of the image that is its root.
    pub(super) image: Option<String>,
    /// What keeps its workers from being started, as a sentence: the image that is not there.
    pub(super) lacks: Option<String>,
    /// Mounts that an overlay's template carries into the root: from, to.
    pub(super) carry: Vec<(CString, CString)>,
    /// System call filter, eight bytes an instruction; empty is none.
    pub(super) filter: Vec<u8>,
    /// What appears in each work directory.
    pub(super) links: Vec<LinkEntry>,
    /// Network namespace to join.
    pub(super) net: Option<Rc<OwnedFd>>,
    /// Parent of its workers' cgroups.
    pub(super) cgroup: PoolCgroup,
    /// Sockets handed in as `LISTEN_FDS`, with the addresses they are for; they survive every restart.
    pub(super) listeners: Vec<(Listen, OwnedFd)>,
    /// Uid and gid on the host, where the identity is one of the host's.
    pub(super) host_ids: Option<(u32, u32)>,
    /// RLIMIT_* numbers and values.
    pub(super) rlimits: Vec<(u32, u64)>,
}

impl Prepared {
    /// Removes the names of its unix sockets.
    pub(super) fn unlink_sockets(&self) {
        self.unlink_sockets_but(&[]);
    }

    /// The same but for those that somebody else goes on with.
    pub(super) fn unlink_sockets_but(&self, kept: &[(Listen, OwnedFd)]) {
        for (listen, _) in self.listeners.iter().filter(|(own, _)| !kept.iter().any(|(other, _)| other == own)) {
            if let Listen::Unix(path) = listen {
                super::log::best_effort(std::fs::remove_file(path), "somebody else has removed it");
            }
        }
    }
}

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: PoolId,
    pub(super) spec: PoolSpec,
    pub(super) prepared: Prepared,
    /// What its last claim has brought.
    pub(super) habit: Habit,
}

impl Pool {
    /// The name of the worker in `slot`: `web.3`, or a service's own.
    pub(super) fn worker_name(&self, slot: u32) -> String {
        if self.spec.service { self.spec.name.to_string() } else { format!("{}.{slot}", self.spec.name) }
    }
}

/// Templates of one start or reload: pools with one root share one.
#[derive(Debug, Default)]
pub(super) struct Templates(BTreeMap<TemplateSpec, Rc<OwnedFd>>);

impl Templates {
    fn get(&mut self, spec: TemplateSpec) -> Result<Rc<OwnedFd>, MountError> {
        if let Some(template) = self.0.get(&spec) {
            return Ok(Rc::clone(template));
        }
        let template = Rc::new(build_template(&spec)?);
        self.0.insert(spec, Rc::clone(&template));
        Ok(template)
    }
}

/// Prepares a pool. Listeners of `kept` that it still wants are taken over instead of bound anew.
///
/// # Errors
/// [`PoolError`]; nothing of it is left but an empty cgroup.
pub(super) fn prepare(
    spec: &PoolSpec,
    daemon: &DaemonSpec,
    cgroups: &CgroupRoot,
    templates: &mut Templates,
    kept: &[(Listen, OwnedFd)],
) -> Result<Prepared, PoolError> {
    let own = [daemon.runtime_dir.clone(), daemon.state_dir.clone(), PathBuf::from("/etc/halsup")];
    let told = [SESSIONS, POOL].map(|name| daemon.home.join(name));
    let hidden: Vec<PathBuf> =
        own.into_iter().chain(told.into_iter().filter(|_| daemon.home != daemon.state_dir)).collect();
    let host_ids = match &spec.identity {
        Identity::Host(name) => {
            let user = host_user(name)?;
            if user.uid == 0 {
                return Err(PoolError::HostRoot { name: name.clone() });
            }
            Some((user.uid, user.gid))
        }
        Identity::UnsafeRoot => Some((0, 0)),
        Identity::Dynamic | Identity::Mapped => None,
    };
    let net = match &spec.net {
        Net::Path(path) => Some(Rc::new(open_file("open network namespace", path, OFlags::RDONLY)?)),
        Net::Parent | Net::Own => None,
    };
    let Resolved { root, image, lacks } = resolve(&spec.root, daemon)?;
    let lower = match (&root, &spec.identity) {
        (Root::Directory(path), Identity::Mapped) => {
            Some(open_file("open root directory", path, OFlags::PATH | OFlags::DIRECTORY)?)
        }
        (Root::Directory(_) | Root::Host | Root::Empty | Root::Image(_), _) => None,
    };
    Ok(Prepared {
        template: templates.get(TemplateSpec::new(
            &root,
            &super::gateway::binds(spec, daemon)?,
            &hidden,
            &volume_places(spec),
        ))?,
        image,
        lacks,
        lower,
        carry: carried(spec)?,
        filter: filter(&spec.seccomp)?,
        links: expand_links(&spec.link)?,
        net,
        cgroup: PoolCgroup::create(cgroups, &spec.name)?,
        listeners: listeners(&spec.listen, kept)?,
        host_ids,
        rlimits: rlimits(&spec.rlimits),
    })
}

/// Where its volumes appear inside.
fn volume_places(spec: &PoolSpec) -> Vec<PathBuf> {
    spec.volumes.iter().map(|volume| volume.target.clone()).collect()
}

/// What a root is, once images are looked up.
struct Resolved {
    root: Root,
    image: Option<String>,
    lacks: Option<String>,
}

/// Looks an image up. One that is not there is no reason not to run: it can only be imported while a daemon does.
fn resolve(root: &Root, daemon: &DaemonSpec) -> Result<Resolved, PoolError> {
    let Root::Image(name) = root else { return Ok(Resolved { root: root.clone(), image: None, lacks: None }) };
    Ok(match image_store::resolve(&daemon.state_dir, name.as_str())? {
        Some((image, path)) => Resolved { root: Root::Directory(path), image: Some(image.digest), lacks: None },
        None => Resolved { root: Root::Host, image: None, lacks: Some(image_missing(name)) },
    })
}

/// What is said of an image that is not there.
pub(super) fn image_missing(name: &ImageName) -> String {
    format!(
        "image '{name}' not found: pull it by `halsup image pull {name}`, or import an archive of it by `halsup image import FILE --name {name}`"
    )
}

/// Whether what a pool's root means is what it was prepared with.
pub(super) fn has_current_root(pool: &Pool, daemon: &DaemonSpec) -> bool {
    resolve(&pool.spec.root, daemon).is_ok_and(|now| now.image == pool.prepared.image)
}

fn open_file(operation: &'static str, path: &Path, flags: OFlags) -> Result<OwnedFd, PoolError> {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| PoolError::File {
        operation,
        path: path.display().to_string(),
        source: errno.into(),
    })
}

fn carried(spec: &PoolSpec) -> Result<Vec<(CString, CString)>, PoolError> {
    if !spec.root.has_overlay() {
        return Ok(Vec::new());
    }
    let own = ["dev", "run", "sys"].map(|place| (format!("/carry/{place}"), format!("/new/{place}")));
    let target = |target: &Path| format!("/new/{}", target.display().to_string().trim_start_matches('/'));
    let binds = spec.binds.iter().enumerate().map(|(n, bind)| (carried_bind(n), target(&bind.target)));
    let pair = |(from, to): (String, String)| {
        let text = |path: String| {
            CString::new(path.clone()).map_err(|nul| PoolError::File { operation: "bind to", path, source: nul.into() })
        };
        Ok((text(from)?, text(to)?))
    };
    own.into_iter().chain(binds).map(pair).collect()
}

fn filter(seccomp: &Seccomp) -> Result<Vec<u8>, PoolError> {
    let filter = match seccomp {
        Seccomp::Unconfined => return Ok(Vec::new()),
        Seccomp::Default => Filter::allow_list()?,
        Seccomp::Gateway => Filter::gateway()?,
        Seccomp::Profile(path) => {
            let failed =
                |source| PoolError::File { operation: "read profile", path: path.display().to_string(), source };
            let size = std::fs::metadata(path).map_err(failed)?.len();
            if size > PROFILE_BYTES_MAX as u64 {
                return Err(SeccompError::TooLarge.into());
            }
            Filter::from_profile(&std::fs::read(path).map_err(failed)?, crate::host::kernel::version())?
        }
    };
    Ok(filter.program().iter().flat_map(|instruction| instruction.to_ne_bytes()).collect())
}

/// A listener's address as an operator writes it.
pub(super) fn listen_text(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => format!("tcp:{address}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn listeners(wanted: &[Listen], kept: &[(Listen, OwnedFd)]) -> Result<Vec<(Listen, OwnedFd)>, PoolError> {
    wanted.iter().map(|listen| Ok((listen.clone(), listener(listen, kept)?))).collect()
}

fn listener(listen: &Listen, kept: &[(Listen, OwnedFd)]) -> Result<OwnedFd, PoolError> {
    let address = match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    };
    let failed = |source: io::Error| match (source.kind(), listen) {
        (io::ErrorKind::AddrInUse, Listen::Tcp(tcp)) => {
            PoolError::InUse { address: address.clone(), holder: port::holder(tcp.port()) }
        }
        (_, Listen::Tcp(_) | Listen::Unix(_)) => PoolError::Listen { address: address.clone(), source },
    };
    if let Some((_, fd)) = kept.iter().find(|(old, _)| old == listen) {
        return fd.try_clone().map_err(failed);
    }
    match listen {
        Listen::Tcp(address) => TcpListener::bind(address).map(OwnedFd::from).map_err(failed),
        Listen::Unix(path) => {
            if !remove_stale(path).map_err(failed)? {
                return Err(PoolError::InUse { address, holder: None });
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            // As systemd's: who may connect is for the directory to say.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
            Ok(listener.into())
        }
    }
}

/// Removes the sockets in the runtime directory that are nobody's by now: a daemon that was killed cannot remove them, and
/// the pools that they were for may no longer be in the configuration.
pub(super) fn remove_stale_in(config: &Config) {
    let listens = config.pools.iter().flat_map(|pool| &pool.listen);
    let wanted: Vec<&Path> = listens
        .filter_map(|listen| match listen {
            Listen::Unix(path) => Some(path.as_path()),
            Listen::Tcp(_) => None,
        })
        .collect();
    for entry in std::fs::read_dir(&config.daemon.runtime_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let own = wanted.contains(&path.as_path()) || path.ends_with(super::control::SOCKET_NAME);
        if !own && entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            super::log::best_effort(remove_stale(&path), "it harms nobody");
        }
    }
}

/// Makes way for a unix socket: removes one that an earlier daemon left, on which nobody listens. `false` if something else
/// is there, which is not for us to remove.
fn remove_stale(path: &Path) -> io::Result<bool> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Ok(false);
    }
    // Without waiting: a listener whose queue is full is alive.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path).map(|()| true),
        Ok(()) | Err(_) => Ok(false),
    }
}

/// No core file is ever this small, so none is written; and it is what keeps the kernel from starting the host's crash handler,
/// as root and on what a worker died of, where `core_pattern` names one: zero does not (core(5)).
const CORE: u64 = 1;

/// From names to numbers. What is not written down is not inherited from the daemon, which allows itself much: no core
/// file, a moderate number of descriptors, little of the kernel's own memory.
fn rlimits(wanted: &BTreeMap<String, u64>) -> Vec<(u32, u64)> {
    const NUMBERS: [(&str, u32); 15] = [
        ("cpu", 0),
        ("fsize", 1),
        ("data", 2),
        ("stack", 3),
        ("core", 4),
        ("rss", 5),
        ("nproc", 6),
        ("nofile", 7),
        ("memlock", 8),
        ("as", 9),
        ("locks", 10),
        ("sigpending", 11),
        ("msgqueue", 12),
        ("nice", 13),
        ("rtprio", 14),
    ];
    const DEFAULTS: [(Resource, u32, u64); 4] = [
        (Resource::Nofile, 7, 65_536),
        (Resource::Memlock, 8, 8 << 20),
        (Resource::Sigpending, 11, 4_096),
        (Resource::Msgqueue, 12, 819_200),
    ];
    let mut limits: BTreeMap<u32, u64> = BTreeMap::from([(4, CORE)]);
    for (resource, number, value) in DEFAULTS {
        limits.insert(number, getrlimit(resource).maximum.map_or(value, |hard| value.min(hard)));
    }
    for (name, number) in NUMBERS {
        if let Some(value) = wanted.get(name) {
            limits.insert(number, *value);
        }
    }
    limits.into_iter().collect()
}
