//! Paths, binds, listeners and probes as they are written.
//!
//! Only the form is checked here, never the file system: a path is absolute, bounded and has no `..`, so that what
//! `host` opens by descriptors is what the operator reads in the file.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use super::error::Fault;
use super::node::Node;
use crate::spec::{Bind, ImageName, Listen, Net, Probe, Ready, Root, Seccomp, VolumeMount, VolumeName};

/// The longest path that the kernel takes, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 4095;
/// The longest path that a unix socket takes, in bytes.
const SOCKET_BYTES_MAX: usize = 107;

/// Where nothing may be bound inside: the kernel's own trees.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Whether `text` is an absolute path without `..`, NUL or control characters, within the kernel's length.
fn is_absolute(text: &str) -> bool {
    let plain = text.len() <= PATH_BYTES_MAX && !text.chars().any(char::is_control);
    plain && text.starts_with('/') && Path::new(text).components().all(|part| part != Component::ParentDir)
}

/// The path without repeated slashes and `.`.
fn normal(text: &str) -> PathBuf {
    Path::new(text).components().collect()
}

pub(super) fn absolute(node: &Node<'_>) -> Result<PathBuf, Fault> {
    let text = node.text()?;
    if is_absolute(text) { Ok(normal(text)) } else { Err(node.fault("an absolute path without \"..\"")) }
}

/// An absolute path or glob pattern.
pub(super) fn pattern(node: &Node<'_>) -> Result<String, Fault> {
    let text = node.text()?;
    if is_absolute(text) && glob::Pattern::new(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err(node.fault("an absolute path or glob pattern without \"..\""))
    }
}

pub(super) fn root(node: &Node<'_>) -> Result<Root, Fault> {
    let text = node.text()?;
    match text {
        "host" => Ok(Root::Host),
        "empty" => Ok(Root::Empty),
        _ if is_absolute(text) && normal(text) != Path::new("/") => Ok(Root::Directory(normal(text))),
        _ => match text.strip_prefix("image:").map(ImageName::parse) {
            Some(Ok(name)) => Ok(Root::Image(name)),
            Some(Err(error)) => Err(node.fault(format!("\"image:\" and {}", error.expected))),
            None => Err(node.fault("\"host\", the absolute path of a root directory, or \"image:NAME\"")),
        },
    }
}

/// The name of an image.
pub(super) fn image(node: &Node<'_>) -> Result<ImageName, Fault> {
    ImageName::parse(node.text()?).map_err(|error| node.fault(error.expected))
}

pub(super) fn net(node: &Node<'_>) -> Result<Net, Fault> {
    match node.text()? {
        "parent" => Ok(Net::Parent),
        "own" => Ok(Net::Own),
        text if is_absolute(text) => Ok(Net::Path(normal(text))),
        _ => Err(node.fault("\"parent\", \"own\" or the absolute path of a network namespace")),
    }
}

pub(super) fn seccomp(node: &Node<'_>) -> Result<Seccomp, Fault> {
    match node.text()? {
        "default" => Ok(Seccomp::Default),
        "unconfined" => Ok(Seccomp::Unconfined),
        text if is_absolute(text) => Ok(Seccomp::Profile(normal(text))),
        _ => Err(node.fault("\"default\", \"unconfined\" or the absolute path of a profile")),
    }
}

/// `SOURCE`, `SOURCE:TARGET`, `SOURCE:TARGET:ro` or `SOURCE:TARGET:rw`.
pub(super) fn bind(node: &Node<'_>) -> Result<Bind, Fault> {
    parse_bind(node.text()?).map_err(|expected| node.fault(expected))
}

/// Reads `/path`, `/path:/inside` or `/path:/inside:rw`.
///
/// # Errors
/// What was expected.
pub fn parse_bind(text: &str) -> Result<Bind, &'static str> {
    const EXPECTED: &str = "\"/path\", \"/path:/inside\" or \"/path:/inside:rw\", both absolute without \"..\"";
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, writable) = match *parts.as_slice() {
        [source] => (source, source, false),
        [source, target] | [source, target, "ro"] => (source, target, false),
        [source, target, "rw"] => (source, target, true),
        _ => return Err(EXPECTED),
    };
    if !is_absolute(source) || !is_absolute(target) {
        return Err(EXPECTED);
    }
    let bind = Bind { source: normal(source), target: normal(target), writable };
    if bind.target == Path::new("/") || KERNEL_TREES.iter().any(|tree| bind.target.starts_with(tree)) {
        return Err("a path inside other than / and what is in /proc, /sys and /dev");
    }
    if bind.source.file_name().is_some_and(|name| name == "docker.sock") {
        return Err("anything but the Docker socket: whoever has it is root on the host");
    }
    Ok(bind)
}

/// `NAME:TARGET`, `NAME:TARGET:rw` or `NAME:TARGET:ro`.
pub(super) fn volume(node: &Node<'_>) -> Result<VolumeMount, Fault> {
    const EXPECTED: &str = "\"name:/inside\" or \"name:/inside:ro\", the path absolute without \"..\"";
    let parts: Vec<&str> = node.text()?.split(':').collect();
    let (name, target, writable) = match *parts.as_slice() {
        [name, target] | [name, target, "rw"] => (name, target, true),
        [name, target, "ro"] => (name, target, false),
        _ => return Err(node.fault(EXPECTED)),
    };
    if name.starts_with('/') {
        return Err(node.fault("the name of a volume; a directory of the host goes into \"bind\""));
    }
    let name = VolumeName::parse(name).map_err(|error| node.fault(format!("a volume's name: {}", error.expected)))?;
    let target = if is_absolute(target) { normal(target) } else { return Err(node.fault(EXPECTED)) };
    let is_private = |tree: &&str| target.starts_with(tree);
    if target == Path::new("/") || KERNEL_TREES.iter().chain(&["/tmp", "/run/worker"]).any(is_private) {
        return Err(node.fault("a path inside other than / and what is in /proc, /sys, /dev, /tmp and /run/worker"));
    }
    Ok(VolumeMount { name, target, writable })
}

/// `tcp:ADDRESS:PORT` or `unix:/path`.
pub(super) fn listen(node: &Node<'_>) -> Result<Listen, Fault> {
    let text = node.text()?;
    let refuse = || node.fault("\"tcp:127.0.0.1:9000\" or \"unix:/run/name.sock\"");
    if let Some(address) = text.strip_prefix("tcp:") {
        let address: SocketAddr = address.parse().ok().ok_or_else(refuse)?;
        return if address.port() == 0 { Err(node.fault("a port from 1 to 65535")) } else { Ok(Listen::Tcp(address)) };
    }
    let path = text.strip_prefix("unix:").filter(|path| is_absolute(path)).ok_or_else(refuse)?;
    if path.len() > SOCKET_BYTES_MAX {
        return Err(node.fault(format!("a socket's path of at most {SOCKET_BYTES_MAX} bytes")));
    }
    Ok(Listen::Unix(normal(path)))
}

/// `tcp` or `http:/path`; `None` if it is neither.
pub(super) fn probe(text: &str) -> Option<Probe> {
    if text == "tcp" {
        return Some(Probe::Tcp);
    }
    if text == "grpc" {
        return Some(Probe::Grpc);
    }
    // The path goes into a request line: nothing in it may end the line or the word.
    let path =
        text.strip_prefix("http:").filter(|path| path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()));
    path.map(|path| Probe::Http { path: path.to_owned() })
}

pub(super) fn ready(node: &Node<'_>) -> Result<Ready, Fault> {
    let text = node.text()?;
    let file = text.strip_prefix("file:").map(|name| (name, Ready::File as fn(PathBuf) -> Ready));
    let port_file = text.strip_prefix("port-file:").map(|name| (name, Ready::PortFile as fn(PathBuf) -> Ready));
    if let Some((name, kind)) = file.or(port_file) {
        let inside = !name.is_empty()
            && name.len() <= 255
            && !name.chars().any(char::is_control)
            && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let refuse = || node.fault("\"file:NAME\" with a path below the worker's directory");
        return if inside { Ok(kind(normal(name))) } else { Err(refuse()) };
    }
    if let Some(probe) = probe(text) {
        return Ok(Ready::Probe(probe));
    }
    match text {
        "exec" => Ok(Ready::Exec),
        "notify" => Ok(Ready::Notify),
        "channel" => Ok(Ready::Channel),
        _ => {
            let near = super::keys::nearest(text, ["exec", "notify", "channel", "tcp", "grpc"]);
            Err(node.fault("exec, notify, channel, tcp, grpc, http:/path, file:NAME or port-file:NAME").suggest(near))
        }
    }
}
