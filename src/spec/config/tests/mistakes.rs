//! The sentence that each mistake gets.

use super::*;

/// What a pool says more than its command, and the sentence of the mistake; in line 3 where no other is named.
const OF_A_POOL: &[(&str, &str)] = &[
    ("memroy = \"4g\"", r#"pool.web.memroy: unknown key; did you mean "memory"?"#),
    ("colour = 1", "pool.web.colour: unknown key"),
    ("size = \"3\"", r#"pool.web.size: found the string "3"; expected a whole number, 1 to 10000"#),
    ("size = 0", "pool.web.size: found the integer 0; expected a whole number, 1 to 10000"),
    ("size = 10001", "pool.web.size: found the integer 10001; expected a whole number, 1 to 10000"),
    ("size = -1", "pool.web.size: found the integer -1; expected a whole number, 1 to 10000"),
    (
        "size = 99999999999999999999",
        "pool.web.size: found the integer 99999999999999999999; expected a whole number, 1 to 10000",
    ),
    ("size = 1.0", "pool.web.size: found the number 1.0; expected a whole number, 1 to 10000"),
    ("min = 3\nmax = 2", "pool.web.min: min 3 is more than max 2"),
    ("min = 3", "pool.web.min: min is written without max; expected both, or size alone"),
    ("max = 3", "pool.web.max: max is written without min; expected both, or size alone"),
    (
        "size = 3\nmin = 1\nmax = 4",
        "pool.web.size: size is written beside min or max; expected size alone, or min and max",
    ),
    ("size = 3\npool_size = 3", r#"line 4: pool.web.pool_size: written twice: it means the same as "size""#),
    ("memory = true", r#"pool.web.memory: found true; expected a size such as "4g" or "512M", 1m to 1024t"#),
    (
        "memory = \"4x\"",
        r#"pool.web.memory: found the string "4x"; expected a size such as "4g" or "512M", 1m to 1024t"#,
    ),
    ("memory = 4", r#"pool.web.memory: found the integer 4; expected a size such as "4g" or "512M", 1m to 1024t"#),
    ("memory = \"1g\"\nmemory_high = \"2g\"", "line 4: pool.web.memory_high: more than memory, which is 1g"),
    ("memory_high = \"5g\"", "pool.web.memory_high: more than memory, which is 4g, the default"),
    (
        "cpus = 0.001",
        "pool.web.cpus: found the number 0.001; expected a number of processors from 0.01 to 1024, such as 2 or 0.5",
    ),
    (
        "cpuset = \"3-1\"",
        r#"pool.web.cpuset: found the string "3-1"; expected processors from 0 to 1023, such as 0-1,4"#,
    ),
    (
        "ready = \"chanel\"",
        r#"pool.web.ready: found the string "chanel"; expected exec, notify, channel, tcp, grpc, http:/path, file:NAME or port-file:NAME; did you mean "channel"?"#,
    ),
    (
        "ready_timeout = 30",
        r#"pool.web.ready_timeout: found the integer 30; expected a duration such as "30s" or "500ms", 10ms to 1day; did you mean "30s"?"#,
    ),
    (
        "ready_timeout_ms = \"30s\"",
        r#"pool.web.ready_timeout_ms: found the string "30s"; expected a whole number of the unit in the key's name"#,
    ),
    (
        "stop_signal = \"SIGTREM\"",
        r#"pool.web.stop_signal: found the string "SIGTREM"; expected a signal such as SIGTERM, or a number from 1 to 64"#,
    ),
    (
        "stop_signal = 65",
        "pool.web.stop_signal: found the integer 65; expected a signal such as SIGTERM, or a number from 1 to 64",
    ),
    (
        "identity = \"root\"",
        r#"pool.web.identity: found the string "root"; expected dynamic, mapped, host:NAME or unsafe-root"#,
    ),
    (
        "identity = \"host:0\"",
        r#"pool.web.identity: found the string "host:0"; expected a user other than root, or unsafe-root"#,
    ),
    (
        "root = \"srv\"",
        r#"pool.web.root: found the string "srv"; expected "host", the absolute path of a root directory, or "image:NAME""#,
    ),
    (
        "root = \"image:../x\"",
        r#"pool.web.root: found the string "image:../x"; expected "image:" and one such as alpine, alpine:3.20 or ghcr.io/owner/name:tag, in lower-case letters, digits and . _ -"#,
    ),
    ("image = \"alpine\"\nroot = \"host\"", "pool.web.image: image is written beside root; expected one of them"),
    (
        "root = \"/\"",
        r#"pool.web.root: found the string "/"; expected "host", the absolute path of a root directory, or "image:NAME""#,
    ),
    (
        "net = \"host\"",
        r#"pool.web.net: found the string "host"; expected "parent", "own" or the absolute path of a network namespace"#,
    ),
    (
        "link = [\"a\"]",
        r#"pool.web.link[0]: found the string "a"; expected an absolute path or glob pattern without "..""#,
    ),
    (
        "link = [\"/a/[\"]",
        r#"pool.web.link[0]: found the string "/a/["; expected an absolute path or glob pattern without "..""#,
    ),
    (
        "bind = [\"/a:/b/../c\"]",
        r#"pool.web.bind[0]: found the string "/a:/b/../c"; expected "/path", "/path:/inside" or "/path:/inside:rw", both absolute without "..""#,
    ),
    (
        "bind = [\"/a:/b:rx\"]",
        r#"pool.web.bind[0]: found the string "/a:/b:rx"; expected "/path", "/path:/inside" or "/path:/inside:rw", both absolute without "..""#,
    ),
    (
        "bind = [\"/a:/proc/x\"]",
        r#"pool.web.bind[0]: found the string "/a:/proc/x"; expected a path inside other than / and what is in /proc, /sys and /dev"#,
    ),
    (
        "bind = [\"/var/run/docker.sock\"]",
        r#"pool.web.bind[0]: found the string "/var/run/docker.sock"; expected anything but the Docker socket: whoever has it is root on the host"#,
    ),
    ("bind = [\"/a:/b\", \"/c:/b\"]", "pool.web.bind: two binds have one target"),
    ("volumes = [\"a:/b\", \"c:/b\"]", "pool.web.volumes: a volume's target is also that of another volume or bind"),
    (
        "volumes = [\"/srv:/b\"]",
        r#"pool.web.volumes[0]: found the string "/srv:/b"; expected the name of a volume; a directory of the host goes into "bind""#,
    ),
    (
        "volumes = [\"../x:/b\"]",
        r#"pool.web.volumes[0]: found the string "../x:/b"; expected a volume's name: a lower-case letter or a digit first"#,
    ),
    (
        "volumes = [\"a:/tmp/x\"]",
        r#"pool.web.volumes[0]: found the string "a:/tmp/x"; expected a path inside other than / and what is in /proc, /sys, /dev, /tmp and /run/worker"#,
    ),
    ("bind = [\"/run/halsup/x:/x\"]", "pool.web.bind: would show halsup's own /run/halsup inside"),
    ("bind = [\"/var:/x\"]", "pool.web.bind: would show halsup's own /var/lib/halsup inside"),
    ("base_port = 7_F\u{81}", r"pool.web.base_port: found the integer 7F\u{81}; expected a whole number, 1 to 65535"),
    ("base_port = 0", "pool.web.base_port: found the integer 0; expected a whole number, 1 to 65535"),
    ("base_port = 65535\nsize = 2", "pool.web.base_port: the ports of 2 workers from 65535 go beyond 65535"),
    ("ready = \"tcp\"", "pool.web.ready: a probe needs a port; expected base_port to be written too"),
    ("heartbeat.source = \"http:/\"", "pool.web.heartbeat: a probe needs a port; expected base_port to be written too"),
    ("env = { A = \"{port}\" }", "pool.web.env: {port} needs a port; expected base_port to be written too"),
    (
        "ready = \"http:x\"",
        r#"pool.web.ready: found the string "http:x"; expected exec, notify, channel, tcp, grpc, http:/path, file:NAME or port-file:NAME"#,
    ),
    (
        "ready = \"http:/a b\"",
        r#"pool.web.ready: found the string "http:/a b"; expected exec, notify, channel, tcp, grpc, http:/path, file:NAME or port-file:NAME"#,
    ),
    (
        "ready = \"file:../x\"",
        r#"pool.web.ready: found the string "file:../x"; expected "file:NAME" with a path below the worker's directory"#,
    ),
    (
        "ready = \"tcp\"\nbase_port = 1\nnet = \"own\"",
        r#"line 5: pool.web.net: a probe does not reach another network; expected net = "parent" with probes"#,
    ),
    (
        "ready = \"notify\"\nheartbeat.source = \"channel\"",
        "line 4: pool.web.heartbeat.source: the worker speaks sd_notify, by ready; expected notify, http:/path, tcp, grpc or none",
    ),
    (
        "ready = \"channel\"\nheartbeat.source = \"notify\"",
        "line 4: pool.web.heartbeat.source: the worker speaks on the channel, by ready; expected channel, http:/path, tcp, grpc or none",
    ),
    ("heartbeat = {}", "pool.web.heartbeat.source: missing; expected channel, notify, http:/path, tcp, grpc or none"),
    ("heartbeat = 3", "pool.web.heartbeat: found the integer 3; expected true, false or a table"),
    (
        "heartbeat.source = \"notfy\"",
        r#"pool.web.heartbeat.source: found the string "notfy"; expected channel, notify, http:/path, tcp, grpc or none; did you mean "notify"?"#,
    ),
    (
        "heartbeat.max_missed = 0",
        "pool.web.heartbeat.max_missed: found the integer 0; expected a whole number, 1 to 1000",
    ),
    ("heartbeat.intervall = 1", r#"pool.web.heartbeat.intervall: unknown key; did you mean "interval"?"#),
    ("restart = \"always\"", r#"pool.web.restart: found the string "always"; expected true, false or a table"#),
    ("restart = { delay = \"1m\" }", "pool.web.restart.delay: delay is more than delay_max"),
    (
        "restart = { jitter_percent = 101 }",
        "pool.web.restart.jitter_percent: found the integer 101; expected a whole number, 0 to 100",
    ),
    (
        "env = { \"A-B\" = \"\" }",
        "pool.web.env.A-B: not the name of a variable; expected letters, digits and '_', not a digit first",
    ),
    (
        "env = { \"1A\" = \"\" }",
        "pool.web.env.1A: not the name of a variable; expected letters, digits and '_', not a digit first",
    ),
    (
        "env = { NOTIFY_SOCKET = \"\" }",
        "pool.web.env.NOTIFY_SOCKET: reserved; expected another name than NOTIFY_SOCKET, LISTEN_*, WATCHDOG_*, HALSUP_* and LD_*",
    ),
    (
        "env = { LD_PRELOAD = \"\" }",
        "pool.web.env.LD_PRELOAD: reserved; expected another name than NOTIFY_SOCKET, LISTEN_*, WATCHDOG_*, HALSUP_* and LD_*",
    ),
    ("env = { A = 1 }", "pool.web.env.A: found the integer 1; expected a string"),
    ("env = { A = \"\\u0000\" }", r#"pool.web.env.A: found the string "\0"; expected text without NUL"#),
    (
        "env = { A = \"{prot}\" }",
        r#"pool.web.env.A: "{prot}" is no placeholder; expected {port}, {slot}, {worker}, {instance}, {dir}, or {{ and }} for literal braces; did you mean "{port}"?"#,
    ),
    (
        "rlimits = { files = 3 }",
        "pool.web.rlimits.files: unknown resource; expected as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, sigpending, stack",
    ),
    (
        "rlimits = { nofiles = 3 }",
        r#"pool.web.rlimits.nofiles: unknown resource; expected as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, sigpending, stack; did you mean "nofile"?"#,
    ),
    (
        "listen = [\"tcp:80\"]",
        r#"pool.web.listen[0]: found the string "tcp:80"; expected "tcp:127.0.0.1:9000" or "unix:/run/name.sock""#,
    ),
    (
        "listen = [\"unix:@x\"]",
        r#"pool.web.listen[0]: found the string "unix:@x"; expected "tcp:127.0.0.1:9000" or "unix:/run/name.sock""#,
    ),
    (
        "listen = [\"tcp:127.0.0.1:0\"]",
        r#"pool.web.listen[0]: found the string "tcp:127.0.0.1:0"; expected a port from 1 to 65535"#,
    ),
    ("listen = [\"tcp:[::1]:9\", \"tcp:[::1]:9\"]", "pool.web.listen: web listens at the same place"),
    ("listen = [\"tcp:127.0.0.1:9\"]\nbase_port = 9", "pool.web.listen: port 9 is one of the ports of web"),
    (
        "log = { max_size = 1 }",
        r#"pool.web.log.max_size: found the integer 1; expected a size such as "4g" or "512M", 64k to 1t"#,
    ),
    (
        "on_supervisor_death = \"never\"",
        r#"pool.web.on_supervisor_death: found the string "never"; expected a duration such as "30s" or "500ms", 0s to 1day"#,
    ),
    (
        "seccomp = \"none\"",
        r#"pool.web.seccomp: found the string "none"; expected "default", "unconfined" or the absolute path of a profile"#,
    ),
    ("oom_group = 1", "pool.web.oom_group: found the integer 1; expected true or false"),
    ("size = 1979-05-27", "pool.web.size: found a date; expected a whole number, 1 to 10000"),
];

#[test]
fn each_mistake_has_its_sentence() {
    for (more, sentence) in OF_A_POOL {
        let error = pool_error(more);
        let sentence =
            if sentence.starts_with("line") { (*sentence).to_owned() } else { format!("line 3: {sentence}") };
        assert_eq!(error, sentence, "{more}");
    }
}

#[test]
fn commands() {
    for (command, sentence) in [
        ("", "pool.web.command: missing; expected a list such as [\"python3\", \"-m\", \"http.server\", \"{port}\"]"),
        ("command = []", "pool.web.command: the command is empty; expected at least a program"),
        ("command = [\"\", \"a\"]", "pool.web.command: the command is empty; expected at least a program"),
        (
            "command = \"sleep 1\"",
            r#"pool.web.command: found the string "sleep 1"; expected a list of program and arguments, such as ["sleep", "1"]"#,
        ),
        ("command = [\"a\", 1]", "pool.web.command[1]: found the integer 1; expected a string"),
        ("command = [\"a\\u0000\"]", r#"pool.web.command[0]: found the string "a\0"; expected text without NUL"#),
        (
            "command = [\"a\", \"{port}\"]",
            "pool.web.command: {port} needs a port; expected base_port to be written too",
        ),
        (
            "command = [\"sh\", \"-c\", \"echo ${HOME}\"]",
            r#"pool.web.command[2]: "{HOME}" is no placeholder; expected {port}, {slot}, {worker}, {instance}, {dir}, or {{ and }} for literal braces"#,
        ),
    ] {
        let line = if command.is_empty() { 1 } else { 2 };
        assert_eq!(errors(&format!("[pool.web]\n{command}\n")), format!("line {line}: {sentence}"));
    }
    let many = format!("[pool.web]\ncommand = [{}]", "\"a\",".repeat(1025));
    assert_eq!(errors(&many), "line 2: pool.web.command: found 1025 items; expected at most 1024");
    let long = format!("[pool.web]\ncommand = [\"{}\"]", "a".repeat(40_000));
    assert_eq!(errors(&long), "line 2: pool.web.command[0]: text of 40000 bytes; expected at most 32768 bytes");
}

/// Files, and the sentence of the mistake.
const OF_A_FILE: &[(&str, &str)] = &[
    (
        "[pool.a]\ncommand = [\"x\"]\n[service.a]\ncommand = [\"x\"]",
        "line 3: service.a: another pool or service has this name",
    ),
    (
        "[service.a]\ncommand = [\"x\"]\nsize = 2",
        "line 3: service.a.size: a service has exactly one worker; expected [pool.NAME] for more",
    ),
    ("[pools.a]\ncommand = [\"x\"]", "line 1: pools: unknown key; did you mean \"pool\"?"),
    ("pool = 3", "line 1: pool: found the integer 3; expected a table"),
    ("[pool]\na = 3", "line 2: pool.a: found the integer 3; expected a table"),
    ("[[pool]]\na = 3", "line 1: pool: found a list; expected a table"),
    (
        "[pool.\"a/../b\"]\ncommand = [\"x\"]",
        "line 1: pool.\"a/../b\": not a name; expected only lower-case letters, digits and '-'",
    ),
    (
        "[pool.\"a\\n\\u001b\"]\ncommand = [\"x\"]",
        "line 1: pool.\"a\\n\\u{1b}\": not a name; expected only lower-case letters, digits and '-'",
    ),
    (
        "[daemon]\ninstance = \"A\"",
        "line 2: daemon.instance: found the string \"A\"; expected a lower-case letter or a digit first",
    ),
    (
        "[daemon]\nruntime_dir = \"run\"",
        "line 2: daemon.runtime_dir: found the string \"run\"; expected an absolute path without \"..\"",
    ),
    (
        "[daemon]\nlimits = \"reqire\"",
        "line 2: daemon.limits: found the string \"reqire\"; expected auto, require; did you mean \"require\"?",
    ),
    (
        "[daemon]\nlog_level = \"loud\"",
        "line 2: daemon.log_level: found the string \"loud\"; expected off, error, warn, info, debug or trace, or one of them for a category (pool, worker, heartbeat, dispatch, control, spawn, log) as in \"info,heartbeat=debug\"",
    ),
    (
        "[daemon]\nroles = [{ role = \"admin\" }]",
        "line 2: daemon.roles[0]: neither uid nor gid is written; expected one of them",
    ),
    (
        "[daemon]\nroles = [{ uid = 1, gid = 1, role = \"admin\" }]",
        "line 2: daemon.roles[0]: both uid and gid are written; expected one of them",
    ),
    ("[daemon]\nroles = [{ uid = 1 }]", "line 2: daemon.roles[0]: role is missing; expected observe, operate or admin"),
    (
        "[daemon]\nroles = [{ uid = 4294967296, role = \"admin\" }]",
        "line 2: daemon.roles[0].uid: found the integer 4294967296; expected a whole number, 0 to 2147483647",
    ),
    (
        "[daemon]\nroles = [\n{ uid = 1, role = \"admin\", pool = \"wbe\" }]\n[pool.web]\ncommand = [\"x\"]",
        "line 3: daemon.roles[0].pool: no pool or service is named \"wbe\"; did you mean \"web\"?",
    ),
];

#[test]
fn mistakes_of_the_whole() {
    for (text, sentence) in OF_A_FILE {
        assert_eq!(errors(text), *sentence);
    }
    let two = |a: &str, b: &str| errors(&format!("[pool.a]\ncommand = [\"x\"]\n{a}\n[pool.b]\ncommand = [\"x\"]\n{b}"));
    for (error, sentence) in [
        (
            two("base_port = 100\nsize = 3", "base_port = 102"),
            "line 7: pool.b.base_port: ports 102 to 102 overlap ports 100 to 102 of a",
        ),
        (
            two("size = 9000", "size = 9000"),
            "line 6: pool.b.size: with this pool there are 18000 workers; expected at most 10000 in all pools together",
        ),
        (
            two("listen = [\"unix:/run/x\"]", "listen = [\"unix:/run/x\"]"),
            "line 6: pool.b.listen: a listens at the same place",
        ),
        (
            two("base_port = 100", "listen = [\"tcp:127.0.0.1:100\"]"),
            "line 6: pool.b.listen: port 100 is one of the ports of a",
        ),
    ] {
        assert_eq!(error, sentence);
    }
    let distinct = two("base_port = 100\nsize = 2", "base_port = 102");
    assert!(distinct.starts_with("no error"), "{distinct}");
    let apart = two("base_port = 100\nnet = \"own\"", "base_port = 100\nnet = \"own\"");
    assert!(apart.starts_with("no error"), "{apart}");
    let many: String = (0..257).map(|n| format!("[pool.p{n}]\ncommand = [\"x\"]\n")).collect();
    assert!(errors(&many).contains("257 pools and services; expected at most 256"));
}

#[test]
fn texts_that_are_no_toml() {
    for (text, line) in [
        ("[pool.web]\ncommand = [\"x\"\nsize = 1", 3),
        ("[pool.web]\nsize = 1\nsize = 2", 3),
        ("[pool.web]\n[pool.web]", 2),
        ("a = 'x", 1),
        ("= 1", 1),
    ] {
        let error = parse_config(text, &no_variables()).unwrap_err();
        assert_eq!(error.errors().first().and_then(|error| error.line), Some(line), "{text}\n{error}");
    }
    for (text, sentence) in [
        ("[pool.web]\nsize = 1\nsize = 2", "line 3: duplicate key, at \"size\""),
        ("size = 4g", "line 1: string values must be quoted, at \"4g\"; expected literal string"),
        (
            "a = 'x\nb = y",
            "line 1: invalid literal string; expected `'`\nline 2: string values must be quoted, at \"y\"; expected literal string",
        ),
        ("a = [[[", "line 1: unclosed array; expected `]`"),
        ("\u{1b}[31m = 1", "line 1: invalid unquoted key, at \"\\u{1b}\"; expected letters, numbers, `-`, `_`"),
    ] {
        assert_eq!(errors(text), sentence);
    }
}

#[test]
fn all_mistakes_are_said_at_once_in_the_order_of_the_file() {
    let text = "[pool.web]\nsize = 0\nmemroy = 1\n[pool.b]\ncpus = -1\n[daemon]\nlimits = 1\n";
    let lines: Vec<_> =
        parse_config(text, &no_variables()).unwrap_err().errors().iter().map(|error| error.line).collect();
    assert_eq!(lines, [Some(2), Some(3), Some(5), Some(7)]);
    let many: String = (0..100).map(|n| format!("key{n} = 1\n")).collect();
    let errors = parse_config(&format!("[pool.web]\n{many}"), &no_variables()).unwrap_err();
    assert_eq!(errors.errors().len(), CONFIG_ERRORS_MAX);
}

#[test]
fn large_and_deep_texts_are_refused_quickly() {
    let long = format!("# {}", "x".repeat(CONFIG_BYTES_MAX));
    assert!(errors(&long).contains("expected at most 1048576"));
    for text in [
        format!("a = {}", "[".repeat(200_000)),
        format!("a = {}", "{a=".repeat(200_000)),
        format!("[{}a]", "a.".repeat(200_000)),
        format!("{}a = 1", "a.".repeat(200_000)),
        format!("a = {}{}", "[".repeat(200_000), "]".repeat(200_000)),
        "[a]\n".repeat(200_000),
        "[[a]]\n".repeat(100_000),
        (0..60_000).map(|n| format!("k{n} = 1\n")).collect(),
        format!(
            "[pool.web]\ncommand = [\"x\"]\nenv = {{ {} }}",
            (0..60_000).map(|n| format!("k{n}='',")).collect::<String>()
        ),
        format!("{} = 1", "k".repeat(1_000_000)),
        format!("[pool.web]\nsize = \"{}\"", "k".repeat(1_000_000)),
        format!("[pool.web]\nsize = {}", "1".repeat(1_000_000)),
    ] {
        let errors = parse_config(&text, &no_variables()).unwrap_err();
        assert!(errors.to_string().len() < 20_000);
    }
}
