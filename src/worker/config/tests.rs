//! Goal: a configuration is read right from every source, and a wrong one says all that is wrong
//! with it.

use super::*;
use crate::broker::{Declare, Owner};
use crate::identity::{OnMissingId, Scope, Source};
use crate::options::{OnConflict, OnDuplicate, OnExpired, OnUnroutable, QueueOptions, RetentionBy};
use crate::worker::deliver::{HttpHeaders, HttpUrl};

const REPOSITORY_FILE: &str = include_str!("../../../config.toml");

const QUEUE: &str = "[queues.orders]\ndeliver = { type = 'log' }\n";

struct Sources<'a> {
    file: &'a str,
    env: &'a [(&'a str, &'a str)],
    set: &'a [&'a str],
}

impl Sources<'_> {
    fn load(&self) -> Result<Config, ConfigErrors> {
        let env = self.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let set: Vec<String> = self.set.iter().map(|text| (*text).to_owned()).collect();
        Config::load(Some((Path::new("config.toml"), self.file)), env, &set)
    }
}

fn load(file: &str) -> Result<Config, ConfigErrors> {
    load_with(file, &[], &[])
}

fn load_with(file: &str, env: &[(&str, &str)], set: &[&str]) -> Result<Config, ConfigErrors> {
    Sources { file, env, set }.load()
}

fn errors(file: &str) -> String {
    load(file).unwrap_err().to_string()
}

#[test]
fn nothing_written_is_the_defaults() {
    let config = Config::load(None, [], &[]).unwrap();
    assert_eq!(config.broker.url.expose(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!(config.broker.heartbeat, Duration::from_secs(10));
    assert_eq!(config.store.path, Path::new("./onceward-data"));
    assert_eq!(config.http_listen.unwrap().to_string(), "127.0.0.1:9464");
    assert_eq!(config.drain, Duration::from_secs(30));
    assert_eq!(config.log.format, LogFormat::Auto);
    assert!(config.queues.is_empty());
    assert_eq!(
        config.require_queues().unwrap_err().to_string(),
        "queues: none; write a table such as [queues.orders] for each queue to consume"
    );
}

#[test]
fn a_queue_of_which_little_is_written_has_the_library_s_defaults() {
    let config = load(QUEUE).unwrap();
    let [queue] = &config.queues[..] else { panic!("one queue") };
    assert_eq!(format!("{:?}", queue.options), format!("{:?}", QueueOptions::new("orders")));
    assert!(config.require_queues().is_ok());
}

#[test]
fn every_key_of_a_queue_is_read() {
    let file = r#"
        [defaults]
        prefetch = 7
        retry = { max_attempts = 3, initial = "1s" }
        [queues.orders]
        queue = "orders.eu"
        declare = "quorum"
        owner = "shared"
        concurrency = 5
        timeout = "1m 30s"
        retention = "2d"
        on_missing_id = "fingerprint"
        on_conflict = "skip"
        on_expired = "dead-letter"
        on_duplicate = "replay"
        on_unroutable = "dead-letter"
        max_state = "1 MiB"
        max_result = "2 KiB"
        max_outgoing = "3 MiB"
        retention_by = { header = "x-type", values = { telemetry = "1h", billing = "90d" } }
        dead_letter = "graveyard"
        max_body = "2 MB"
        id = ["header:x-id", "json:/id"]
        key = ["routing-key"]
        scope = "header:tenant"
        [queues.orders.retry]
        max = "5s"
        factor = 3
        jitter = false
        [queues.orders.deliver]
        type = "http"
        url = "http://127.0.0.1:8080/hook"
    "#;
    let config = load(file).unwrap();
    let QueueConfig { name, options, .. } = &config.queues[0];
    assert_eq!((name.as_str(), options.queue.as_str()), ("orders", "orders.eu"));
    assert_eq!((options.declare, options.owner), (Declare::Quorum, Owner::Shared));
    assert_eq!((options.prefetch.get(), options.concurrency.get()), (7, 5));
    assert_eq!(options.timeout, Duration::from_secs(90));
    assert_eq!(options.retention, Duration::from_secs(2 * 86_400));
    assert_eq!(options.on_conflict, OnConflict::Skip);
    assert_eq!(options.on_expired, OnExpired::DeadLetter);
    assert_eq!(options.on_duplicate, OnDuplicate::Replay);
    assert_eq!(options.on_unroutable, OnUnroutable::DeadLetter);
    assert_eq!((options.state_bytes_max, options.result_bytes_max), (1 << 20, 2 << 10));
    assert_eq!(options.outgoing_bytes_max, 3 << 20);
    assert_eq!(
        options.retention_by,
        retention_by("x-type", &[("telemetry", 1), ("billing", 2160)])
    );
    assert_eq!(options.dead_letter, "graveyard");
    assert_eq!(options.body_bytes_max, 2_000_000);
    assert_eq!(options.identity.on_missing_id, OnMissingId::Fingerprint);
    assert_eq!(options.identity.id, [Source::Header("x-id".into()), Source::Json("/id".into())]);
    assert_eq!(options.identity.key, [Source::RoutingKey]);
    assert_eq!(options.identity.scope, Scope::Header("tenant".into()));
    let retry = &options.retry;
    assert_eq!((retry.max_attempts.get(), retry.factor, retry.jitter), (3, 3.0, false));
    assert_eq!((retry.initial, retry.max), (Duration::from_secs(1), Duration::from_secs(5)));
}

fn retention_by(header: &str, hours: &[(&str, u64)]) -> Option<RetentionBy> {
    let values = hours
        .iter()
        .map(|(value, hours)| ((*value).to_owned(), Duration::from_secs(hours * 3600)))
        .collect();
    Some(RetentionBy { header: header.to_owned(), values })
}

#[test]
fn a_queue_repeats_a_part_of_retention_by_or_does_without() {
    let defaults = "defaults.retention_by = { header = 'a', values = { x = '1h' } }";
    let of = |queue: &str| {
        let config = load(&format!("{defaults}\n{QUEUE}{queue}")).unwrap();
        config.queues[0].options.retention_by.clone()
    };
    assert_eq!(of(""), retention_by("a", &[("x", 1)]));
    assert_eq!(of("retention_by.header = 'b'"), retention_by("b", &[("x", 1)]));
    assert_eq!(of("retention_by.values.y = '2h'"), retention_by("a", &[("y", 2)]));
    assert_eq!(of("retention_by = { values = {} }"), None);
    assert_eq!(of("retention_by = { header = '' }"), None);
    assert_eq!(of("retention_by = { header = '', values = {} }"), None);
}

#[test]
fn what_is_wrong_with_classes_and_numbered_ids_is_said_at_once() {
    let file = r#"[defaults]
on_duplicate = "reply"
max_state = "17 MiB"
max_result = 5
max_outgoing = "0 B"
[queues.a]
retention_by = { header = "x-type", values = { telemetry = "1m", billing = 90 } }
id = ["message-id", { producer = "header", sequenc = "header:n" }, 5, "header:"]
deliver = { type = "log" }
[queues.b]
retention_by = { headr = "x", values = { a = "1h" } }
id = [{ producer = "header:p", sequence = "header:n" }]
on_duplicate = "replay"
key = [{ producer = "header:p", sequence = "header:n" }]
deliver = { type = "log" }
[queues.c]
retention_by.header = "x"
id = { producer = "header:p", sequence = "header:n" }
deliver = { type = "log" }
[queues.d]
retention_by = { header = "", values = { a = "1h" } }
id = [{ producer = "cloudevents", sequence = "routing-key" }, "routing-key"]
on_unroutable = "holt"
on_expired = "dead"
deliver = { type = "log" }
"#;
    let expected = r#"
config.toml:2: defaults.on_duplicate: "reply" is not known; did you mean "replay"?
config.toml:3: defaults.max_state: must be at most "16 MiB", found "17 MiB"
config.toml:4: defaults.max_result: 5 has no unit; write for example "4096 B", "512 KiB", "64 MiB", "10 GiB" or "1 MB"
config.toml:5: defaults.max_outgoing: must be at least "1 B", found "0 B"
config.toml:7: queues.a.retention_by.values.billing: 90 has no unit; write for example "150ms", "30s", "5m", "1h 30m" or "7d"
config.toml:7: queues.a.retention_by.values.telemetry: 1m is not longer than all attempts of one message can take, 8m 3s 500ms (10 times timeout 30s and waits of 3m 3s 500ms); lengthen retention or shorten retry
config.toml:8: queues.a.id: "header:" is not a source; write message-id, correlation-id, header:NAME, json:/pointer, cloudevents or routing-key
config.toml:8: queues.a.id: must be an array such as ["message-id"], found an integer in it
config.toml:8: queues.a.id[1].producer: "header" is not a source; write message-id, correlation-id, header:NAME, json:/pointer, cloudevents or routing-key
config.toml:8: queues.a.id[1].sequenc: unknown key; did you mean "sequence"?
config.toml:8: queues.a.id[1].sequence: missing; write for example sequence = "header:x-sequence"
config.toml:11: queues.b.retention_by.header: missing; write for example header = "x-type"
config.toml:11: queues.b.retention_by.headr: unknown key; did you mean "header"?
config.toml:13: queues.b.on_duplicate: "replay" needs a record of each message, and none is kept of those with the id { producer = "header:p", sequence = "header:n" }; take another id, or leave replay out
config.toml:13: queues.b.on_duplicate: only the target http has answers to replay
config.toml:14: queues.b.key: must be an array of strings such as ["message-id"], found a table in it
config.toml:17: queues.c.retention_by.values: missing; write for example values = { telemetry = "1h", billing = "90d" }
config.toml:18: queues.c.id: must be an array such as ["message-id"], found a table
config.toml:21: queues.d.retention_by.header: missing; write for example header = "x-type"
config.toml:22: queues.d.id: routing-key is for ordering keys: it tells no messages apart that are published alike
config.toml:22: queues.d.id: { producer = "cloudevents", sequence = "routing-key" } has cloudevents as its producer, which is an id of its own
config.toml:23: queues.d.on_unroutable: "holt" is not known; did you mean "hold"?
config.toml:24: queues.d.on_expired: "dead" is not known; write one of ["process", "dead-letter"]
"#;
    assert_eq!(errors(file), expected.trim());
}

#[test]
fn numbered_ids_are_read_wherever_they_are_written() {
    let header = |name: &str| Source::Header(name.to_owned()).into();
    let sequence = Source::Sequence { producer: header("p"), sequence: header("n") };
    let table = r#"{ producer = "header:p", sequence = "header:n" }"#;
    let written = load(&format!("{QUEUE}id = ['message-id', {table}]")).unwrap();
    assert_eq!(written.queues[0].options.identity.id, [Source::MessageId, sequence.clone()]);
    let env = [("ONCEWARD__DEFAULTS__ID", format!("[{table}]"))];
    let env = [(env[0].0, env[0].1.as_str())];
    let from_env = load_with(QUEUE, &env, &[]).unwrap();
    assert_eq!(from_env.queues[0].options.identity.id, [sequence]);
}

#[test]
fn every_target_is_read() {
    let file = r#"
        [queues.a]
        deliver = { type = "http", url = "http://localhost/x", headers = { X-Token = "t" } }
        [queues.b]
        deliver = { type = "command", argv = ["/bin/cat", "-n"] }
        [queues.c]
        deliver = { type = "exchange", exchange = "clean" }
        [queues.d]
        deliver = { type = "exchange", exchange = "", routing_key = "elsewhere" }
    "#;
    let config = load(file).unwrap();
    let targets: Vec<&TargetOptions> = config.queues.iter().map(|queue| &queue.deliver).collect();
    let [TargetOptions::Http(http), TargetOptions::Command(command), exchange, default_exchange] =
        targets[..]
    else {
        panic!("{targets:?}");
    };
    let mut headers = HttpHeaders::default();
    headers.add("x-token", "t").unwrap();
    let url = HttpUrl::parse("http://localhost/x").unwrap();
    assert_eq!(*http, HttpOptions { url, headers });
    let argv = ["/bin/cat", "-n"].map(str::to_owned).to_vec();
    assert_eq!(*command, CommandOptions::new(argv).unwrap());
    assert_eq!(command.output_bytes_max, 64 << 10);
    assert_eq!(exchange.to_string(), r#"exchange "clean""#);
    assert_eq!(default_exchange.to_string(), r#"exchange "", routing key "elsewhere""#);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_line_and_what_to_write() {
    let file = r#"[broker]
url = "amqp//guest:hunter2@host"
heartbeat = 10
[store]
cache = "64 M"
[defaults]
timeout = "10 sec"
on_conflict = "dead-leter"
retry = { max_atempts = 3, factor = 0.5 }
[queues.orders]
prefetchh = 100
prefetch = 0
id = ["mesage-id"]
max_body = "1 GiB"
[queues.bills]
queue = "orders"
dead_letter = "orders"
retention = "5m"
deliver = { type = "http", url = "https://host/?token=hunter2", verb = "PUT" }
[http]
listen = "0.0.0.0:9464"
[log]
level = "infoo"
[shutdwon]
drain = "30s"
"#;
    let expected = r#"
config.toml:2: broker.url: not a URL (relative URL without a base); write amqp://user:password@host:5672/%2f, with special characters as %XX
config.toml:3: broker.heartbeat: 10 has no unit; write for example "150ms", "30s", "5m", "1h 30m" or "7d"
config.toml:5: store.cache: "64 M" has the unknown unit "M"; write for example "4096 B", "512 KiB", "64 MiB", "10 GiB" or "1 MB"
config.toml:7: defaults.timeout: "10 sec" has the unknown unit "sec"; write for example "150ms", "30s", "5m", "1h 30m" or "7d"
config.toml:8: defaults.on_conflict: "dead-leter" is not known; did you mean "dead-letter"?
config.toml:9: defaults.retry.factor: must be a number, at least 1, found 0.5
config.toml:9: defaults.retry.max_atempts: unknown key; did you mean "max_attempts"?
config.toml:10: queues.orders.deliver: missing; write for example deliver = { type = "log" }, or type "http", "command" or "exchange"
config.toml:11: queues.orders.prefetchh: unknown key; did you mean "prefetch"?
config.toml:12: queues.orders.prefetch: must be a whole number from 1 to 65535, found 0 (it bounds the memory for bodies)
config.toml:13: queues.orders.id: "mesage-id" is not a source; write message-id, correlation-id, header:NAME, json:/pointer, cloudevents or routing-key
config.toml:14: queues.orders.max_body: must be at most "128 MiB", found "1 GiB"
config.toml:16: queues.bills.queue: queue "orders" is consumed by queues.orders too
config.toml:17: queues.bills.dead_letter: "orders" must not be the queue itself: its dead letters would be consumed again
config.toml:18: queues.bills.retention: 5m is not longer than all attempts of one message can take, 8m 3s 500ms (10 times timeout 30s and waits of 3m 3s 500ms); lengthen retention or shorten retry
config.toml:19: queues.bills.deliver.url: this binary is built without TLS; build it with --features tls, or write http://
config.toml:19: queues.bills.deliver.verb: unknown key; known here: type, url, headers
config.toml:21: http.listen: "0.0.0.0:9464" can be reached from other machines, and nothing there asks for a password; write "127.0.0.1:9464" and put a proxy before it
config.toml:23: log.level: "infoo" is no level; did you mean "info"?
config.toml:24: shutdwon: unknown key; did you mean "shutdown"?
"#;
    let found = errors(file);
    println!("{found}");
    if cfg!(not(feature = "tls")) {
        assert_eq!(found, expected.trim());
    }
    assert!(!found.contains("hunter2"));
}

#[test]
fn syntax_errors_have_line_and_column() {
    let found = errors("[broker]\nheartbeat = 10s\n\n[store\npath = 'x'\n");
    let lines: Vec<&str> = found.lines().collect();
    assert!(lines[0].starts_with("config.toml:2:"), "{found}");
    assert!(lines.iter().any(|line| line.starts_with("config.toml:4:")), "{found}");
    let twice = errors("[log]\nlevel = 'info'\nlevel = 'warn'\n");
    assert!(twice.starts_with("config.toml:3:1: duplicate key"), "{twice}");
}

#[test]
fn environment_wins_over_the_file_and_set_over_both() {
    let file = "[queues.Orders]\nprefetch = 1\ntimeout = '1s'\nconcurrency = 1\n\
        deliver = { type = 'http', url = 'http://a' }\n";
    let env = [
        ("ONCEWARD__QUEUES__ORDERS__PREFETCH", "2"),
        ("onceward__queues__orders__timeout", "2s"),
        ("ONCEWARD__DEFAULTS__RETRY__MAX_ATTEMPTS", "4"),
        ("ONCEWARD__QUEUES__BILLS", "{ deliver = { type = 'log' } }"),
        ("ONCEWARD__QUEUES__BILLS__QUEUE", "Bills.EU"),
        ("ONCEWARD_ID", "not ours"),
        ("PATH", "/bin"),
    ];
    let set = [
        "queues.Orders.timeout=3s",
        "queues.Orders.deliver = { type = 'log' }",
        "queues.\"a=b\".deliver.type=log",
        "http.listen=",
    ];
    let config = load_with(file, &env, &set).unwrap();
    let [orders, bills, third] = &config.queues[..] else { panic!("{config:?}") };
    assert_eq!(orders.name, "Orders");
    assert_eq!((orders.options.prefetch.get(), orders.options.concurrency.get()), (2, 1));
    assert_eq!(orders.options.timeout, Duration::from_secs(3));
    assert_eq!(orders.options.retry.max_attempts.get(), 4);
    assert!(matches!(orders.deliver, TargetOptions::Log));
    assert_eq!(third.options.queue, "a=b");
    assert_eq!((bills.name.as_str(), bills.options.queue.as_str()), ("bills", "Bills.EU"));
    assert_eq!(config.http_listen, None);
}

#[test]
fn errors_of_variables_and_arguments_name_them() {
    let env = [
        ("ONCEWARD__QUEUES__ORDERS__PREFETCH", "lots"),
        ("ONCEWARD__QUEUES__ORDERS__DEAD_LETTER", "12"),
        ("ONCEWARD__STOER__PATH", "x"),
    ];
    let set = ["queues.orders.timeout=30", "log.levle=warn"];
    assert_eq!(
        load_with(QUEUE, &env, &set).unwrap_err().to_string(),
        r#"
ONCEWARD__QUEUES__ORDERS__DEAD_LETTER: queues.orders.dead_letter: must be a string, found an integer; put it in double quotes
ONCEWARD__QUEUES__ORDERS__PREFETCH: queues.orders.prefetch: must be a whole number from 1 to 65535, found a string (it bounds the memory for bodies)
ONCEWARD__STOER__PATH: stoer: unknown key; did you mean "store"?
--set log.levle: log.levle: unknown key; did you mean "level"?
--set queues.orders.timeout: queues.orders.timeout: 30 has no unit; write for example "150ms", "30s", "5m", "1h 30m" or "7d"
"#
        .trim()
    );
    let env = [
        ("ONCEWARD__LOG__LEVEL", "info"),
        ("Onceward__Log__Level", "warn"),
        ("ONCEWARD__LOG____LEVEL", "x"),
    ];
    let set = ["hunter2", "log.level.x=1"];
    assert_eq!(
        load_with("log.level = 'info'", &env, &set).unwrap_err().to_string(),
        r#"
ONCEWARD__LOG____LEVEL: a key is empty; write for example ONCEWARD__QUEUES__ORDERS__PREFETCH
Onceward__Log__Level: the same variable as ONCEWARD__LOG__LEVEL; unset one of them
--set log.level.x: no key can be set in level, which is a string at ONCEWARD__LOG__LEVEL
--set number 1: not KEY=VALUE; write for example queues.orders.prefetch=100
"#
        .trim()
    );
}

#[test]
fn wrong_targets_say_what_they_need() {
    let target = |target: &str| errors(&format!("[queues.orders]\ndeliver = {target}"));
    let one = |text: &str| target(text).replace("config.toml:2: queues.orders.", "");
    assert_eq!(one("'log'"), "deliver: must be a table, found a string");
    assert!(one("{ }").starts_with("deliver.type: missing; write for example type = \"http\""));
    assert_eq!(
        one("{ type = 'htpt' }"),
        "deliver.type: \"htpt\" is not known; did you mean \"http\"?"
    );
    assert!(one("{ type = 'http' }").starts_with("deliver.url: missing; write for example url = "));
    assert!(one("{ type = 'command', argv = [] }").contains("names no program"));
    assert!(one("{ type = 'command', argv = '/bin/cat' }").contains("must be an array of strings"));
    assert!(
        one("{ type = 'exchange', exchange = '' }").contains("back to the queue they come from")
    );
    assert!(one("{ type = 'log', url = 'x' }").contains("url: unknown key"));
    let header = |name, value| {
        one(&format!("{{ type = 'http', url = 'http://a', headers = {{ {name} = {value} }} }}"))
    };
    assert_eq!(
        header("Idempotency-Key", "'hunter2'"),
        "deliver.headers.Idempotency-Key: set by onceward itself; remove it here"
    );
    assert_eq!(
        one("{ type = 'http', url = '/x', headers = { Host = 'a', x-a = 'a', X-A = 'b' } }"),
        "deliver.headers.Host: set by onceward itself; remove it here\n\
         deliver.headers.x-a: written twice: upper and lower case are one name\n\
         deliver.url: not a URL (relative URL without a base); \
         write for example http://127.0.0.1:8080/hook"
    );
    assert!(header("'a b'", "'hunter2'").contains("\"a b\": not the name of a HTTP header"));
    assert!(!header("authorization", "\"hunter2\\u0001\"").contains("hunter2"));
}

#[test]
fn rules_between_keys_hold_wherever_the_keys_are_written() {
    let with = |more: &str| errors(&format!("{more}\n{QUEUE}"));
    assert!(with("defaults.retention = '1m'").starts_with("config.toml:1: defaults.retention: 1m"));
    assert!(
        with("defaults.retry.max_attempts = 1_000_000").contains("defaults.retention: 7d is not")
    );
    assert!(with("defaults.dead_letter = 'orders'").contains("must not be the queue itself"));
    assert!(with("defaults.id = []").contains("every message would be dead-lettered"));
    assert!(with("defaults.id = ['routing-key']").contains("tells no messages apart"));
    assert!(with("defaults.timeout = '0s'").contains("must be from 1ms to 3650d, found 0s"));
    assert!(with("defaults.retention = '4000d'").contains("must be from 1ms to 3650d"));
    assert!(with("broker.heartbeat = '1500ms'").contains("must be whole seconds"));
    assert!(with("broker = 5").contains("broker: must be a table, found an integer"));
    let long = format!("[queues.{}]\ndeliver = {{ type = 'log' }}", "x".repeat(252));
    assert!(errors(&long).contains("dead_letter: its default has 257 bytes; AMQP allows 255"));
    assert!(errors("[queues.'']\ndeliver = { type = 'log' }").contains("queue: missing"));
}

#[test]
fn a_secret_file_wins_over_the_url() {
    let mut config = load("[broker]\nurl = 'memory:'\nurl_file = '/run/secrets/url'").unwrap();
    let mut asked = None;
    let read = |path: &Path| {
        asked = Some(path.to_owned());
        Ok("amqp://me:hunter2@mq/%2f\n".to_owned())
    };
    config.resolve_secrets(read).unwrap();
    assert_eq!(asked.as_deref(), Some(Path::new("/run/secrets/url")));
    assert_eq!(config.broker.url.expose(), "amqp://me:hunter2@mq/%2f");
    assert_eq!(config.broker.address(), "amqp://mq/%2f");
    assert!(!config.broker.is_memory());
}

#[test]
fn a_secret_file_that_cannot_be_used_is_an_error_at_its_key() {
    let resolve = |content: io::Result<String>| {
        let mut config = load("broker.url_file = 'secret'").unwrap();
        config.resolve_secrets(|_| content).unwrap_err().to_string()
    };
    assert_eq!(
        resolve(Err(io::ErrorKind::NotFound.into())),
        "config.toml:1: broker.url_file: secret: cannot be read: entity not found"
    );
    let wrong = resolve(Ok("hunter2".to_owned()));
    assert!(wrong.starts_with("config.toml:1: broker.url_file: secret: not a URL"), "{wrong}");
    assert!(!wrong.contains("hunter2"));
}

#[test]
fn debug_of_a_configuration_has_no_secrets() {
    let file = "broker.url = 'amqp://me:hunter2@mq/%2f'\n[queues.orders]\n\
        deliver = { type = 'http', url = 'http://a?t=hunter2', headers = { a = 'hunter2' } }";
    let config = load(file).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!config.queues[0].deliver.to_string().contains("hunter2"));
}

#[test]
fn the_file_of_the_repository_says_the_defaults() {
    let written = load(REPOSITORY_FILE).unwrap();
    let unwritten = load(&format!("{QUEUE}declare = 'classic'")).unwrap();
    let without_origin = |mut config: Config| {
        config.url_file = None;
        format!("{config:?} {} {:?}", config.broker.url.expose(), config.broker.address())
    };
    assert_eq!(without_origin(written), without_origin(unwritten));
}

#[test]
fn the_file_of_the_repository_has_every_key_and_a_comment_above_it() {
    let tables = [
        ("broker", "broker.zzzzzzzzzzzz"),
        ("store", "store.zzzzzzzzzzzz"),
        ("defaults", "defaults.zzzzzzzzzzzz"),
        ("defaults.retry", "defaults.retry.zzzzzzzzzzzz"),
        ("defaults.retention_by", "defaults.retention_by.zzzzzzzzzzzz"),
        ("queues.orders", "queues.orders.zzzzzzzzzzzz"),
        ("http", "http.zzzzzzzzzzzz"),
        ("shutdown", "shutdown.zzzzzzzzzzzz"),
        ("log", "log.zzzzzzzzzzzz"),
    ];
    for (table, unknown) in tables {
        let set = format!("{unknown}=1");
        let found = load_with(REPOSITORY_FILE, &[], &[&set]).unwrap_err().to_string();
        let (_, known) = found.split_once("known here: ").unwrap();
        for key in known.split(", ") {
            let pattern = format!("{key} = ");
            assert!(REPOSITORY_FILE.contains(&pattern), "{table}.{key} is not in config.toml");
        }
    }
    let lines: Vec<&str> = REPOSITORY_FILE.lines().collect();
    for pair in lines.windows(2) {
        let is_key = pair[1].starts_with(|c: char| c.is_ascii_lowercase());
        assert!(!is_key || pair[0].starts_with('#'), "no comment above {:?}", pair[1]);
    }
}

#[test]
fn the_commented_targets_of_the_repository_s_file_work() {
    let targets: Vec<&str> =
        REPOSITORY_FILE.lines().filter_map(|line| line.strip_prefix("# deliver = ")).collect();
    assert_eq!(targets.len(), 3);
    for target in targets {
        let set = format!("queues.orders.deliver={target}");
        if !target.contains("\"exchange\"") {
            load_with(REPOSITORY_FILE, &[], &[&set]).unwrap();
            continue;
        }
        let config = load_with(REPOSITORY_FILE, &[], &[&set]).unwrap();
        assert_eq!(
            config.queues[0].deliver.to_string(),
            r#"exchange "clean", routing key "orders""#
        );
    }
}

#[test]
fn the_commented_command_says_the_default_of_its_output() {
    let argv = "deliver = { type = 'command', argv = ['x'] }";
    let config = load(&format!("[queues.orders]\n{argv}")).unwrap();
    let TargetOptions::Command(command) = &config.queues[0].deliver else {
        panic!("{config:?}");
    };
    let written =
        format!("max_output = \"{}\"", units::format_size(command.output_bytes_max as u64));
    assert!(REPOSITORY_FILE.contains(&written), "{written}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reading_panic(
        file in "([\\[\\]{}=.,\"'#\\n a-c0-9é]|queues|deliver|type|retry|http|listen){0,40}",
        name in "(?i:onceward__)[A-Za-z_]{0,20}",
        set in "[\\[\\]{}=.,\"'# a-c0-9]{0,20}",
    ) {
        let _ = load_with(&file, &[(&name, &set)], &[&set]);
    }
}
