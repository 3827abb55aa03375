//! Goal: a configuration is read right from every source, and a wrong one says all that is wrong
//! with it.

use super::*;
use crate::StoreKey;
use crate::broker::{Declare, Owner};
use crate::identity::{OnMissingId, Scope, Source};
use crate::options::{OnConflict, OnDuplicate, OnExpired, OnUnroutable, QueueOptions, RetentionBy};
use crate::worker::deliver::{HttpHeaders, HttpUrl};

mod fuzz;
mod repository;
mod wrong;

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
fn a_secret_file_wins_over_the_url() {
    let mut config = load("[broker]\nurl = 'memory:'\nurl_file = '/run/secrets/url'").unwrap();
    let mut asked = None;
    let read = |path: &Path| {
        asked = Some(path.to_owned());
        Ok(contents("amqp://me:hunter2@mq/%2f\n", 0o600))
    };
    config.resolve_secrets(read).unwrap();
    assert_eq!(asked.as_deref(), Some(Path::new("/run/secrets/url")));
    assert_eq!(config.broker.url.expose(), "amqp://me:hunter2@mq/%2f");
    assert_eq!(config.broker.address(), "amqp://mq/%2f");
    assert!(!config.broker.is_memory());
}

#[test]
fn a_secret_file_that_cannot_be_used_is_an_error_at_its_key() {
    let resolve = |content: io::Result<SecretContents>| {
        let mut config = load("broker.url_file = 'secret'").unwrap();
        let mut content = Some(content);
        config.resolve_secrets(|_| content.take().unwrap()).unwrap_err().to_string()
    };
    assert_eq!(
        resolve(Err(io::ErrorKind::NotFound.into())),
        "config.toml:1: broker.url_file: secret: cannot be read: entity not found"
    );
    let wrong = resolve(Ok(contents("hunter2", 0o600)));
    assert!(wrong.starts_with("config.toml:1: broker.url_file: secret: not a URL"), "{wrong}");
    assert!(!wrong.contains("hunter2"));
}

fn contents(text: &str, mode: u32) -> SecretContents {
    SecretContents { bytes: text.as_bytes().to_vec().into(), mode }
}

const SECRETS: &str = "broker.url_file = 'u'\nstore.key_file = 'k'\nhttp.token_file = 't'\n\
                       http.listen = '0.0.0.0:9464'\n";

/// Resolves [`SECRETS`] with these modes.
fn resolved(modes: [u32; 3]) -> Result<Config, ConfigErrors> {
    let mut config = load(SECRETS).unwrap();
    let read = |path: &Path| {
        Ok(match path.to_str() {
            Some("u") => contents("amqp://me:hunter2@mq/%2f", modes[0]),
            Some("k") => contents(&"ab".repeat(32), modes[1]),
            _ => contents("hunter2hunter2hunter2\n", modes[2]),
        })
    };
    config.resolve_secrets(read).map(|()| config)
}

#[test]
fn keys_and_tokens_that_others_may_read_are_refused_and_the_url_is_warned_of() {
    let config = resolved([0o600, 0o400, 0o440]).unwrap();
    assert_eq!(config.store.key, StoreKey::parse(&[0xab; 32]).ok());
    assert_eq!(config.http_token, Some(Secret::new("hunter2hunter2hunter2")));
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    assert!(!format!("{config:?}").contains("abab"), "{config:?}");
    assert_eq!(config.warnings().len(), 1, "{:?}", config.warnings());
    assert!(config.warnings()[0].contains("without TLS"), "{:?}", config.warnings());

    let said = resolved([0o644, 0o604, 0o620]).unwrap_err().to_string();
    let expected = "\
config.toml:2: store.key_file: k: others may read or write it (mode 0604): run `chmod 600 k`
config.toml:3: http.token_file: t: others may read or write it (mode 0620): run `chmod 600 t`";
    assert_eq!(said, expected);
    let warnings = resolved([0o644, 0o600, 0o600]).unwrap().warnings().join(" ");
    assert!(warnings.contains("broker.url_file: others may read"), "{warnings}");
}

#[test]
fn a_token_that_can_be_guessed_or_not_be_sent_is_refused() {
    for (token, problem) in [("short", "16 to 1024"), ("with a blank in it all", "visible ASCII")] {
        let mut config = load("http.token_file = 't'").unwrap();
        let refused = config.resolve_secrets(|_| Ok(contents(token, 0o600))).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains(problem) && !text.contains(token), "{text}");
    }
}

#[test]
fn an_address_for_other_machines_needs_a_token() {
    let refused = load("http.listen = '0.0.0.0:9464'").unwrap_err().to_string();
    let expected =
        "config.toml:1: http.listen: \"0.0.0.0:9464\" can be reached from other machines";
    assert!(refused.starts_with(expected) && refused.contains("token_file"), "{refused}");
    assert!(load("http = { listen = '0.0.0.0:9464', token_file = 't' }").is_ok());
}

#[test]
fn certificates_are_for_amqps_and_come_with_their_key() {
    for (file, problem) in [
        ("broker = { cert_file = 'c' }", "without key_file"),
        ("broker = { key_file = 'c' }", "without cert_file"),
    ] {
        let refused = load(file).unwrap_err().to_string();
        assert!(refused.contains(problem), "{refused}");
    }
    let mut config = load("broker = { ca_file = 'ca' }").unwrap();
    assert_eq!(config.broker.tls.ca_file.as_deref(), Some(Path::new("ca")));
    let refused = config.resolve_secrets(|_| unreachable!("no secret is named")).unwrap_err();
    assert!(refused.to_string().contains("broker.ca_file: is for amqps:// only"), "{refused}");
}

#[test]
fn debug_of_a_configuration_has_no_secrets() {
    let file = "broker.url = 'amqp://me:hunter2@mq/%2f'\n[queues.orders]\n\
        deliver = { type = 'http', url = 'http://a?t=hunter2', headers = { a = 'hunter2' } }";
    let config = load(file).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!config.queues[0].deliver.to_string().contains("hunter2"));
}
