//! Goal: whatever is wrong is said at once, with its place, what it is, and what to write.

use super::*;

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
config.toml:21: http.listen: "0.0.0.0:9464" can be reached from other machines, and nothing there asks for a password: write "127.0.0.1:9464", or name in token_file a file with a token that is to be shown
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
