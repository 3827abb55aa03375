//! Goal: the examples prove what they say, and stay small enough to read at once.
//!
//! Method: cargo builds them beside the tests; each is run as a user runs it, on the in-process broker and on
//! RabbitMQ, and must say exactly the lines that its first comment shows.

use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(missing_docs, clippy::indexing_slicing, reason = "a crate of its own to each test file")]
mod support;

const LINES_MAX: usize = 80;

/// Needs a ledger beside it: tests/accounts.rs is one, and kills it again and again.
const RUN_ELSEWHERE: &str = "accounts";

/// What each example says. Effect keys are part of it: they are the same on every store and must stay so.
const EXAMPLES: [(&str, &[&str]); 9] = [
    (
        "minimal",
        &[
            "order-1: 2 x tea",
            "order-2: 1 x cup",
            "order-3: 4 x spoon",
            "published 4 messages, the handler ran 3 times",
        ],
    ),
    (
        "external_call",
        &[
            "payment a, attempt 1: 1250 cents with effect key d82b440203aefdfe5cde6abe53a221db",
            "payment a, attempt 2: 1250 cents with effect key d82b440203aefdfe5cde6abe53a221db",
            "payment b, attempt 1: 300 cents with effect key d18b1e6b8a801eafc9acb17a9c730604",
            "payment b, attempt 2: 300 cents with effect key d18b1e6b8a801eafc9acb17a9c730604",
            "3 messages, 4 calls, 2 charges",
        ],
    ),
    (
        "custom_id",
        &[
            r#"tenant acme, id 7, key ada: {"order":{"id":7}}"#,
            r#"tenant acme, id 8, key ada: {"note":"id in a header"}"#,
            r#"tenant globex, id 7, key ada: {"order":{"id":7}}"#,
            "published 5 messages, the handler ran 3 times",
        ],
    ),
    (
        "payments",
        &[
            "card service: 1250 cents under key c6b3b32df9943fa8740f21873e13d24a",
            "payment a, attempt 1: receipt 1, but the books are closed",
            "payment a, attempt 2: receipt 1 is in the books",
            "card service: 300 cents under key b749a18ff8a63ef4ca9232aad2b03ada",
            "payment b, attempt 1: receipt 2, but the books are closed",
            "payment b, attempt 2: receipt 2 is in the books",
            "3 messages, 4 attempts, 2 calls of the card service",
        ],
    ),
    (
        "inventory",
        &[
            "cup: 5, then 3 in stock",
            "tea: 10, then 6 in stock",
            "published 5 messages, the handler ran 4 times",
        ],
    ),
    (
        "email",
        &[
            "welcome, attempt 1: sent",
            "welcome, attempt 2: asked, it was sent",
            "invoice, attempt 1: not sent",
            "invoice, attempt 2: asked, it was not sent",
            "invoice, attempt 2: sent",
            "2 messages, 2 mails",
        ],
    ),
    (
        "order_saga",
        &[
            "tea: reserve",
            "tea: charge",
            "tea: refund",
            "tea: charge",
            "tea: ship",
            "anvil: reserve",
            "anvil: charge",
            "anvil: ship",
            "anvil: refund",
            "anvil: release",
        ],
    ),
    (
        "request_reply",
        &[
            "seat 1 is given to order-7",
            r#"call 1 of order-7: "seat 1""#,
            r#"call 2 of order-7: "seat 1""#,
            "seat 2 is given to order-8",
            r#"call 1 of order-8: "seat 2""#,
            "3 calls, 2 seats",
        ],
    ),
    (
        "telemetry",
        &[
            "roof/1: 21.5 degrees",
            "roof/2: 21.8 degrees",
            "cellar/1: 12 degrees",
            "roof/4: 22.2 degrees",
            "roof/3: 22 degrees",
            "cellar/2: 12.5 degrees",
            "published 8 messages, the handler ran 6 times",
        ],
    ),
];

#[test]
fn each_example_proves_its_point_on_the_in_process_broker() {
    for (name, expected) in EXAMPLES {
        assert_eq!(run(name, None), expected, "example {name}");
    }
}

#[test]
fn each_example_says_the_same_on_rabbitmq() {
    let vhost = support::rabbitmq::Vhost::new();
    for (name, expected) in EXAMPLES {
        assert_eq!(run(name, Some(&vhost.url())), expected, "example {name}");
    }
}

#[test]
fn each_example_shows_its_output_and_its_command_in_its_first_comment() {
    for (name, expected) in EXAMPLES {
        let source = source(name);
        let shown: Vec<&str> =
            source.lines().filter_map(|line| line.strip_prefix("//! ")).collect();
        let command = format!("$ cargo run --example {name} ");
        assert!(shown.iter().any(|line| line.starts_with(&command)), "{name}: {shown:#?}");
        for line in expected {
            assert!(shown.contains(line), "{name} does not show {line:?}");
        }
    }
}

#[test]
fn each_example_is_short_and_every_example_is_tested() {
    let mut names: Vec<String> = std::fs::read_dir(directory())
        .expect("the examples")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut tested: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
    tested.push(RUN_ELSEWHERE);
    tested.sort_unstable();
    assert_eq!(names, tested);
    for name in names {
        let lines = source(&name).lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines, the limit is {LINES_MAX}");
    }
}

/// The lines that the example prints.
fn run(name: &str, url: Option<&str>) -> Vec<String> {
    let tests = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/this-test -> target/PROFILE/examples/NAME
    let profile = tests.ancestors().nth(2).expect("cargo's directory");
    let program = profile.join("examples").join(name);
    let mut command = Command::new(&program);
    command.env_remove("AMQP_URL").args(url);
    let output = command.output().unwrap_or_else(|error| {
        panic!("{}: {error}; build it: cargo build --examples", program.display())
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "example {name}: {}\n{stderr}", output.status);
    let stdout = String::from_utf8(output.stdout).expect("text");
    stdout.lines().map(str::to_owned).collect()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn source(name: &str) -> String {
    let path = directory().join(format!("{name}.rs"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
