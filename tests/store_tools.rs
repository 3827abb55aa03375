//! Goal: the store tools tell, copy and correct all that a store holds, and refuse what they cannot do whole.
//!
//! Method: a worker in this process makes a store on disk, the binary works on it, harm is done to it from outside, and
//! another worker shows what it knows then.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::{
    Body, Context, Handler, HeaderValue, MemoryBroker, Message, Options, QueueOptions, RunError,
    Source, StoreOptions, Worker, reject,
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "orders";
const PATIENCE: Duration = Duration::from_secs(30);

/// Longer than a row may be.
const LARGE_BYTES: usize = 10_000;

/// Does what a body says, and remembers whose it was.
#[derive(Clone, Default)]
struct Recorder {
    runs: Arc<Mutex<Vec<String>>>,
    charges: Arc<Mutex<Vec<String>>>,
}

impl Handler<Body, Option<String>> for Recorder {
    async fn handle(&self, cx: &mut Context, Body(body): Body) -> onceward::Result<Option<String>> {
        self.runs.lock().expect("not poisoned").push(cx.id().to_string());
        match &body[..] {
            b"add" => {
                let balance = cx.state::<i64>()?.unwrap_or(0) + 1;
                cx.set_state(&balance)?;
            }
            b"balance" => {
                let balance = cx.state::<i64>()?;
                cx.send("sink", &balance)?;
            }
            b"large state" => cx.set_state(&"s".repeat(LARGE_BYTES))?,
            b"large state?" => {
                let state = cx.state::<String>()?.unwrap_or_default();
                assert!(state == "s".repeat(LARGE_BYTES), "{} bytes", state.len());
            }
            b"large result" => return Ok(Some("r".repeat(LARGE_BYTES))),
            b"send" => {
                cx.send("sink", "hello")?;
            }
            b"charge" => {
                let charges = Arc::clone(&self.charges);
                let charge = async |key: String| {
                    charges.lock().expect("not poisoned").push(key);
                    Ok::<_, std::io::Error>(7)
                };
                let _receipt: i64 = cx.once("card", charge).await?;
                return Err(reject("after the charge"));
            }
            b"large step" => {
                let charges = Arc::clone(&self.charges);
                let charge = async |key: String| {
                    charges.lock().expect("not poisoned").push(key);
                    Ok::<_, std::io::Error>("r".repeat(LARGE_BYTES))
                };
                // Whatever the handler makes of an error of the store.
                if cx.once("large", charge).await.is_ok() {
                    return Err(std::io::Error::other("after the step").into());
                }
            }
            _ => {}
        }
        Ok(None)
    }
}

/// What one worker did.
struct Seen {
    runs: Vec<String>,
    charges: usize,
    sink: Vec<Arc<Message>>,
}

/// A message: its id, its key and its body.
type Sent<'a> = (&'a str, &'a str, &'a str);

/// Runs a worker on the store until all messages but `held` are acknowledged; without a sink nobody takes what is sent.
async fn work(store: &Path, messages: &[Sent<'_>], has_sink: bool, held: u64) -> Seen {
    let broker = MemoryBroker::new();
    broker.declare(QUEUE);
    if has_sink {
        broker.declare("sink");
    }
    for (id, key, body) in messages {
        let mut message = Message {
            routing_key: QUEUE.to_owned(),
            body: (*body).to_owned().into(),
            ..Message::default()
        };
        message.properties.message_id = Some((*id).to_owned());
        message.properties.headers.insert("key".to_owned(), HeaderValue::from(*key));
        assert!(broker.publish(message));
    }
    let mut options = Options::with_broker(Arc::new(broker.clone()), StoreOptions::new(store));
    options.drain = Duration::from_secs(1);
    let mut queue = QueueOptions::new(QUEUE);
    queue.identity.key = vec![Source::Header("key".to_owned())];
    let recorder = Recorder::default();
    let worker = Worker::new(options).queue_with(queue, recorder.clone());
    let acked = async {
        let mut left = if has_sink { 1 } else { 0 };
        while broker.stats().acked < messages.len() as u64 - held || left > 0 {
            // A moment for what the worker before has left to send.
            left = i32::from(has_sink && broker.depth("sink").0 == 0 && left < 100) * (left + 1);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let done = async { timeout(PATIENCE, acked).await.expect("the messages end") };
    worker.run_until(done).await.expect("the worker ends well");
    let runs = recorder.runs.lock().expect("not poisoned").clone();
    let charges = recorder.charges.lock().expect("not poisoned").len();
    Seen { runs, charges, sink: broker.take_all("sink") }
}

/// A message of each kind, with what it leaves in the store.
const MESSAGES: &[Sent<'_>] = &[
    ("add-1", "alice", "add"),
    ("add-2", "alice", "add"),
    ("large", "bob", "large state"),
    ("result", "carol", "large result"),
    ("charge", "dave", "charge"),
    ("send", "eve", "send"),
];

/// A directory with configurations for two stores, the first of which was worked on.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for store in ["a", "b"] {
            let path = directory.path().join(store);
            let config = format!(
                "[broker]\nurl = \"memory:\"\n[store]\npath = \"{}\"\n\
                 [queues.orders]\nkey = [\"header:key\"]\ndeliver = {{ type = \"log\" }}\n",
                path.display()
            );
            fs::write(directory.path().join(format!("{store}.toml")), config).expect("written");
        }
        let scene = Self { directory };
        let seen = work(&scene.store("a"), MESSAGES, false, 1).await;
        assert_eq!((seen.runs.len(), seen.charges), (MESSAGES.len(), 1));
        scene
    }

    fn store(&self, name: &str) -> PathBuf {
        self.file(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, store: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        let config = format!("--config={store}.toml");
        command.args(arguments).arg(config).current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs the binary on a store; gives standard output.
    fn run(&self, store: &str, arguments: &[&str], code: i32) -> String {
        let output = self.command(store, arguments).output().expect("the binary starts");
        checked(arguments, &output, code)
    }

    /// Runs the binary on a store, which it cannot use; gives standard error.
    fn refused(&self, store: &str, arguments: &[&str], code: i32) -> String {
        let output = self.command(store, arguments).output().expect("the binary starts");
        checked(arguments, &output, code);
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    fn stats(&self, store: &str) -> Value {
        let stats = self.run(store, &["store", "stats", "--json"], 0);
        let mut stats: Value = serde_json::from_str(&stats).expect("JSON");
        // What is another in each copy.
        for field in ["files_bytes", "rows_bytes", "epoch"] {
            stats.as_object_mut().expect("an object").remove(field).expect(field);
        }
        stats
    }

    /// Changes the last row of a kind behind the store's back.
    fn harm(&self, prefix: &[u8], harm: impl FnOnce(&[u8], Vec<u8>) -> Option<Vec<u8>>) {
        let db = engine(&self.store("a"));
        let (key, value) = db.scan_prefix(prefix).next_back().expect("a row").expect("it is sound");
        match harm(&key, value.to_vec()) {
            Some(value) => db.insert(&key, value).expect("written"),
            None => db.remove(&key).expect("removed"),
        };
        db.flush().expect("flushed");
    }
}

fn engine(store: &Path) -> sled::Db {
    let config = sled::Config::new().path(store).flush_every_ms(None);
    let config = config.segment_size(SEGMENT_BYTES);
    // Threads of sled's may hold its lock for a moment after the store was closed.
    let opened = (0..200).find_map(|_| {
        let opened = config.open().ok();
        if opened.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        opened
    });
    opened.expect("it opens")
}

/// As the store itself has it.
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;

fn checked(arguments: &[&str], output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn an_imported_store_knows_all_duplicates_states_steps_and_what_is_to_be_sent() {
    let scene = Scene::new().await;
    scene.run("a", &["store", "export", "--output=all.jsonl"], 0);
    let mode = fs::metadata(scene.file("all.jsonl")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = scene.run("b", &["store", "import", "all.jsonl"], 0);
    assert!(said.starts_with("imported 6 records"), "{said}");
    scene.run("b", &["store", "verify"], 0);
    assert_eq!(scene.stats("a"), scene.stats("b"));
    let stats = scene.stats("b");
    let expected = [("states", 2), ("steps", 1), ("outgoing", 1), ("spilled", 2)];
    for (field, count) in expected {
        assert_eq!(stats[field], count, "{field} in {stats}");
    }
    // Again, from the copy: nothing has changed but where it lies.
    scene.run("b", &["store", "export", "--output=again.jsonl"], 0);
    let [first, again] = ["all.jsonl", "again.jsonl"].map(|name| {
        let text = fs::read_to_string(scene.file(name)).expect("there");
        let lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
        lines[..lines.len() - 1].to_vec()
    });
    assert_eq!(first, again);

    let seen = work(&scene.store("b"), MESSAGES, true, 0).await;
    assert_eq!(seen.runs, Vec::<String>::new(), "all are duplicates");
    assert_eq!(seen.sink.len(), 1, "what was not confirmed is sent");
    assert_eq!(&seen.sink[0].body[..], b"\"hello\"");
    let asked = [("balance", "alice", "balance"), ("large?", "bob", "large state?")];
    let seen = work(&scene.store("b"), &asked, true, 0).await;
    assert_eq!(&seen.sink[0].body[..], b"2");
}

#[tokio::test]
async fn an_export_that_was_cut_off_or_changed_is_refused_and_leaves_nothing() {
    let scene = Scene::new().await;
    let export = scene.run("a", &["store", "export"], 0);
    let ends: Vec<usize> = export.match_indices('\n').map(|(at, _)| at + 1).collect();
    let identity = export.find("\"identity\":\"").expect("a record") + 12;
    let other = if &export[identity..=identity] == "0" { "1" } else { "0" };
    let doubled = format!("{export}{}", &export[ends[ends.len() - 2]..]);
    let bad = [
        ("empty", String::new()),
        ("without its end", export[..ends[ends.len() - 2]].to_owned()),
        ("in the middle of a line", export[..export.len() / 2].to_owned()),
        ("without its last byte", export[..export.len() - 1].to_owned()),
        ("without a line", export[..ends[2]].to_owned() + &export[ends[3]..]),
        ("with another digit", export[..identity].to_owned() + other + &export[identity + 1..]),
        ("of another version", export.replacen("\"version\":1", "\"version\":2", 1)),
        ("with something behind it", doubled),
        ("something else", "{\"a\":1}\n".to_owned()),
        ("one endless line", "x".repeat(3 << 20)),
    ];
    for (what, text) in bad {
        fs::write(scene.file("bad.jsonl"), text).expect("written");
        let said = scene.refused("b", &["store", "import", "bad.jsonl"], 1);
        assert!(said.contains("line "), "{what}: {said}");
        let left = fs::read_dir(scene.store("b"))
            .expect("there")
            .map(|entry| entry.expect("read").file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["onceward.lock"], "{what}");
    }
    fs::write(scene.file("good.jsonl"), export).expect("written");
    scene.run("b", &["store", "import", "good.jsonl"], 0);
}

#[tokio::test]
async fn an_import_goes_into_an_empty_directory_only_and_can_be_run_again_after_a_crash() {
    let scene = Scene::new().await;
    scene.run("a", &["store", "export", "--output=all.jsonl"], 0);
    let said = scene.refused("a", &["store", "import", "all.jsonl"], 1);
    assert!(said.contains("is not empty"), "{said}");
    let said = scene.refused("a", &["store", "export", "--output=all.jsonl"], 1);
    assert!(said.contains("it exists"), "{said}");

    let mut command = scene.command("b", &["store", "import", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let export = fs::read(scene.file("all.jsonl")).expect("there");
    let stdin = child.stdin.as_mut().expect("piped");
    stdin.write_all(&export[..export.len() - 10]).expect("written");
    stdin.flush().expect("written");
    while !scene.store("b").join("onceward.new/db").exists() {
        sleep(Duration::from_millis(20)).await;
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");

    let said = scene.refused("b", &["store", "stats"], 74);
    assert!(said.contains("an import into it did not end"), "{said}");
    scene.run("b", &["store", "import", "all.jsonl"], 0);
    assert_eq!(scene.stats("a"), scene.stats("b"));
}

#[tokio::test]
async fn every_damage_is_named_and_what_is_sound_can_be_saved() {
    let scene = Scene::new().await;
    let whole = scene.run("a", &["store", "verify", "--json"], 0);
    assert_eq!(lines(&whole)[0]["damages"], 0);
    // A byte of a state, and a piece of the result.
    scene.harm(b"s", |_, mut value| {
        let middle = value.len() / 2;
        value[middle] ^= 1;
        Some(value)
    });
    let found = scene.run("a", &["store", "verify", "--json"], 1);
    let found = lines(&found);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0]["row"].as_str().expect("text").starts_with("state of key "), "{found:?}");
    assert_eq!(found[0]["problem"], "checksum does not match");
    scene.harm(b"v", |_, _| None);
    let found = scene.run("a", &["store", "verify", "--json"], 1);
    assert!(lines(&found).len() >= 3, "{found}");

    let said = scene.refused("a", &["store", "stats"], 74);
    assert!(said.contains("checksum"), "{said}");
    let said = checked_export(&scene, &["store", "export", "--output=all.jsonl"], 74);
    assert!(said.contains("--skip-damaged"), "{said}");
    assert!(!scene.file("all.jsonl").exists());
    let said =
        checked_export(&scene, &["store", "export", "--output=all.jsonl", "--skip-damaged"], 1);
    assert!(said.contains("2 damages"), "{said}");
    scene.run("b", &["store", "import", "all.jsonl"], 0);
    scene.run("b", &["store", "verify"], 0);
    let seen = work(&scene.store("b"), MESSAGES, true, 0).await;
    assert_eq!(seen.runs, Vec::<String>::new(), "all are duplicates");
}

#[tokio::test]
async fn what_is_of_a_queue_whose_row_is_lost_can_be_saved() {
    for is_there in [true, false] {
        let scene = Scene::new().await;
        scene.harm(b"q", |_, mut value| {
            value[2] ^= 1;
            is_there.then_some(value)
        });
        let export = ["store", "export", "--output=all.jsonl"];
        let said = checked_export(&scene, &export, 74);
        assert!(said.contains("queue 0"), "{said}");
        let said = checked_export(&scene, &[&export[..], &["--skip-damaged"]].concat(), 1);
        assert!(said.contains("1 damages"), "{said}");
        scene.run("b", &["store", "import", "all.jsonl"], 0);
        scene.run("b", &["store", "verify"], 0);
        assert_eq!(scene.stats("b")["queues"][0]["queue"], "lost-0");
        let seen = work(&scene.store("b"), MESSAGES, true, 0).await;
        assert_eq!(seen.runs, Vec::<String>::new(), "all are duplicates");
    }
}

/// Runs an export that says something; gives standard error.
fn checked_export(scene: &Scene, arguments: &[&str], code: i32) -> String {
    let output = scene.command("a", arguments).output().expect("the binary starts");
    checked(arguments, &output, code);
    String::from_utf8(output.stderr).expect("text")
}

#[tokio::test]
async fn a_missing_block_is_found_and_its_neighbours_are_saved() {
    let scene = Scene::new().await;
    for number in 0..3 {
        let id = format!("more-{number}");
        work(&scene.store("a"), &[(&id, "alice", "add")], false, 0).await;
    }
    let blocks = engine(&scene.store("a")).scan_prefix(b"b").keys().count();
    assert!(blocks >= 4, "{blocks}");
    {
        let db = engine(&scene.store("a"));
        let second = db.scan_prefix(b"b").keys().nth(1).expect("a block").expect("it is sound");
        db.remove(second).expect("removed");
        db.flush().expect("flushed");
    }
    let found = scene.run("a", &["store", "verify"], 1);
    assert!(found.contains("block 1 of queue 0") && found.contains("it is missing"), "{found}");
    // What is not there is not told as what was never done.
    fs::write(scene.file("ids.txt"), "more-0\nmore-1\nmore-2\n").expect("written");
    let reconcile = ["reconcile", "--against=ids.txt", "--queue=orders"];
    let said = scene.refused("a", &reconcile, 74);
    assert!(said.contains("block 1 of queue 0"), "{said}");
    let said =
        checked_export(&scene, &["store", "export", "--output=all.jsonl", "--skip-damaged"], 1);
    assert!(said.contains("1 damages"), "{said}");
    scene.run("b", &["store", "import", "all.jsonl"], 0);
    scene.run("b", &["store", "verify"], 0);
    let seen = work(&scene.store("b"), &[("more-2", "alice", "add")], false, 0).await;
    assert_eq!(seen.runs, Vec::<String>::new());
}

#[tokio::test]
async fn a_compacted_store_is_smaller_and_holds_the_same() {
    let scene = Scene::new().await;
    {
        let db = engine(&scene.store("a"));
        for number in 0..20_000_u32 {
            let key = [b"zz", &number.to_be_bytes()[..]].concat();
            db.insert(&key, vec![7; 2000]).expect("written");
        }
        db.flush().expect("flushed");
        for number in 0..20_000_u32 {
            db.remove([b"zz", &number.to_be_bytes()[..]].concat()).expect("removed");
        }
        db.flush().expect("flushed");
    }
    let stats = scene.stats("a");
    let said = scene.run("a", &["store", "compact", "--json"], 0);
    let said = &lines(&said)[0];
    let bytes = |field: &str| said[field].as_u64().expect("a number");
    assert!(bytes("after_bytes") * 2 < bytes("before_bytes"), "{said}");
    assert_eq!(scene.stats("a"), stats);
    scene.run("a", &["store", "verify"], 0);
    let seen = work(&scene.store("a"), MESSAGES, true, 0).await;
    assert_eq!((seen.runs.len(), seen.sink.len()), (0, 1));
}

#[tokio::test]
async fn a_forgotten_message_runs_once_more_and_does_not_repeat_its_steps() {
    let scene = Scene::new().await;
    let forget = |id: &'static str, more: &[&'static str]| {
        [&["forget", id, "--queue=orders", "--reason=the order was wrong"], more].concat()
    };
    let said = scene.run("a", &forget("charge", &["--dry-run"]), 0);
    assert!(said.contains("would be forgotten") && said.contains("1 steps"), "{said}");
    assert_eq!(scene.stats("a")["queues"][0]["forgotten"], 0);
    for id in ["add-1", "charge", "result"] {
        scene.run("a", &forget(id, &[]), 0);
    }
    assert_eq!(scene.stats("a")["queues"][0]["forgotten"], 3);
    let inspected = scene.run("a", &["inspect", "charge", "--queue=orders"], 0);
    assert!(inspected.contains("forgotten by an operator: the order was wrong"), "{inspected}");
    let said = scene.refused("a", &forget("charge", &[]), 1);
    assert!(said.contains("forgotten before"), "{said}");
    let said = scene.refused("a", &forget("nobody", &[]), 1);
    assert!(said.contains("not known"), "{said}");
    scene.refused("a", &["forget", "add-2", "--queue=orders", "--reason="], 2);
    let said = scene.refused("a", &forget("send", &[]), 1);
    assert!(said.contains("let the worker publish it"), "{said}");
    // The large result of the forgotten one is gone with the next worker, and that is no damage.
    let seen = work(&scene.store("a"), MESSAGES, true, 0).await;
    let mut runs = seen.runs;
    runs.sort();
    assert_eq!(runs, ["add-1", "charge", "result"]);
    assert_eq!(seen.charges, 0, "the charge was made before");
    let seen = work(&scene.store("a"), MESSAGES, false, 0).await;
    assert_eq!(seen.runs, Vec::<String>::new());
    scene.run("a", &["store", "verify"], 0);
    scene.run("a", &["store", "export", "--output=all.jsonl"], 0);
    scene.run("b", &["store", "import", "all.jsonl"], 0);
    let seen = work(&scene.store("b"), MESSAGES, false, 0).await;
    assert_eq!(seen.runs, Vec::<String>::new());
}

#[tokio::test]
async fn a_list_of_ids_is_compared_with_what_was_done() {
    let scene = Scene::new().await;
    let reconcile = ["reconcile", "--against=ids.txt", "--queue=orders"];
    let list = |text: &str| fs::write(scene.file("ids.txt"), text).expect("written");
    let all = "add-1\nadd-2\r\n{\"id\":\"large\",\"body\":\"large state\"}\nresult\nsend\n";
    list(&format!("{all}charge\n"));
    let said = scene.run("a", &reconcile, 1);
    assert_eq!(
        lines(&said),
        [serde_json::json!({
            "problem": "failed", "id": "charge", "reason": "rejected", "line": 6
        })]
    );
    scene.run("a", &["forget", "charge", "--queue=orders", "--reason=x"], 0);
    list("add-1\nnobody\n{\"id\":\"large\",\"body\":\"other\"}\ncharge\n{\"id\":7}\nresult\n");
    let said = scene.run("a", &reconcile, 1);
    let problems: Vec<(String, Option<u64>)> = lines(&said)
        .iter()
        .map(|line| (line["problem"].as_str().expect("text").to_owned(), line["line"].as_u64()))
        .collect();
    let expected = [
        ("missing", Some(2)),
        ("different", Some(3)),
        ("forgotten", Some(4)),
        ("unreadable", Some(5)),
        ("extra", None),
        ("extra", None),
    ];
    assert_eq!(problems, expected.map(|(problem, line)| (problem.to_owned(), line)));
    let seen = work(&scene.store("a"), &[("charge", "dave", "nothing")], true, 0).await;
    assert_eq!(seen.runs, ["charge"]);
    list(&format!("{all}charge\n"));
    assert_eq!(scene.run("a", &reconcile, 0), "");
    scene.refused("a", &["reconcile", "--against=nowhere", "--queue=orders"], 1);
    scene.refused("a", &["reconcile", "--against=ids.txt", "--queue=other"], 1);
}

#[tokio::test]
async fn a_store_in_use_or_missing_or_unreadable_has_an_exit_code_of_its_own() {
    let scene = Scene::new().await;
    fs::write(scene.file("ids.txt"), "add-1\n").expect("written");
    fs::write(scene.file("export.jsonl"), "").expect("written");
    let commands: [&[&str]; 7] = [
        &["inspect", "add-1", "--queue=orders"],
        &["store", "stats"],
        &["store", "verify"],
        &["store", "export"],
        &["store", "compact"],
        &["forget", "add-1", "--queue=orders", "--reason=x"],
        &["reconcile", "--against=ids.txt", "--queue=orders"],
    ];
    for command in commands {
        let said = scene.refused("b", command, 1);
        assert!(said.contains("there is no store"), "{said}");
    }
    assert!(!scene.store("b").exists());
    // Nor is one made of a directory that is there.
    fs::create_dir(scene.store("b")).expect("made");
    for command in commands {
        let said = scene.refused("b", command, 1);
        assert!(said.contains("there is no store"), "{said}");
    }
    assert_eq!(fs::read_dir(scene.store("b")).expect("there").count(), 0);
    let lock = File::options().write(true).open(scene.store("a").join("onceward.lock"));
    let lock = lock.expect("there");
    lock.try_lock().expect("it is free");
    // All wait a while for a lock that may be a dead process's.
    let piped = |arguments: &&[&str]| {
        let mut command = scene.command("a", arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let children: Vec<_> = commands.iter().map(piped).collect();
    for (arguments, child) in commands.iter().zip(children) {
        let output = child.wait_with_output().expect("it ends");
        checked(arguments, &output, 69);
        assert!(String::from_utf8_lossy(&output.stderr).contains("in use"), "{output:?}");
    }
    drop(lock);
    scene.run("a", &["store", "verify"], 0);
    // What the engine cannot read at all.
    let conf = scene.store("a").join("conf");
    let garbage = vec![0xff; fs::metadata(&conf).expect("there").len() as usize];
    fs::write(conf, garbage).expect("written");
    for command in commands {
        scene.refused("a", command, 74);
    }
}

#[tokio::test]
async fn a_damaged_step_ends_the_worker_and_settles_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("store");
    let recorder = Recorder::default();
    let broker = MemoryBroker::new();
    broker.declare(QUEUE);
    let worker = || {
        let options = Options::with_broker(Arc::new(broker.clone()), StoreOptions::new(&store));
        Worker::new(options).queue_with(QueueOptions::new(QUEUE), recorder.clone())
    };
    let mut message = Message { routing_key: QUEUE.to_owned(), ..Message::default() };
    message.body = "large step".into();
    message.properties.message_id = Some("a".to_owned());
    assert!(broker.publish(message));
    let ran = async {
        while recorder.runs.lock().expect("not poisoned").len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    worker().run_until(ran).await.expect("the worker ends well");
    {
        let db = engine(&store);
        let mut pieces: Vec<_> =
            db.scan_prefix(b"v").map(|piece| piece.expect("it is sound")).collect();
        assert!(pieces.len() >= 3, "a value in pieces");
        let (key, value) = pieces.pop().expect("a piece");
        let mut value = value.to_vec();
        value[5] ^= 1;
        db.insert(key, value).expect("written");
        db.flush().expect("flushed");
    }
    let ended = timeout(PATIENCE, worker().run_until(std::future::pending())).await;
    let ended = ended.expect("it ends by itself");
    let Err(RunError::StoreFailed(error)) = ended else { panic!("{ended:?}") };
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!((broker.stats().acked, broker.depth(QUEUE)), (0, (1, 0)));
    assert_eq!(recorder.charges.lock().expect("not poisoned").len(), 1);
}
