//! Goal: `onceward demo` keeps its word on both brokers, and says so in a form that scripts can read.
//!
//! Method: the binary itself, as a user runs it, with fewer orders; what it prints is judged, not how it got there.

mod support;

use std::process::{Command, Output};

use serde_json::Value;
use support::rabbitmq::Vhost;

fn demo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.arg("demo").args(arguments);
    command.output().expect("the binary starts")
}

fn report(arguments: &[&str]) -> Value {
    let output = demo(arguments);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

fn number(report: &Value, name: &str) -> u64 {
    let number = report[name].as_u64();
    number.unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// What holds of 3,000 orders with 900 twins, whatever the broker.
fn assert_promises_kept(report: &Value) {
    for name in ["effects_doubled", "lost", "order_violations", "wrongly_dead", "left_in_queue"] {
        assert_eq!(number(report, name), 0, "{name}: {report}");
    }
    let exact = [
        ("orders", 3_000),
        ("effects", 2_997),
        ("dead", 3),
        ("connection_losses", 3),
        ("teardowns", 2),
    ];
    for (name, expected) in exact {
        assert_eq!(number(report, name), expected, "{name}: {report}");
    }
    // Of what a teardown finds done and not yet counted, the runtime counts nothing.
    assert!((2_000..=2_997).contains(&number(report, "done")), "{report}");
    assert!(number(report, "redelivered") > 0, "{report}");
    assert!(number(report, "delivered") > number(report, "published"), "{report}");
    assert!(number(report, "duplicates") > 0, "{report}");
    assert!(number(report, "syncs") > 0, "{report}");
    assert_eq!(report["ok"], true);
    for name in ["delivery_to_ack_p50_ms", "delivery_to_ack_p99_ms", "records_per_sync", "seconds"]
    {
        assert!(report[name].as_f64().is_some_and(|measured| measured > 0.0), "{name}: {report}");
    }
}

#[test]
fn every_order_has_its_effect_once_on_the_broker_in_the_process() {
    let store = tempfile::tempdir().expect("a directory");
    let path = store.path().display().to_string();
    let report = report(&["--messages", "3000", "--json", "--seed", "7", "--store", &path]);
    assert_promises_kept(&report);
    assert_eq!(number(&report, "published"), 3_900);
    assert_eq!(number(&report, "seed"), 7);
    assert_eq!(report["broker"], "memory:");
    let kept = std::fs::read_dir(store.path()).expect("kept").count();
    assert!(kept > 0, "--store is kept");
}

#[test]
fn every_order_has_its_effect_once_on_rabbitmq() {
    let vhost = Vhost::new();
    let url = vhost.url();
    let report = report(&["--messages", "3000", "--json", "--broker", &url]);
    assert_promises_kept(&report);
    assert!(number(&report, "published") >= 3_900);
    let broker = report["broker"].as_str().expect("an address");
    assert!(broker.contains(vhost.name()) && !broker.contains("guest:guest"), "{broker}");
}

#[test]
fn people_get_a_table_that_says_what_was_proven() {
    let output = demo(&["--messages", "200", "--keys", "10"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    let last = "every order had its effect once: 0 doubled, 0 lost, 0 out of order";
    assert_eq!(stdout.lines().last(), Some(last));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("(seed ") && stderr.contains("100 %"), "{stderr}");
}

#[test]
fn exit_codes_tell_a_wrong_url_a_broker_that_is_away_and_a_store_that_cannot_be() {
    let code = |arguments: &[&str]| {
        let output = demo(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    };
    let (wrong, stderr) = code(&["--broker", "http://127.0.0.1/"]);
    assert_eq!(wrong, Some(2), "{stderr}");
    let (away, stderr) = code(&["--broker", "amqp://me:hunter2@127.0.0.1:1/%2f"]);
    assert_eq!(away, Some(69), "{stderr}");
    assert!(stderr.contains("scripts/rabbitmq start"), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
    let (no_store, stderr) = code(&["--store", "/dev/null/store"]);
    assert_eq!(no_store, Some(74), "{stderr}");
}
