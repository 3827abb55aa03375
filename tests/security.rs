//! Goal: what is secret stays so, whatever goes wrong: passwords, tokens, what a store holds, and who may write in it.
//!
//! Method: the stock binary is run with secrets that are easy to find, on a real broker and with everything logged;
//! then all that it has said and left behind is searched for them. Files are looked at as another user would.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::net::TcpListener;
use tokio::time::Instant;

mod support;

use support::process::{WorkerDir, WorkerProcess};
use support::rabbitmq::{Vhost, ctl};

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that there is, of the client's and the HTTP libraries too, whose modules are named one by one.
const EVERYTHING: &str = "log.level=trace,lapin=trace,lapin::frames=trace,lapin::channel=trace,lapin::buffer=trace,\
                          lapin::returned_messages=trace,lapin::io_loop=trace,amq_protocol=trace,\
                          amq_protocol::frame=trace,amq_protocol_types=trace,hyper=trace,h2=trace,reqwest=trace";

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("room");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&parts).into_owned()
}

/// The answer of the endpoint: its head and its body.
fn ask(endpoint: &str, path: &str, header: &str) -> String {
    let Ok(mut stream) = std::net::TcpStream::connect(endpoint) else { return String::new() };
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {endpoint}\r\nconnection: close\r\n{header}\r\n");
    let mut answer = Vec::new();
    let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
    asked.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&answer).into_owned())
}

/// A port that is free at this moment.
fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("bound").to_string()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// --- passwords and tokens -------------------------------------------------------------------------------------------

const PASSWORD: &str = "canaryOfTheBroker77";
const TOKEN: &str = "canaryOfTheEndpoint77";
const USERINFO: &str = "canaryOfTheUrl77";
const QUERY: &str = "canaryOfTheQuery77";
const HEADER: &str = "canaryOfTheHeader77";

/// How a secret may look: as it is, in base 64 wherever it begins, in hexadecimal digits, as a list of its bytes.
fn guises(secret: &str) -> Vec<String> {
    use std::fmt::Write as _;
    let bytes = secret.as_bytes();
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let list: Vec<String> = bytes.iter().take(12).map(ToString::to_string).collect();
    let mut guises = vec![secret.to_owned(), hex, list.join(", ")];
    // The groups of three bytes that lie whole within the secret, wherever it begins.
    for skipped in 0..3 {
        let (groups, _) = bytes.get(skipped..).unwrap_or_default().as_chunks::<3>();
        guises.push(STANDARD.encode(groups.as_flattened()));
    }
    guises
}

fn assert_hidden(what: &str, said: &str) {
    for secret in [PASSWORD, TOKEN, USERINFO, QUERY, HEADER] {
        for guise in guises(secret) {
            let Some(at) = said.find(&guise) else { continue };
            let line = said[..at].rfind('\n').map_or(0, |line| line + 1);
            let end = said[at..].find('\n').map_or(said.len(), |end| at + end);
            panic!("{secret} is in {what}: {}", &said[line..end]);
        }
    }
}

/// Answers each request as its body says: 200 or 500; or ends the connection without a word.
async fn receiver() -> (String, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let router = axum::Router::new().fallback(async |body: String| match &*body {
        "fail" => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "try again"),
        "reject" => (axum::http::StatusCode::BAD_REQUEST, "no"),
        _ => (axum::http::StatusCode::OK, ""),
    });
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    (address, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_anything_that_is_said_or_kept_whatever_goes_wrong() {
    let vhost = Vhost::new();
    let user = vhost.name().to_owned();
    ctl(&["add_user", &user, PASSWORD]);
    ctl(&["set_permissions", "-p", vhost.name(), &user, ".*", ".*", ".*"]);
    let client = vhost.client().await;
    for queue in ["in", "dead", "alone", "in.dead", "dead.dead"] {
        client.declare_classic(queue).await;
    }
    let (address, _server) = receiver().await;
    let endpoint = free_address();
    let headers = format!("headers = {{ x-token = \"{HEADER}\" }}");
    let directory = WorkerDir::new(
        "memory:",
        &format!(
            "[http]\nlisten = \"{endpoint}\"\ntoken_file = \"token\"\n\
             [defaults]\nretry = {{ max_attempts = 2, initial = \"10ms\" }}\n\
             [queues.in]\ndeliver = {{ type = \"http\", url = \"http://me:{USERINFO}@{address}/?t={QUERY}\", {headers} }}\n\
             [queues.dead]\ndeliver = {{ type = \"http\", url = \"http://me:{USERINFO}@127.0.0.1:1/?t={QUERY}\", {headers} }}\n\
             [queues.alone]\ndeliver = {{ type = \"exchange\", exchange = \"amq.direct\", routing_key = \"nobody\" }}\n"
        ),
    );
    let (login, rest) = vhost
        .url()
        .split_once('@')
        .map(|(_, rest)| (format!("amqp://{user}"), rest.to_owned()))
        .expect("a url");
    let right = format!("{login}:{PASSWORD}@{rest}");
    write(&directory.path().join("url"), &right, 0o600);
    write(&directory.path().join("wrong"), &right.replace(&user, "nobody"), 0o600);
    write(&directory.path().join("token"), TOKEN, 0o600);
    let shown = format!("authorization: Bearer {TOKEN}\r\n");
    let mut said = Vec::new();

    // Everything works, and much goes wrong with the messages; then the connection is lost.
    let start = |url_file: &str, extra: &str| -> WorkerProcess {
        let url_file = format!("broker.url_file={url_file}");
        let mut command =
            directory.command(&["run", "--set", &url_file, "--set", EVERYTHING, "--set", extra]);
        command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
        directory.start_as(command)
    };
    let worker = start("url", "shutdown.drain=2s");
    worker.wait_for_log("\"consuming\"", PATIENCE);
    client.publish("in", ["ok", "fail", "reject"].map(str::to_owned)).await;
    client.publish("dead", ["refused".to_owned()]).await;
    client.publish("alone", ["returned".to_owned()]).await;
    worker.wait_for_log("no queue", PATIENCE);
    eventually("three are dead", async || {
        client.depth("in.dead").await + client.depth("dead.dead").await == 3
    })
    .await;
    ctl(&["close_all_connections", "-p", vhost.name(), "canary test"]);
    worker.wait_for_log("not consuming", PATIENCE);
    for (path, header) in [
        ("/metrics", &*shown),
        ("/readyz", &shown),
        ("/metrics", ""),
        ("/livez", ""),
        ("/x", &shown),
    ] {
        let answer = ask(&endpoint, path, header);
        assert!(answer.starts_with("HTTP/1.1 "), "{path}: {answer}");
        said.push((format!("the answer of {path}"), answer));
    }
    assert!(said[0].1.contains("onceward_done_total"), "{}", said[0].1);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
    let client = vhost.client().await;
    for queue in ["in.dead", "dead.dead"] {
        for letter in client.take_all(queue).await {
            said.push((queue.to_owned(), format!("{:?} {:?}", letter.properties, letter.data)));
        }
    }

    // A wrong password, a wrong host, and a broker that is none.
    for (url_file, extra) in [
        ("wrong", "shutdown.drain=1s"),
        ("url", "queues.in.prefetch=7"),
        ("nowhere", "queues.in.prefetch=8"),
        ("web", "queues.in.prefetch=9"),
    ] {
        write(
            &directory.path().join("nowhere"),
            &format!("{login}:{PASSWORD}@127.0.0.1:1/x"),
            0o600,
        );
        write(&directory.path().join("web"), &format!("{login}:{PASSWORD}@{address}/x"), 0o600);
        let worker = start(url_file, extra);
        worker.wait_for_log(
            if url_file == "url" { "\"consuming\"" } else { "not consuming" },
            PATIENCE,
        );
        worker.signal("TERM");
        assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
    }

    // Commands that work and commands that do not.
    let bad_url = format!("broker.url={login}:{PASSWORD}@host:port/x");
    let worse_url = format!("broker.url=http://{PASSWORD}");
    let cut_url = format!("broker.url={login}:{PASSWORD}#@host/x");
    let bad_target =
        format!("queues.in.deliver={{ type = 'http', url = 'http://me:{USERINFO}@/?{QUERY}' }}");
    let bad_header = format!("queues.in.deliver.headers={{ \"a b\" = \"{HEADER}\" }}");
    let unfinished = format!("queues.in.deliver={{ type = 'http', url = 'http://me:{USERINFO}@h/");
    let plain = format!("broker.url={login}:{PASSWORD}@10.1.2.3/x");
    for arguments in [
        &["check", "--set", "broker.url_file=url"][..],
        &["check", "--json", "--set", "broker.url_file=url", "--rate", "10"],
        &["check", "--set", &plain],
        &["check", "--set", &bad_url],
        &["check", "--json", "--set", &worse_url],
        &["check", "--set", &cut_url],
        &["check", "--set", &bad_target],
        &["check", "--json", "--set", &bad_header],
        &["check", "--set", &unfinished],
        &["run", "--set", "broker.url_file=token"],
        &["run", "--set", "http.token_file=missing"],
        &["publish", "-q", "in", "--set", "broker.url_file=wrong"],
        &["publish", "-q", "in", "--set", "broker.url_file=web"],
        &["quarantine", "-q", "in", "--set", "broker.url_file=wrong"],
        &["quarantine", "-q", "in", "--set", "broker.url_file=url"],
        &["inspect", "-q", "in", "fail"],
        &["inspect", "--json", "-q", "in", "reject"],
        &["store", "stats"],
        &["store", "verify"],
        &["store", "export"],
        &["demo", "--broker", &format!("{login}:{PASSWORD}@127.0.0.1:1/x")],
        &["--help"],
        &["run", "--help"],
        &["run", "--unknown"],
    ] {
        let mut command = directory.command(arguments);
        command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
        let output = command.output().expect("the binary starts");
        let output = text(&output);
        assert!(!output.is_empty(), "{arguments:?} says nothing");
        if arguments.contains(&&*plain) {
            assert!(output.contains("warning: ") && output.contains("without TLS"), "{output}");
        }
        said.push((format!("{arguments:?}"), output));
    }
    // The environment is another way in; a command that is started by it does not get it.
    let mut command = directory.command(&["check"]);
    command
        .env("ONCEWARD__BROKER__URL", format!("{login}:{PASSWORD}:x@y:z"))
        .env("RUST_LOG", "trace");
    said.push(("a wrong variable".to_owned(), text(&command.output().expect("it starts"))));

    let logged = directory.logged();
    assert!(logged.contains("TRACE"), "everything is logged");
    assert!(logged.contains("ACCESS_REFUSED") && logged.contains("Connection refused"), "{logged}");
    said.push(("the log".to_owned(), logged));
    for file in files(&directory.path().join("store")).iter().filter(|path| path.is_file()) {
        let bytes = fs::read(file).expect("it can be read");
        said.push((file.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
    }
    for (what, said) in &said {
        assert_hidden(what, said);
    }
    ctl(&["delete_user", &user]);
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found
}

// --- hostile ids ----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_id_key_or_name_reaches_a_terminal_or_a_metric_as_it_is() {
    let vhost = Vhost::new();
    let client = vhost.client().await;
    client.declare_classic("in").await;
    client.declare_classic("in.dead").await;
    let endpoint = free_address();
    let directory = WorkerDir::new(
        &vhost.url(),
        &format!(
            "[http]\nlisten = \"{endpoint}\"\n[queues.in]\nid = [\"header:x-id\"]\nkey = [\"header:x-key\"]\n\
             retry = {{ max_attempts = 2, initial = \"10ms\" }}\n\
             deliver = {{ type = \"command\", argv = [\"sh\", \"-c\", \"cat >&2; exit $(cat | wc -c)1\"] }}\n"
        ),
    );
    let hostile =
        "\u{1b}]0;owned\u{7}\u{1b}[31m\nonceward: all is well\r\u{202e}gnp\u{0}".as_bytes();
    let value = |bytes: &[u8]| AMQPValue::LongString(bytes.to_vec().into());
    let channel = client.channel().await;
    for (id, body) in [
        (value(hostile), hostile.to_vec()),
        (value(&hostile.repeat(40)), Vec::new()),
        (AMQPValue::Boolean(true), Vec::new()),
    ] {
        let mut headers = FieldTable::default();
        headers.insert("x-id".into(), id);
        headers.insert("x-key".into(), value(hostile));
        headers.insert("\u{1b}[2J\n".into(), value(hostile));
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_content_type("text/\u{1b}[0m\n".into())
            .with_message_id("\u{1b}c\n".into());
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), "in".into(), options, &body, properties).await;
        sent.expect("published").await.expect("taken");
    }
    let mut said = String::new();
    for format in ["text", "json"] {
        let format = format!("log.format={format}");
        let worker = directory.start_as(directory.command(&[
            "run",
            "--set",
            &format,
            "--set",
            "log.level=trace",
        ]));
        worker.wait_for_log("consuming", PATIENCE);
        if said.is_empty() {
            eventually("all are dead", async || client.depth("in.dead").await == 3).await;
        }
        said.push_str(&ask(&endpoint, "/metrics", "").replace("\r\n", "\n"));
        said.push_str(&ask(&endpoint, "/readyz", "").replace("\r\n", "\n"));
        worker.signal("TERM");
        assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
    }
    assert!(!said.contains("owned"), "ids are in the metrics: {said}");
    said.push_str(&directory.logged());
    assert!(said.contains("\\u{1b}]0;owned"), "the id is told, escaped: {said}");
    for arguments in
        [&["store", "stats"][..], &["store", "verify"], &["inspect", "-q", "in", "x\u{1b}[31m"]]
    {
        said.push_str(&text(&directory.command(arguments).output().expect("it starts")));
    }
    let is_raw = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    let line = said.lines().find(|line| line.contains(is_raw));
    assert_eq!(line, None, "{said}");
    assert!(!said.lines().any(|line| line.starts_with("onceward: all is well")), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_on_another_machine_without_tls_is_warned_of_at_the_start() {
    let directory = alone();
    let url = "broker.url=amqp://me:hunter2@192.0.2.1/x";
    let worker = directory.start_as(directory.command(&["run", "--set", url]));
    worker.wait_for_log("amqp://192.0.2.1/x is on another machine and without TLS", PATIENCE);
    worker.kill();
    assert_eq!(directory.logged().matches("without TLS").count(), 1, "{}", directory.logged());
}

/// Those of SECURITY.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_that_the_security_notes_give_are_enough() {
    let notes = include_str!("../SECURITY.md");
    let line = notes.lines().find(|line| line.starts_with("rabbitmqctl set_permissions -p shop "));
    let patterns: Vec<&str> = line.expect("it is there").split('\'').skip(1).step_by(2).collect();
    let [configure, write, read] = patterns[..] else { panic!("{patterns:?}") };
    let vhost = Vhost::new();
    let user = vhost.name().to_owned();
    ctl(&["add_user", &user, "hunter2"]);
    ctl(&["set_permissions", "-p", vhost.name(), &user, configure, write, read]);
    let client = vhost.client().await;
    client.declare_classic("orders").await;
    client.publish("orders", ["1".to_owned()]).await;
    let (_, rest) =
        vhost.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a url");
    let directory = WorkerDir::new(
        &format!("amqp://{user}:hunter2@{rest}"),
        "[http]\nlisten = \"\"\n[queues.orders]\ndeliver = { type = \"command\", argv = [\"sh\", \"-c\", \"exit 65\"] }\n",
    );
    let worker = directory.start();
    worker.wait_for_log("consuming", PATIENCE);
    eventually("it is dead", async || client.depth("orders").await == 0).await;
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
    assert_eq!(client.depth("orders.dead").await, 1, "{}", directory.logged());
    ctl(&["delete_user", &user]);
}

// --- files ----------------------------------------------------------------------------------------------------------

/// A directory with a worker on the broker in its process, which needs nothing else.
fn alone() -> WorkerDir {
    WorkerDir::new("memory:", "[http]\nlisten = \"\"\n[queues.in]\ndeliver = { type = \"log\" }\n")
}

/// Runs a worker whose files are for everybody, if nobody minds.
fn run_once(directory: &WorkerDir, extra: &[&str]) -> String {
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_onceward"), "run"])
        .args(extra)
        .current_dir(directory.path())
        .stdin(Stdio::null());
    let worker = directory.start_as(command);
    worker.wait_for_log("consuming", PATIENCE);
    worker.signal("TERM");
    let logged = worker.logged();
    assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
    logged
}

fn assert_closed_to_others(path: &Path) {
    for path in files(path).iter().map(PathBuf::as_path).chain([path]) {
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn every_file_that_is_written_is_its_owner_s_alone() {
    let directory = alone();
    let store = directory.path().join("store");
    run_once(&directory, &[]);
    assert!(files(&store).len() >= 4, "{:?}", files(&store));
    assert_closed_to_others(&store);
    // What was left open to others, by an older release or a copy, is closed.
    for path in files(&store) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    run_once(&directory, &[]);
    assert_closed_to_others(&store);

    let open = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_onceward")])
            .args(arguments)
            .current_dir(directory.path());
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    };
    open(&["store", "compact"]);
    assert_closed_to_others(&store);
    open(&["store", "export", "--output", "export"]);
    assert_closed_to_others_file(&directory.path().join("export"));
    open(&["store", "import", "export", "--set", "store.path=imported"]);
    assert_closed_to_others(&directory.path().join("imported"));
}

fn assert_closed_to_others_file(path: &Path) {
    let mode = path.metadata().expect("it is there").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
}

#[test]
fn a_store_that_others_can_write_in_is_refused_with_what_to_run() {
    let directory = alone();
    let store = directory.path().join("store");
    run_once(&directory, &[]);
    let is_root = chown(&store, Some(12_345), None).is_ok();
    if is_root {
        assert_refused(&directory, "it belongs to user 12345", "chown -R 0 ");
        chown(&store, Some(0), None).expect("as before");
    } else {
        assert!(std::env::var_os("CI").is_none(), "another user's directory needs root to be made");
        // Past the capture of test output: a skip must be seen.
        let skipped = "security: SKIP: a directory of another user, which only root can make";
        writeln!(std::io::stderr(), "{skipped}").expect("stderr is there");
    }
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(&store, fs::Permissions::from_mode(mode)).expect("it is ours");
        assert_refused(&directory, &format!("its mode {mode:04o} lets others write"), "chmod 700 ");
    }
    // Others may look at the directory, if who made it wants that: there is nothing in it for them.
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).expect("it is ours");
    run_once(&directory, &[]);
    let mode = store.metadata().expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755, "an operator's directory stays as it is");
}

fn assert_refused(directory: &WorkerDir, problem: &str, remedy: &str) {
    for arguments in
        [&["run"][..], &["store", "verify"], &["store", "stats"], &["store", "compact"]]
    {
        let output = directory.command(arguments).output().expect("it starts");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(74), "{arguments:?}: {said}");
        assert!(said.contains(problem) && said.contains(remedy), "{arguments:?}: {said}");
    }
}

// --- encryption at rest ---------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_store_is_worked_with_by_every_command_and_shows_nothing() {
    let id = "4111-1111-1111-1111";
    let vhost = Vhost::new();
    let client = vhost.client().await;
    client.declare_classic("in").await;
    client.declare_classic("in.dead").await;
    let tables = "[http]\nlisten = \"\"\n[queues.in]\ndeliver = { type = \"command\", argv = [\"sh\", \"-c\", \"exit 65\"] }\n";
    let directory = WorkerDir::new(&vhost.url(), tables);
    let path = |name: &str| directory.path().join(name);
    write(&path("key"), &"5a".repeat(32), 0o600);
    write(&path("other"), &"5b".repeat(32), 0o600);
    client.publish("in", [id.to_owned()]).await;
    for key in ["", "key"] {
        let sets = [format!("store.key_file={key}"), format!("store.path=store-{key}")];
        let worker =
            directory.start_as(directory.command(&["run", "--set", &sets[0], "--set", &sets[1]]));
        worker.wait_for_log("consuming", PATIENCE);
        eventually("it is dead", async || client.depth("in.dead").await == 1).await;
        worker.signal("TERM");
        assert!(worker.wait(PATIENCE).success(), "{}", directory.logged());
        let holds_id = |path: &PathBuf| {
            path.is_file() && String::from_utf8_lossy(&fs::read(path).expect("read")).contains(id)
        };
        let found = files(&path(&format!("store-{key}"))).iter().any(holds_id);
        assert_eq!(found, key.is_empty(), "with key {key:?}");
        client.take_all("in.dead").await;
        client.publish("in", [id.to_owned()]).await;
    }

    let run = |key: &str, store: &str, arguments: &[&str]| {
        let sets = [format!("store.key_file={key}"), format!("store.path={store}")];
        let mut command = directory.command(arguments);
        command.args(["--set", &sets[0], "--set", &sets[1]]);
        let output = command.output().expect("it starts");
        (output.status.code(), text(&output))
    };
    for (key, said) in [("", "no key was given"), ("other", "it is encrypted with the key of id")] {
        for arguments in
            [&["run"][..], &["store", "verify"], &["inspect", "-q", "in", id], &["store", "export"]]
        {
            let (code, text) = run(key, "store-key", arguments);
            assert_eq!(code, Some(74), "{arguments:?}: {text}");
            assert!(text.contains(said), "{arguments:?}: {text}");
            assert!(!text.contains(id), "{arguments:?}: {text}");
        }
    }
    write(&path("list"), &format!("{id}\n"), 0o600);
    for (arguments, code, said) in [
        (&["inspect", "-q", "in", id][..], 0, "dead"),
        (&["reconcile", "-q", "in", "--against", "list"], 1, "failed"),
        (&["store", "stats"], 0, "1 dead"),
        (&["store", "verify"], 0, ""),
        (&["store", "compact"], 0, ""),
        (&["store", "export", "--output", "export"], 0, "exported 1 records"),
    ] {
        let (exit, text) = run("key", "store-key", arguments);
        assert_eq!(exit, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
    // The way to another key.
    let (code, said) = run("other", "rotated", &["store", "import", "export"]);
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = run("other", "rotated", &["inspect", "-q", "in", id]);
    assert!(said.contains("dead"), "{said}");
    assert_eq!(run("key", "rotated", &["store", "verify"]).0, Some(74));
    let (code, said) = run("other", "rotated", &["forget", "-q", "in", id, "--reason", "mended"]);
    assert_eq!(code, Some(0), "{said}");

    fs::set_permissions(path("key"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let (code, said) = run("key", "store-key", &["run"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("chmod 600 key"), "{said}");
}
