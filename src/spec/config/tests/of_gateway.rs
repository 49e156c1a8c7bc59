//! `[gateway]`: HTTP for the world, and the service that it becomes.

use super::*;
use crate::spec::{GatewaySpec, Net, Root, Seccomp};

const POOL: &str = "[pool.web]\ncommand = [\"true\"]\n";

fn gateway(more: &str) -> GatewaySpec {
    parse(&format!("{POOL}[gateway]\n{more}")).gateway.unwrap()
}

/// The error of a table `[gateway]` in line 3 with `more` from line 4 on.
fn wrong(more: &str) -> String {
    errors(&format!("{POOL}[gateway]\n{more}"))
}

#[test]
fn printed_defaults_of_the_gateway_are_true() {
    let plain = gateway("");
    for key in gateway::KEYS.iter().filter(|key| !key.default.is_empty()) {
        assert_eq!(gateway(&format!("{} = {}", key.name, key.default)), plain, "{}", key.name);
    }
    assert_eq!(parse(POOL).gateway, None);
}

#[test]
fn a_pool_has_addresses_of_its_own_that_are_the_gateways_to_answer() {
    let config = |more: &str, gateway: &str| {
        format!("[pool.web]\ncommand = [\"true\"]\nbase_port = 9100\nserve = 'http'\n{more}\n{gateway}")
    };
    let told = parse(&config("http_listen = ['127.0.0.1:9000', '[::1]:9000']", "[gateway]"));
    let service = told.pools.iter().find(|pool| pool.name.as_str() == "gateway").unwrap();
    assert_eq!(service.listen.len(), 3);
    let doors: Vec<_> = service.command.iter().filter(|word| word.ends_with("=web")).collect();
    assert_eq!(doors, ["127.0.0.1:9000=web", "[::1]:9000=web"]);
    let without = parse(&config("", "[gateway]"));
    let pool = |config: &Config| config.pools.iter().find(|pool| pool.name.as_str() == "web").unwrap().clone();
    assert_eq!(pool(&told), pool(&without), "its workers are not concerned");
    for (more, gateway, expected) in [
        ("http_listen = ['127.0.0.1:9000']", "", "[gateway] to be written too"),
        ("http_listen = []", "[gateway]", "at least one address"),
        ("http_listen = ['127.0.0.1']", "[gateway]", "an address with a port"),
        ("http_listen = ['127.0.0.1:8000']", "[gateway]", "listens at the same place"),
        ("http_listen = ['127.0.0.1:9100']", "[gateway]", "port 9100 is one of the ports of web"),
        (
            "http_listen = ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:3', '127.0.0.1:4', '127.0.0.1:5']",
            "[gateway]",
            "at most 4",
        ),
    ] {
        let said = errors(&config(more, gateway));
        assert!(said.contains(expected), "{more}: {said}");
    }
}

#[test]
fn status_is_told_without_a_token_only_on_loopback_or_where_it_is_written() {
    for (keys, is_open) in [
        ("", true),
        ("listen = ['127.0.0.1:1', '[::1]:1']", true),
        ("listen = ['0.0.0.0:1']", false),
        ("listen = ['127.0.0.1:1', '192.0.2.1:1']", false),
        ("listen = ['[::]:1']", false),
        ("listen = ['0.0.0.0:1']\nopen_status = true", true),
        ("open_status = false", false),
    ] {
        assert_eq!(gateway(keys).open_status, is_open, "{keys}");
    }
}

#[test]
fn the_service_is_shut_in_whatever_is_written() {
    let config = parse(&format!("{POOL}[gateway]\nlisten = ['127.0.0.1:8000']\npool = 'web'\nworker_name = '{{x}}'\n"));
    let service = config.pools.iter().find(|pool| pool.name.as_str() == "gateway").unwrap();
    assert_eq!((&service.root, &service.net, &service.seccomp), (&Root::Empty, &Net::Own, &Seccomp::Gateway));
    assert!(service.service && service.binds.is_empty() && service.volumes.is_empty());
    assert!(service.command.contains(&"{{x}}".to_owned()), "what an operator writes is no template");
}

#[test]
fn mistakes_about_the_gateway_are_named_with_their_line() {
    for (text, expected) in [
        ("listne = []", "did you mean \"listen\"?"),
        ("listen = []", "at least one address"),
        ("listen = ['localhost:80']", "an address with a port"),
        ("listen = ['127.0.0.1:0']", "a port from 1 to 65535"),
        ("hosts = ['a b']", "a name such as halsup.example.org"),
        ("hosts = ['x:80']", "a name such as halsup.example.org"),
        ("pool = 'wbe'", "did you mean \"web\"?"),
        ("memory = '1k'", "memory"),
        ("worker_id = '-x'", "a name without control characters"),
    ] {
        let said = wrong(text);
        assert!(said.contains("line 4") && said.contains(expected), "{text}: {said}");
    }
    let clash = errors(&format!("{POOL}[service.gateway]\ncommand = ['x']\n[gateway]\n"));
    assert!(clash.contains("another pool or service has this name"), "{clash}");
}

#[test]
fn variables_of_the_front_fill_in_what_it_is_called() {
    let set = variables(&[("WORKER_ID", "w-9"), ("WORKER_NAME", "Nine")]);
    let config = parse_config("[gateway]\nworker_id = 'x'\n", &set).unwrap();
    assert_eq!(config.gateway.unwrap().worker, ("w-9".to_owned(), "Nine".to_owned()));
}
