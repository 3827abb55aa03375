//! Goal: whatever the disk does, the worker goes on or ends with 74 and a line that says what is wrong; nothing that
//! was acknowledged is lost, nothing is acknowledged that is not durable, and what can be read can be saved.
//!
//! Method: the binary on a real broker, its store on file systems that this test mounts and damages, and system calls
//! that strace makes fail or last. Needs root, as mounts do.

#![expect(clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use tokio::time::Instant;

mod scene;
#[path = "../support/mod.rs"]
mod support;

use scene::{Scene, copy, sh};

/// A `basic.ack` in hexadecimal, as strace shows it: 13 bytes, class 60, method 80.
const ACK: &str = r"\x00\x00\x00\x0d\x00\x3c\x00\x50";

/// Messages in a store that is then damaged: the log has several segments.
const FILLED: usize = 700;

/// What strace writes beside a call that it made fail.
const INJECTED: &str = "(INJECTED)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_worker_and_with_room_again_it_goes_on() {
    const FULL: &str = "No space left on device";
    // Before there is a store, and in the middle of a segment of its log.
    for kib in [64, 4500] {
        let mut scene = Scene::new().await;
        scene.mount(&["-t", "tmpfs", "-o", &format!("size={kib}k,mode=0700"), "none"]);
        scene.publish(0..1000, 20_000).await;
        for _ in 0..2 {
            let worker = scene.directory.start();
            scene.fails_stop(worker, FULL);
        }
        scene.remount("size=200m");
        scene.all_is_done(1000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_a_read_only_disk_is_refused_and_one_that_becomes_read_only_stops_the_worker() {
    const READ_ONLY: &str = "Read-only file system";
    let mut scene = Scene::new().await;
    let image = scene.directory.path().join("image");
    sh(Command::new("truncate").args(["-s", "64M"]).arg(&image));
    sh(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    let image = image.to_str().expect("text");
    scene.mount(&["-t", "ext4", "-o", "loop,errors=remount-ro", image]);
    scene.remount("ro");
    let worker = scene.directory.start();
    scene.fails_stop(worker, READ_ONLY);
    scene.remount("rw");

    scene.publish(0..100, 100).await;
    let worker = scene.directory.start();
    worker.wait_for_log("\"consuming\"", scene::PATIENCE);
    scene.until("moving", async || scene.client.depth("out").await > 0).await;
    // As the kernel does when it finds an error: what is open for writing stays open, and fails.
    std::fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", scene.device()), "test")
        .expect("root may do that");
    scene.publish(100..200, 100).await;
    scene.fails_stop(worker, "failed: ");
    scene.unmount();
    sh(Command::new("sh").args(["-c", &format!("e2fsck -p -f {image} || [ $? = 1 ]")]));
    scene.mount(&["-t", "ext4", "-o", "loop", image]);
    scene.all_is_done(200).await;
}

/// Whichever write or sync of whichever thread fails, once or for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_or_sync_stops_the_worker_and_no_ack_follows_it() {
    let faults = [
        ("fdatasync:error=EIO:when=7", "fdatasync: Input/output error"),
        ("fdatasync:error=EIO:when=25+", "fdatasync: Input/output error"),
        ("sync_file_range:error=EIO:when=5", "Input/output error"),
        ("pwrite64:error=ENOSPC:when=9+", "No space left on device"),
        // Once: where sled fills a segment it tells nobody that it failed, and has to be nudged.
        ("pwrite64:error=EIO:when=8", "Input/output error"),
        ("pwrite64:error=EIO:when=10", "Input/output error"),
    ];
    for (fault, told) in faults {
        let scene = Scene::new().await;
        scene.publish(0..250, 40_000).await;
        let worker = scene.start_injected(&format!("inject={fault}"));
        scene.fails_stop(worker, told);
        let trace = scene.trace();
        let failed = trace.find(INJECTED).unwrap_or_else(|| panic!("{fault} did not strike"));
        // A segment's write and the group's are under way together: the group of the other was not synced.
        let is_of_group = fault.starts_with("fdatasync");
        let later = if is_of_group { &trace[failed..] } else { last_sync(&trace[failed..]) };
        assert!(!later.contains(ACK), "{fault}: an ack after the failure");
        scene.all_is_done(250).await;
    }
}

/// What follows the last sync that ended well.
fn last_sync(trace: &str) -> &str {
    let mut synced = 0;
    let mut at = 0;
    for line in trace.split_inclusive('\n') {
        at += line.len();
        if line.contains("fdatasync") && line.trim_end().ends_with("= 0") {
            synced = at;
        }
    }
    &trace[synced..]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_of_two_seconds_costs_time_and_nothing_else() {
    let scene = Scene::new().await;
    scene.publish(0..300, 100).await;
    let started = Instant::now();
    let worker = scene.start_injected("inject=fdatasync:delay_enter=2000000");
    scene.until("moved", async || scene.client.depth("out").await == 300).await;
    scene.all_is_acked().await;
    let acked = started.elapsed();
    // strace passes the signal on to nobody: the worker is its child.
    sh(Command::new("pkill").args(["-TERM", "-P", &worker.id().to_string()]));
    let status = scene.ended(worker);
    assert!(status.success(), "{status}: {}", scene.tail());
    assert_eq!(scene.client.depth("in").await, 0, "nothing is returned");
    let logged = scene.directory.logged();
    assert!(!logged.contains("will connect again"), "{logged}");
    let syncs = scene.trace().matches("(DELAYED)").count();
    println!("300 messages in {acked:?} and {syncs} syncs of 2 s");
    assert!((2..40).contains(&syncs), "{syncs} syncs");
    assert_eq!(scene.downstream().await.len(), 300);
}

/// A store that a worker has filled and left, to be damaged in many ways.
async fn filled() -> (Scene, BTreeMap<String, String>) {
    let scene = Scene::new().await;
    scene.publish(0..FILLED, 3000).await;
    let worker = scene.directory.start();
    worker.wait_for_log("\"consuming\"", scene::PATIENCE);
    scene.until("moved", async || scene.client.depth("out").await as usize == FILLED).await;
    scene.all_is_acked().await;
    scene.stops_well(worker).await;
    let sent = scene.downstream().await;
    assert_eq!(sent.len(), FILLED);
    (scene, sent)
}

/// A damage to the store's files.
type Harm = (&'static str, &'static dyn Fn(&Scene));

/// Damages that the store must not open with.
const HARMS: &[Harm] = &[
    ("the log is cut in half", &|scene| cut(scene, "db", 2)),
    ("the log is empty", &|scene| cut(scene, "db", 0)),
    ("the log is gone", &|scene| {
        std::fs::remove_file(scene.store().join("db")).expect("removed");
        let store = scene.store();
        let snapshots = std::fs::read_dir(store).expect("there").flatten();
        for snapshot in
            snapshots.filter(|entry| entry.file_name().to_string_lossy().starts_with("snap"))
        {
            std::fs::remove_file(snapshot.path()).expect("removed");
        }
    }),
    ("the log is noise", &|scene| {
        let path = scene.store().join("db");
        let length = std::fs::metadata(&path).expect("there").len() as usize;
        std::fs::write(path, vec![0x5a; length]).expect("written");
    }),
    ("the engine's settings are noise", &|scene| {
        std::fs::write(scene.store().join("conf"), [0xff; 20]).expect("written");
    }),
    ("the note is noise", &|scene| {
        std::fs::write(scene.store().join("onceward.note"), "noise").expect("written");
    }),
    ("the note is a directory", &|scene| {
        let note = scene.store().join("onceward.note");
        std::fs::remove_file(&note).expect("removed");
        std::fs::create_dir(note).expect("made");
    }),
];

fn cut(scene: &Scene, name: &str, divisor: u64) {
    let path = scene.store().join(name);
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("there");
    let length = file.metadata().expect("there").len();
    file.set_len(length.checked_div(divisor).unwrap_or(0)).expect("cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_is_refused_with_words_and_never_begins_anew() {
    let (scene, sent) = filled().await;
    let sound = scene.directory.path().join("sound");
    copy(&scene.store(), &sound);
    for (what, harm) in HARMS {
        copy(&sound, &scene.store());
        harm(&scene);
        // Again: a first look must not make it pass for sound.
        for _ in 0..2 {
            if is_refused(&scene).await {
                let verified = scene.onceward(&["store", "verify"]);
                let said = [verified.stdout, verified.stderr].concat();
                let said = String::from_utf8_lossy(&said).into_owned();
                let code = verified.status.code();
                assert!([Some(1), Some(74)].contains(&code), "{what}: {code:?} {said}");
                assert!(!said.contains("panicked"), "{what}: {said}");
            } else {
                // What lives may all lie in what is left of the log.
                assert_eq!(*what, "the log is cut in half");
                knows_all(&scene, &sent).await;
                break;
            }
        }
    }
}

/// Whether a worker does not start on the store, and says in plain words what is wrong with it and what to do.
async fn is_refused(scene: &Scene) -> bool {
    let before = scene.directory.logged().len();
    let mut worker = scene.directory.start();
    let is_consuming = |scene: &Scene| scene.directory.logged()[before..].contains("\"consuming\"");
    scene.until("decided", async || !worker.is_running() || is_consuming(scene)).await;
    scene.has_not_panicked();
    if is_consuming(scene) {
        scene.stops_well(worker).await;
        return false;
    }
    assert_eq!(scene.ended(worker).code(), Some(74), "{}", scene.tail());
    let logged = scene.directory.logged().split_off(before);
    let store = scene.store();
    let is_told = |line: &str| line.contains(&format!("the store {}", store.display()));
    let told = logged.lines().find(|line| is_told(line)).unwrap_or_else(|| panic!("{logged}"));
    let what_to_do = ["put back a copy", "cannot be opened: ", "mend the disk", "run the version"];
    assert!(what_to_do.iter().any(|text| told.contains(text)), "{told}");
    true
}

/// Anywhere in the log: it is noticed, or it changes nothing; and what is sound can be taken to a new store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_is_noticed_or_harmless_and_what_is_sound_can_be_saved() {
    let (scene, sent) = filled().await;
    let sound = scene.directory.path().join("sound");
    copy(&scene.store(), &sound);
    let length = std::fs::metadata(sound.join("db")).expect("there").len();
    let seed = std::env::var("ONCEWARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("ONCEWARD_SEED={seed} cargo test --features testkit --test disk");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut refused, mut saved) = (0, 0);
    let mut tried = 0;
    while tried < 8 || (refused == 0 && tried < 40) {
        copy(&sound, &scene.store());
        let at = random.u64(..length);
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(scene.store().join("db"));
        let file = file.expect("there");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        // Most of a new store's file is not written yet.
        if byte[0] == 0 {
            continue;
        }
        tried += 1;
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
        drop(file);
        let inspected = scene.onceward(&["store", "verify", "--json"]);
        let code = inspected.status.code();
        let said =
            String::from_utf8_lossy(&[inspected.stdout, inspected.stderr].concat()).into_owned();
        assert!(!said.contains("panicked"), "byte {at}: {said}");
        if code == Some(0) {
            // All is there: nothing runs again.
            knows_all(&scene, &sent).await;
            continue;
        }
        refused += 1;
        assert!([Some(1), Some(74)].contains(&code), "byte {at}: {said}");
        assert!(is_refused(&scene).await, "byte {at}: {said}");
        let export = scene.directory.path().join("export.jsonl");
        let _ = std::fs::remove_file(&export);
        let out = format!("--output={}", export.display());
        let exported = scene.onceward(&["store", "export", "--skip-damaged", &out]);
        println!("byte {at} of {length}: {code:?}, export {}", exported.status);
        if exported.status.code() != Some(1) {
            assert_eq!(exported.status.code(), Some(74), "byte {at}: {exported:?}");
            continue;
        }
        saved += 1;
        std::fs::remove_dir_all(scene.store()).expect("removed");
        let imported = scene.onceward(&["store", "import", export.to_str().expect("text")]);
        assert!(imported.status.success(), "byte {at}: {imported:?}");
        let verified = scene.onceward(&["store", "verify"]);
        assert!(verified.status.success(), "byte {at}: {verified:?}");
    }
    println!("{refused} of {tried} refused, {saved} of them saved in part");
    assert!(refused > 0, "no flipped byte was noticed in {tried}");
}

/// The store knows all, and does nothing of it again; what it may send again has the id that it had.
async fn knows_all(scene: &Scene, sent: &BTreeMap<String, String>) {
    let verified = scene.onceward(&["store", "verify"]);
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(said.contains(&format!(" with {FILLED} records: no damage")), "{said}");
    scene.publish(0..FILLED, 3000).await;
    let worker = scene.directory.start();
    worker.wait_for_log("\"consuming\"", scene::PATIENCE);
    scene.all_is_acked().await;
    scene.stops_well(worker).await;
    for (origin, outgoing) in scene.downstream().await {
        assert_eq!(sent.get(&origin), Some(&outgoing), "{origin}");
    }
    let stats = scene.onceward(&["store", "stats"]);
    let said = String::from_utf8_lossy(&stats.stdout).into_owned();
    assert!(said.contains(&FILLED.to_string()), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_two_stores_are_no_store() {
    let ((one, _), (other, _)) = (filled().await, filled().await);
    let sound = one.directory.path().join("sound");
    copy(&one.store(), &sound);
    for name in ["db", "onceward.note"] {
        copy(&sound, &one.store());
        // With its snapshot, the other log is whole in itself.
        if name == "db" {
            for entry in std::fs::read_dir(one.store()).expect("there").flatten() {
                let file = entry.file_name();
                if file.to_string_lossy().starts_with("snap") {
                    std::fs::remove_file(entry.path()).expect("removed");
                }
            }
        }
        std::fs::copy(other.store().join(name), one.store().join(name)).expect("copied");
        let worker = one.directory.start();
        one.fails_stop(worker, "of two different stores");
        let verified = one.onceward(&["store", "verify"]);
        let said = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(said.contains("of two different stores"), "{said}");
    }
}

/// It had other segments, and rows of another shape.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_an_older_format_is_named_as_such() {
    let scene = Scene::new().await;
    drop(sled::Config::new().path(scene.store()).open().expect("it opens"));
    std::fs::write(scene.store().join("onceward.note"), "").expect("written");
    let worker = scene.directory.start();
    scene.fails_stop(worker, "has format 1, this version reads format 2: run the version");
    for command in ["verify", "stats", "export"] {
        let output = scene.onceward(&["store", command]);
        assert_eq!(output.status.code(), Some(74), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("has format 1"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_and_an_import_know_the_duplicates_again() {
    let (scene, sent) = filled().await;
    let export = scene.directory.path().join("export.jsonl");
    let export = export.to_str().expect("text");
    let exported = scene.onceward(&["store", "export", &format!("--output={export}")]);
    assert!(exported.status.success(), "{exported:?}");
    std::fs::remove_dir_all(scene.store()).expect("removed");
    let imported = scene.onceward(&["store", "import", export]);
    assert!(imported.status.success(), "{imported:?}");
    knows_all(&scene, &sent).await;
}
