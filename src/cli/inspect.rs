//! `halsup inspect`: everything that is known of some workers.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::human;
use super::session::Named;
use super::table::pairs;
use crate::protocol::control::{DeathCertificate, InspectReply, Inspection, LimitInfo, Request, TargetRequest};
use crate::protocol::escape;

/// Show everything that is known of workers.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(value_name = "TARGET", value_parser = super::target)]
    pub(super) target: Named,
}

impl Inspect {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut all = InspectReply::default();
        let mut client = context.client()?;
        let request = Request::Inspect(TargetRequest { target: self.target.meant(&mut client)? });
        client.call_more(&request, |reply: InspectReply| {
            all.workers.extend(reply.workers);
            Ok(())
        })?;
        context.output.answer(&all, |all| all.workers.iter().map(render).collect::<Vec<_>>().join("\n"))
    }
}

/// One worker, a line for each fact, then its certificates.
pub(super) fn render(inspection: &Inspection) -> String {
    let worker = &inspection.worker;
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let none_if_empty = |text: String| (!text.is_empty()).then_some(text);
    let limits: Vec<_> = inspection.limits.iter().map(limit).collect();
    let mut text = pairs([
        ("name", Some(worker.name.clone())),
        (
            "state",
            Some(format!("{} since {} ({})", super::ps::state(worker), worker.since, human::age(worker.age_seconds))),
        ),
        ("status", worker.status_text.clone()),
        ("command", Some(inspection.command.join(" "))),
        ("generation", worker.generation.map(|generation| generation.to_string())),
        ("pid", number(worker.pid)),
        ("init pid", number(worker.init_pid)),
        ("uid", number(worker.uid)),
        ("port", worker.port.map(|port| port.to_string())),
        ("listen", none_if_empty(inspection.listen.join(", "))),
        ("identity", Some(inspection.identity.clone())),
        ("root", Some(inspection.root.clone())),
        ("net", Some(inspection.net.clone())),
        ("work dir", worker.work_dir.clone()),
        ("cgroup", worker.cgroup.clone()),
        ("ready by", Some(inspection.ready.clone())),
        ("heartbeat", inspection.heartbeat.clone()),
        ("missed", Some(worker.missed_heartbeats.to_string())),
        ("restarts", Some(worker.restarts.to_string())),
        ("limits", Some(if limits.is_empty() { "none".into() } else { limits.join(", ") })),
        ("enforced", Some(enforced(worker.limits_enforced, worker.limits_reason.as_deref()))),
        ("stdout", inspection.stdout_path.clone()),
        ("stderr", inspection.stderr_path.clone()),
    ]);
    for certificate in &inspection.certificates {
        text.push('\n');
        text.push_str(&render_certificate(certificate));
    }
    text
}

fn enforced(enforced: bool, reason: Option<&str>) -> String {
    if enforced { "yes".into() } else { format!("no: {}", reason.unwrap_or("the daemon does not say why")) }
}

fn limit(limit: &LimitInfo) -> String {
    let held = if limit.enforced { "" } else { " (not enforced)" };
    format!("{}={}{held}", limit.name, limit.value)
}

/// One death certificate, a line for each fact, then the last output.
fn render_certificate(certificate: &DeathCertificate) -> String {
    let usec = |usec: Option<u64>| usec.map(human::usec);
    let bytes = |bytes: Option<u64>| bytes.map(human::bytes);
    let count = |count: Option<u64>| count.filter(|count| *count > 0).map(|count| count.to_string());
    // The status says more than the cause where the cause is, say, a heartbeat.
    let status = certificate.status.filter(|status| *status != certificate.cause);
    let status = status.map_or_else(String::new, |status| format!(" ({status})"));
    let mut text = pairs([
        ("died", Some(format!("{}: {}{status}", certificate.ended, certificate.cause))),
        ("  generation", Some(certificate.generation.to_string())),
        ("  start", certificate.start_failure.as_ref().map(|failure| failure.text.clone())),
        ("  session", certificate.session.clone()),
        ("  asked by", certificate.asked_by.clone()),
        ("  note", certificate.note.clone()),
        ("  started", certificate.started.clone()),
        ("  user time", usec(certificate.user_usec)),
        ("  system time", usec(certificate.system_usec)),
        ("  max rss", bytes(certificate.max_rss_bytes)),
        ("  memory peak", bytes(certificate.memory_peak_bytes)),
        ("  oom kills", count(certificate.oom_kills)),
        ("  left over", count(certificate.leftover_processes)),
    ]);
    if !certificate.last_output.is_empty() {
        text.push_str("  last output:\n");
        for line in certificate.last_output.lines() {
            text.push_str(&format!("    {}\n", escape::line(line)));
        }
    }
    text
}
