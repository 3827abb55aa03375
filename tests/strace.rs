//! No ack leaves before the record is on stable storage, seen from outside by the system calls of a real worker.
//!
//! With a prefetch of 1 every message has a record, a sync and an ack of its own. In the trace, each ack frame must be
//! preceded, since the ack before it, by a write to the store's log and by an fdatasync of it that has returned.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

mod support;

use support::process::WorkerDir;
use support::rabbitmq::Vhost;

const MESSAGES: usize = 20;

/// One line of the trace, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    LogWritten,
    LogSynced,
    AckSent,
}

/// A `basic.ack` in hexadecimal, as strace shows it: 13 bytes, class 60, method 80.
const ACK: &str = r"\x00\x00\x00\x0d\x00\x3c\x00\x50";

/// The end of a descriptor of sled's log: `/db`.
const LOG: &str = r"\x2f\x64\x62>";

fn calls(trace: &str) -> Vec<Call> {
    let mut syncing = HashSet::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((process, call)) = line.trim_start().split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if call.contains(ACK) {
            calls.push(Call::AckSent);
        } else if call.starts_with("pwrite64(") && call.contains(LOG) {
            calls.push(Call::LogWritten);
        } else if call.starts_with("fdatasync(") && call.contains(LOG) {
            if call.contains("<unfinished") {
                syncing.insert(process.to_owned());
            } else {
                assert!(call.ends_with("= 0"), "{call}");
                calls.push(Call::LogSynced);
            }
        } else if call.starts_with("<... fdatasync resumed>") && syncing.remove(process) {
            assert!(call.ends_with("= 0"), "{call}");
            calls.push(Call::LogSynced);
        }
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ack_frame_leaves_before_the_fdatasync_of_its_record() {
    let strace = Command::new("strace").arg("-V").output();
    assert!(strace.is_ok(), "strace is missing: run `apt-get install -y strace`");
    let vhost = Vhost::new();
    let client = vhost.client().await;
    client.declare_classic("in").await;
    client.publish("in", (0..MESSAGES).map(|number| number.to_string())).await;
    let directory = WorkerDir::new(
        &vhost.url(),
        "[http]\nlisten = \"\"\n[queues.in]\nprefetch = 1\ndeliver = { type = \"log\" }\n",
    );
    let trace = directory.path().join("trace");
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-y",
            "-xx",
            "-s",
            "64",
            "-e",
            "trace=pwrite64,fdatasync,write,writev,sendto,sendmsg",
        ])
        .args(["-o".as_ref(), trace.as_os_str()])
        .args([env!("CARGO_BIN_EXE_onceward"), "run"])
        .current_dir(directory.path());
    let worker = directory.start_as(command);
    worker.wait_for_log("\"consuming\"", Duration::from_secs(60));
    while client.depth("in").await > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // strace passes the signal on to nobody: the worker is its child.
    let ended = Command::new("pkill").args(["-TERM", "-P", &worker.id().to_string()]).status();
    assert!(ended.expect("pkill is there").success());
    worker.wait(Duration::from_secs(40));

    let trace = std::fs::read_to_string(trace).expect("a trace");
    let calls = calls(&trace);
    let acks = calls.iter().filter(|call| **call == Call::AckSent).count();
    assert_eq!(acks, MESSAGES, "each ack is seen in the trace");
    for between in calls.split(|call| *call == Call::AckSent).take(MESSAGES) {
        let written = between.iter().position(|call| *call == Call::LogWritten);
        let synced = between.iter().rposition(|call| *call == Call::LogSynced);
        assert!(
            matches!((written, synced), (Some(written), Some(synced)) if written < synced),
            "an ack without a write and a sync before it: {between:?}"
        );
    }
}
