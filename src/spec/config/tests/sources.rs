//! What comes from the environment and the command line, and which of them wins.

use super::*;

#[test]
fn variables_of_the_daemon_override_the_file() {
    let environment = variables(&[
        ("HALSUP_INSTANCE", "green"),
        ("HALSUP_STATE_DIR", "/srv/state"),
        ("HALSUP_CGROUP", "workers.service"),
        ("HALSUP_LIMITS", "require"),
        ("HALSUP_LOG_LEVEL", "debug"),
        ("HALSUP_LOG_FORMAT", ""),
        ("HALSUP_OTHER", "x"),
    ]);
    let daemon = parse_config("[daemon]\ninstance = \"blue\"\nlog_format = \"json\"", &environment).unwrap().daemon;
    assert_eq!(daemon.instance.as_str(), "green");
    assert_eq!(daemon.runtime_dir, std::path::Path::new("/run/halsup-green"));
    assert_eq!(daemon.state_dir, std::path::Path::new("/srv/state"));
    assert_eq!(daemon.cgroup.as_deref(), Some(std::path::Path::new("workers.service")));
    assert_eq!((daemon.limits, daemon.log_level.as_str()), (LimitsMode::Require, "debug"));
    assert_eq!(daemon.log_format, crate::spec::LogFormat::Json, "an empty variable says nothing");
    for outside in ["..", "a/../b", "/", "//a", "./a", "a/"] {
        let wrong = parse_config("", &variables(&[("HALSUP_CGROUP", outside)])).unwrap_err().to_string();
        assert!(wrong.contains("expected the path of a cgroup"), "{outside}: {wrong}");
    }
    let wrong = parse_config("", &variables(&[("HALSUP_LIMITS", "yes")])).unwrap_err().to_string();
    assert_eq!(wrong, r#"HALSUP_LIMITS: found "yes"; expected auto, require"#);
}

#[test]
fn variables_of_pools_fill_in() {
    let environment = variables(&[("WORKER_MEMORY", "1g"), ("WORKER_CPUS", "0.5"), ("WORKER_PIDS_LIMIT", "64")]);
    let text = "[pool.a]\ncommand = [\"x\"]\n[pool.b]\ncommand = [\"x\"]\nmemory = \"2g\"";
    let pools = parse_config(text, &environment).unwrap().pools;
    let memory: Vec<_> = pools.iter().map(|pool| pool.limits.memory_bytes).collect();
    assert_eq!(memory, [asked(1 << 30), asked(2 << 30)]);
    assert!(pools.iter().all(|pool| pool.limits.cpu_millis == asked(500) && pool.limits.pids == asked(64)));
    let wrong = parse_config(text, &variables(&[("WORKER_MEMORY", "lots")])).unwrap_err().to_string();
    assert_eq!(wrong, r#"WORKER_MEMORY: found "lots"; expected a size such as "4g" or "512M", 1m to 1024t"#);
}

#[test]
fn the_image_of_workers_comes_from_the_environment_where_nothing_else_says_what_is_their_root() {
    let text = "[service.db]\ncommand = [\"x\"]\n[pool.a]\ncommand = [\"x\"]\n[pool.b]\ncommand = [\"x\"]\nroot = \"host\"\n\
                [pool.c]\ncommand = [\"x\"]\nimage = \"mine\"";
    let pools =
        parse_config(text, &variables(&[("WORKER_IMAGE", "ghcr.io/hellblazer/hal-9000:worker")])).unwrap().pools;
    let image = |name: &str| Root::Image(crate::spec::ImageName::parse(name).unwrap());
    let roots: Vec<_> = pools.into_iter().map(|pool| pool.root).collect();
    assert_eq!(roots, [Root::Host, image("ghcr.io/hellblazer/hal-9000:worker"), Root::Host, image("mine")]);
    let wrong = parse_config(text, &variables(&[("WORKER_IMAGE", "A b")])).unwrap_err().to_string();
    assert!(wrong.starts_with("WORKER_IMAGE: found \"A b\"; expected one such as alpine"), "{wrong}");
}

#[test]
fn pulling_is_said_by_two_words_and_an_image_is_a_root_only_if_it_is_listed() {
    use crate::spec::ImagePull::{First, Lazily, Never};
    for (said, expected) in [
        (&[][..], First),
        (&[("SKIP_IMAGE_PULL", "false")], First),
        (&[("LAZY_IMAGE_PULL", "true")], Lazily),
        (&[("LAZY_IMAGE_PULL", "true"), ("SKIP_IMAGE_PULL", "true")], Never),
    ] {
        assert_eq!(parse_config("", &variables(said)).unwrap().daemon.image_pull, expected, "{said:?}");
    }
    let text = "[daemon]\nimage_allow = [\"a/b:1\", \"c\"]\n[pool.web]\ncommand = [\"x\"]\nimage = ";
    assert!(parse_config(&format!("{text}\"c:latest\""), &no_variables()).is_ok());
    let wrong = errors(&format!("{text}\"evil\""));
    assert!(
        wrong.contains("Security violation: image 'evil:latest' not in allowlist; `image_allow` has a/b:1, c:latest"),
        "{wrong}"
    );
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_command_line_is_as_good_as_a_file() {
    let text = "[pool.web]\nsize = 3\ncommand = [\"serve\", \"{port}\"]\nmemory = \"1g\"\ncpus = 0.5\npids = 20\nbase_port = 8001\nready = \"tcp\"\nroot = \"/srv/r\"\nnet = \"parent\"\nidentity = \"mapped\"\nenv = { A = \"b=c\" }\nlink = [\"/srv/*\"]";
    let text_of = |value: &str| Some(value.to_owned());
    let overrides = PoolOverrides {
        memory: text_of("1g"),
        cpus: text_of("0.5"),
        pids: text_of("20"),
        base_port: text_of("8001"),
        ready: text_of("tcp"),
        root: text_of("/srv/r"),
        net: text_of("parent"),
        identity: text_of("mapped"),
        env: words(&["A=x", "A=b=c"]),
        link: words(&["/srv/*"]),
    };
    let name = PoolName::parse("web").unwrap();
    let spec = pool_from_command(name, 3, &words(&["serve", "{port}"]), &overrides, &no_variables());
    assert_eq!(spec, Ok(parse(text).pools.remove(0)));
}

#[test]
fn options_override_variables() {
    let environment = variables(&[("WORKER_MEMORY", "1g"), ("WORKER_CPUS", "1")]);
    let overrides = PoolOverrides { memory: Some("2g".to_owned()), ..PoolOverrides::default() };
    let name = PoolName::parse("web").unwrap();
    let limits = pool_from_command(name, 1, &words(&["x"]), &overrides, &environment).unwrap().limits;
    assert_eq!((limits.memory_bytes, limits.cpu_millis), (asked(2 << 30), asked(1000)));
    assert_eq!(limits.pids, Some(Limit { value: 100, asked: false }));
}

#[test]
fn mistakes_on_the_command_line_name_the_option() {
    let text_of = |value: &str| Some(value.to_owned());
    let wrong = |size, command: &[&str], overrides| {
        let name = PoolName::parse("web").unwrap();
        pool_from_command(name, size, &words(command), &overrides, &no_variables()).unwrap_err().to_string()
    };
    let none = PoolOverrides::default;
    for (error, sentence) in [
        (wrong(0, &["x"], none()), "--size: found \"0\"; expected a whole number, 1 to 10000"),
        (wrong(1, &[], none()), "command: the command is empty; expected at least a program"),
        (wrong(1, &["x", "{port}"], none()), "command: {port} needs a port; expected base_port to be written too"),
        (wrong(1, &["x", "\0"], none()), r#"command[1]: found "\0"; expected text without NUL"#),
        (
            wrong(1, &["x"], PoolOverrides { cpus: text_of("many"), ..none() }),
            "--cpus: found \"many\"; expected a number of processors from 0.01 to 1024, such as 2 or 0.5",
        ),
        (
            wrong(1, &["x"], PoolOverrides { base_port: text_of("70000"), ..none() }),
            "--base-port: found \"70000\"; expected a whole number, 1 to 65535",
        ),
        (
            wrong(1, &["x"], PoolOverrides { env: words(&["A"]), ..none() }),
            "--env: not an assignment; expected NAME=VALUE",
        ),
        (
            wrong(1, &["x"], PoolOverrides { env: words(&["LD_X=1"]), ..none() }),
            "--env.LD_X: reserved; expected another name than NOTIFY_SOCKET, LISTEN_*, WATCHDOG_*, HALSUP_* and LD_*",
        ),
        (
            wrong(1, &["x"], PoolOverrides { link: words(&["x"]), ..none() }),
            "--link: found \"x\"; expected an absolute path or glob pattern without \"..\"",
        ),
        (
            wrong(1, &["x"], PoolOverrides { ready: text_of("tcp"), ..none() }),
            "--ready: a probe needs a port; expected base_port to be written too",
        ),
    ] {
        assert_eq!(error, sentence);
    }
}

#[test]
fn pools_from_different_places_are_checked_together() {
    let config = parse("[pool.web]\ncommand = [\"x\"]\nbase_port = 80");
    let mut pools = config.pools.clone();
    assert_eq!(check_pools(&config.daemon, &pools), Ok(()));
    pools.extend(config.pools);
    let error = check_pools(&config.daemon, &pools).unwrap_err().to_string();
    assert_eq!(
        error,
        "pool.web: another pool or service has this name\npool.web.base_port: ports 80 to 80 overlap ports 80 to 80 of web"
    );
}

#[test]
fn the_service_chromadb_needs_no_command_and_its_variables_fill_in() {
    let service = |text: &str, set: &[(&str, &str)]| parse_config(text, &variables(set)).map(|mut c| c.pools.remove(0));
    let plain = service("[service.chromadb]", &[]).unwrap();
    let told =
        ["/opt/chromadb/bin/chroma", "run", "--host", "127.0.0.1", "--port", "{port}", "--path", "/data/chromadb"];
    assert_eq!((plain.command.as_slice(), plain.base_port), (&told.map(str::to_owned)[..], Some(8000)));
    let probe = Probe::Http { path: "/api/v2/heartbeat".to_owned() };
    assert_eq!((&plain.ready, plain.heartbeat_probe.as_ref()), (&Ready::Probe(probe.clone()), Some(&probe)));
    assert_eq!(plain.policy.heartbeat.map(|beat| beat.interval), Some(Duration::from_secs(5)));
    assert_eq!(plain.policy.startup.ready_timeout, Duration::from_secs(30));
    let name = VolumeName::parse("hal9000-chromadb").unwrap();
    let volume = |target: &str| VolumeMount { name: name.clone(), target: target.into(), writable: true };
    assert_eq!(plain.volumes, [volume("/data/chromadb")]);

    let set = [("CHROMADB_HOST", "0.0.0.0"), ("CHROMADB_PORT", "8080"), ("CHROMADB_DATA_DIR", "/srv/{x}/")];
    let filled = service("[service.chromadb]", &set).unwrap();
    assert_eq!(
        filled.command[2..],
        ["--host", "0.0.0.0", "--port", "{port}", "--path", "/srv/{{x}}"].map(str::to_owned)
    );
    assert_eq!((filled.base_port, filled.volumes), (Some(8080), vec![volume("/srv/{x}")]));

    let written = "[service.chromadb]\nbase_port = 9\nready = 'tcp'\nheartbeat = false\nvolumes = ['mine:/data/chromadb']\n\
                   env = { HOME = '/data/chromadb', A = 'b' }\nready_timeout = '2m'";
    let written = service(written, &set[1..2]).unwrap();
    assert_eq!((written.base_port, &written.ready), (Some(9), &Ready::Probe(Probe::Tcp)));
    assert_eq!((written.policy.heartbeat, written.volumes[0].name.as_str()), (None, "mine"));
    assert_eq!(written.policy.startup.ready_timeout, Duration::from_secs(120));
    let env: Vec<_> = written.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [("A", "b"), ("ANONYMIZED_TELEMETRY", "False"), ("HOME", "/data/chromadb"), ("NO_COLOR", "1")];
    assert_eq!(env, expected);

    let bound = service("[service.chromadb]\nbind = ['/srv/chroma:/data:rw']", &[]).unwrap();
    assert!(bound.volumes.is_empty(), "a bind is there already: {:?}", bound.volumes);
    let own = service("[service.chromadb]\ncommand = ['x']", &set).unwrap();
    assert_eq!((own.base_port, own.volumes.len(), own.ready), (None, 0, Ready::Exec), "a command of its own is all");
}

#[test]
fn variables_of_chromadb_that_cannot_be_are_said() {
    let wrong = |text: &str, name, value| parse_config(text, &variables(&[(name, value)])).unwrap_err().to_string();
    for (name, value, expected) in [
        ("CHROMADB_PORT", "http", "CHROMADB_PORT: found \"http\"; expected a whole number, 1 to 65535"),
        (
            "CHROMADB_HOST",
            "any",
            "CHROMADB_HOST: found \"any\"; expected an address such as 127.0.0.1 or 0.0.0.0, or localhost",
        ),
        (
            "CHROMADB_HOST",
            "10.0.0.1",
            "CHROMADB_HOST: found \"10.0.0.1\"; expected 127.0.0.1, 0.0.0.0 or ::, because `ready` asks 127.0.0.1",
        ),
        ("CHROMADB_DATA_DIR", "data", "CHROMADB_DATA_DIR: found \"data\"; expected an absolute path without \"..\""),
    ] {
        assert_eq!(wrong("[service.chromadb]", name, value), expected);
    }
    assert!(wrong("[service.chromadb]", "CHROMADB_DATA_DIR", "/proc/x").starts_with("CHROMADB_DATA_DIR: found"));
    let elsewhere = [("CHROMADB_HOST", "10.0.0.1")];
    let unasked = "[service.chromadb]\nready = 'exec'";
    assert!(parse_config(unasked, &variables(&elsewhere)).is_ok(), "nobody asks it at 127.0.0.1");
    let clash = errors("[pool.web]\ncommand = ['x']\nbase_port = 8000\n[service.chromadb]");
    assert_eq!(clash, "line 4: service.chromadb.base_port: ports 8000 to 8000 overlap ports 8000 to 8000 of web");
}
