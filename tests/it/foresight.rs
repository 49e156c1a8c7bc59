//! What is made for claims before anybody asks: it is used where it fits, and nowhere else.

use std::os::unix::fs::MetadataExt as _;

use crate::claims::{config, projects, report, warm};
use crate::fixture::Daemon;
use crate::needs::needs;

#[test]
fn what_was_made_for_one_owner_is_not_used_for_another() {
    needs!(Root, CgroupTree);
    let (_dir, root) = projects();
    let mut daemon = Daemon::start(&config(&root, ""));
    let script = "stat -c %u:%g . > report.tmp; id -u >> report.tmp; touch made; echo done >> report.tmp; \
        mv report.tmp report; sleep 1000";
    // Each claim finds what was made with the one before it in mind.
    for (number, (uid, gid)) in [(4711, 4711), (4711, 4711), (4712, 4711), (4711, 4712)].into_iter().enumerate() {
        warm(&mut daemon, 2);
        let project = root.join(number.to_string());
        std::fs::create_dir(&project).expect("make a project");
        std::os::unix::fs::chown(&project, Some(uid), Some(gid)).expect("give it to somebody");
        let (path, name) = (project.display().to_string(), format!("s{number}"));
        let claimed = daemon.cli(&["claim", "--project", &path, "--name", &name, "--", "sh", "-c", script]);
        assert_eq!(claimed.status, 0, "{}", claimed.stderr);
        let said = report(&mut daemon, &project.join("report"));
        let own = said.lines().nth(1).expect("its uid");
        assert_eq!(said, format!("{own}:{own}\n{own}\ndone\n"));
        let made = std::fs::metadata(project.join("made")).expect("what it made");
        assert_eq!((made.uid(), made.gid()), (uid, gid));
        assert_eq!(daemon.cli(&["release", &name]).status, 0);
    }
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_claimed_program_has_its_filter_once_and_its_init_the_same() {
    needs!(Root, CgroupTree);
    let profile = tempfile::NamedTempFile::new().expect("make a file");
    // Nothing that an init needs is certain to be in somebody's profile.
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ppoll","clone","recvmsg"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}"#;
    std::fs::write(profile.path(), json).expect("write the profile");
    let profile = profile.path().display().to_string();
    for (seccomp, of_init, of_program) in
        [("default", "2 1", "2 1"), ("unconfined", "0 0", "0 0"), (&*profile, "0 0", "2 1")]
    {
        let (_dir, root) = projects();
        let project = root.join("site");
        std::fs::create_dir(&project).expect("make a project");
        let mut daemon = Daemon::start(&config(&root, &format!("seccomp = '{seccomp}'")));
        warm(&mut daemon, 2);
        let path = project.display().to_string();
        let claimed = daemon.cli(&["claim", "--json", "--project", &path, "--name", "one", "--", "sleep", "1000"]);
        assert_eq!(claimed.status, 0, "{}", claimed.stderr);
        let worker = claimed.json()["worker"].as_str().expect("its worker").to_owned();
        let worker = crate::look::worker(&daemon, &worker);
        let state = |key: &str| {
            let pid = worker[key].as_u64().expect("a pid");
            let status = crate::hostile::proc_file(pid, "status");
            let value = |name: &str| {
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
            };
            format!("{} {}", value("Seccomp:"), value("Seccomp_filters:"))
        };
        assert_eq!((&*state("init_pid"), &*state("pid")), (of_init, of_program), "{seccomp}: {worker}");
        assert_eq!(daemon.stop(), 0);
    }
}
