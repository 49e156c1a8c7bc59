//! A public client, which knows nothing of halsup, learns the interface from the daemon and calls it: Python's `varlink`.

#![expect(clippy::disallowed_types, reason = "the client is a program of its own")]

use std::process::Command;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, worker};
use crate::needs::{needs, varlink_python};
use crate::place::run;

const CLIENT: &str = r#"
import sys
import varlink

with varlink.Client("unix:" + sys.argv[1]) as client:
    assert set(client.get_interfaces()) == {"org.varlink.service", "io.halsup.Control"}, client.get_interfaces()
    assert client.info["product"] == "halsup", client.info
    interface = client.get_interface("io.halsup.Control")
    for method in ["List", "Stop", "Events", "Inspect", "Scale", "Shutdown"]:
        assert method in interface.members, method
    with client.open("io.halsup.Control") as halsup:
        assert halsup.Ping() == {}, "Ping"
        workers = halsup.List()["workers"]
        assert [worker["name"] for worker in workers] == ["web.0", "web.1"], workers
        assert halsup.List(pool="web")["workers"][0]["pid"] > 1
        assert halsup.Stop(target="web.0") == {"achieved": 1, "wanted": 1, "failures": []}
        try:
            halsup.Stop(target="web.9")
            sys.exit("web.9 was stopped")
        except varlink.VarlinkError as error:
            assert error.error() == "io.halsup.Control.NotFound", error
            assert "web.9" in error.parameters()["what"], error
        try:
            halsup.Stop("not/a/target")
            sys.exit("a wrong target was taken")
        except varlink.InvalidParameter as error:
            assert error.parameters()["parameter"] == "target", error
        with client.open("io.halsup.Control") as other:
            for count, reply in enumerate(other.Events(last=0, follow=True, _more=True)):
                if any(event.get("worker") == "web.0" and event.get("state") == "healthy" for event in reply["events"]):
                    break
                if count == 0:
                    halsup.Start(target="web.0")
print("served", len(workers))
"#;

#[test]
fn the_varlink_package_of_python_introspects_and_calls() {
    needs!(Root, CgroupTree, VarlinkPython);
    let mut daemon = Daemon::start("[pool.web]\nsize = 2\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 2);
    let mut client = Command::new(varlink_python().expect("the need is met"));
    client.args(["-c", CLIENT]).arg(daemon.path("run/control.sock"));
    let output = daemon.place().run_bounded(&mut client);
    assert_eq!((output.status, output.stdout.as_str()), (0, "served 2\n"), "{}", output.stderr);
    assert_eq!(worker(&daemon, "web.0")["state"], "healthy");
    let cli = run(&mut daemon.place().command(&["inspect", "web.0", "--json"])).json();
    assert_eq!(cli["workers"][0]["certificates"][0]["cause"], "requested");
}
