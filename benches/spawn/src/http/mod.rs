//! HTTP: what the gateway does with requests for five real servers, beside one server alone and beside haproxy over the same
//! five; while nothing happens, while the servers are killed, and at the moment of a kill.
//!
//! The servers are this very program, run and started again by halsup, whoever asks them. wrk asks, slice by slice in turn, so
//! that whatever else the machine does meets all rows.

mod failover;
mod kills;
mod loads;
mod proxy;
mod server;
mod wrk;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use halsup::protocol::control::{ListRequest, Request};
use halsup::spec::PoolName;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use self::proxy::Proxy;
use crate::daemon::Daemon;
use crate::place::{INSIDE, Place, now, wait_until};
use crate::rows::Rows;
use crate::{Options, Result};

/// The servers.
const SERVERS: u16 = 5;
const POOL: &str = "fdo";
/// Callers at once.
const CALLERS: usize = 20;
/// How long a job takes.
const JOB_MS: u64 = 50;
/// Ports are taken from here on: below those that the kernel gives to outgoing connections, of which there are many.
const PORTS_FROM: u16 = 12_000;
const PORTS: u16 = 18_000;
/// Whoever is started answers within this time.
const PATIENCE: Duration = Duration::from_secs(30);
const GATEWAY: &str = "halsup-gateway";

/// Serves as one of the servers, if that is what the arguments say.
pub fn serve(arguments: &[String]) -> Option<Result<()>> {
    match arguments {
        [what, port] if what == "serve-http" => Some(server::serve(port)),
        _ => None,
    }
}

/// A daemon with a gateway before five servers, and whoever else is before them.
struct Scene<'p> {
    place: &'p Place,
    daemon: Daemon,
    /// Of the first server, and of the gateway behind those of the servers.
    first: u16,
    gateway: u16,
    proxy: Option<Proxy>,
}

impl Scene<'_> {
    /// Where jobs that take so many milliseconds are asked of the gateway.
    fn through_gateway(&self, ms: u64) -> String {
        format!("http://127.0.0.1:{}/w/{POOL}/{ms}", self.gateway)
    }

    /// The process of a server that is ready; `None` while it is not.
    fn server(&mut self, slot: u16) -> Result<Option<OwnedFd>> {
        let listed = self.listed()?;
        let one = listed.iter().find(|worker| worker["slot"] == slot && worker["state"] == "healthy");
        let pid = one.and_then(|worker| worker["pid"].as_i64()).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Ok(pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())).transpose()?)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = now() + u64::try_from(PATIENCE.as_nanos())?;
        while self.listed()?.iter().filter(|worker| worker["state"] == "healthy").count() < usize::from(SERVERS) {
            if now() > deadline {
                return Err(format!("the servers are not ready: {:?}", self.listed()?).into());
            }
            wait_until(now() + 5_000_000);
        }
        Ok(())
    }

    fn listed(&mut self) -> Result<Vec<Value>> {
        let request = Request::List(ListRequest { pool: Some(PoolName::parse(POOL)?) });
        let mut answer = self.daemon.call(&request)?;
        match answer.remove("workers") {
            Some(Value::Array(workers)) => Ok(workers),
            other => Err(format!("no list of workers: {other:?}").into()),
        }
    }
}

/// Kills one process at once, whoever it is by now.
fn kill(process: &OwnedFd) -> Result<()> {
    Ok(pidfd_send_signal(process, Signal::KILL)?)
}

pub fn run(options: &Options) -> Result<()> {
    wrk::find()?;
    let own = std::env::current_exe()?;
    if !own.with_file_name(GATEWAY).exists() {
        let target = own.ancestors().nth(2).ok_or("the bench lies nowhere")?;
        let build = format!("cargo build --release --bin {GATEWAY} --target-dir {}", target.display());
        return Err(format!("{GATEWAY} does not lie beside {}: {build}", own.display()).into());
    }
    let place = Place::make()?;
    let program = place.shared().join("server");
    fs::copy(&own, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let first = free_ports(SERVERS + 1 + proxy::PORTS)?;
    let gateway = first + SERVERS;
    let daemon = Daemon::start(&place, &config(&place, first, gateway))?;
    let mut scene = Scene { place: &place, daemon, first, gateway, proxy: None };
    let mut rows = Rows::new(options.json);
    let done = measure(&mut scene, options, &mut rows);
    let Scene { daemon, proxy, .. } = scene;
    drop(proxy);
    let ended = daemon.stop().map(|_| ());
    done.and(ended)
}

fn measure(scene: &mut Scene<'_>, options: &Options, rows: &mut Rows) -> Result<()> {
    scene.wait_ready()?;
    wait_listens(scene.gateway)?;
    scene.proxy = Proxy::start(scene.place, scene.first, scene.gateway + 1)?;
    if scene.proxy.is_none() && !options.json {
        println!("haproxy: left out, it is not installed");
    }
    loads::run(scene, options, rows)?;
    failover::run(scene, options, rows)?;
    kills::run(scene, options, rows)
}

/// As whoever has servers would write it; but they are killed again and again, and are not given up for that.
fn config(place: &Place, first: u16, gateway: u16) -> String {
    format!(
        "log_level = 'error'\n[gateway]\nlisten = ['127.0.0.1:{gateway}']\n\
         [pool.{POOL}]\nserve = 'http'\nopen = true\nsize = {SERVERS}\nbase_port = {first}\nready = 'http:/0'\n\
         bind = ['{}:{INSIDE}']\ncommand = ['{INSIDE}/server', 'serve-http', '{{port}}']\n\
         restart = {{ delay = '10ms', delay_max = '10ms', max_restarts = 10000 }}\n",
        place.shared().display()
    )
}

/// The first of so many ports in a row that nobody has.
fn free_ports(count: u16) -> Result<u16> {
    let begin = u16::try_from(std::process::id() % u32::from(PORTS))?;
    let firsts = (0..PORTS).step_by(usize::from(count)).map(|at| PORTS_FROM + (begin + at) % (PORTS - count));
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut free = firsts.filter(|&first| (first..first + count).all(is_free));
    Ok(free.next().ok_or("no ports in a row are free")?)
}

fn wait_listens(port: u16) -> Result<()> {
    let deadline = now() + u64::try_from(PATIENCE.as_nanos())?;
    while let Err(error) = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        if now() > deadline {
            return Err(format!("connect to port {port}: {error}").into());
        }
        wait_until(now() + 10_000_000);
    }
    Ok(())
}
