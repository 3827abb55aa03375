//! What runs have met, counted: to see that the mix of faults is a real one.
//!
//! Adds up over runs. Judges nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::broker::Counts;
use super::history::{Call, Ended, Event, History};
use crate::failpoint::Point;

/// How often what happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it is called")]
pub struct Tally {
    pub runs: u64,
    pub lives: u64,
    pub crashes: u64,
    pub power_cuts: u64,
    pub disk_failures: u64,
    pub slow_syncs: u64,
    pub takeovers: u64,
    pub drains: u64,
    pub clock_jumps: u64,
    pub collections: u64,
    /// What is in the history, and what the network has done.
    pub counted: BTreeMap<&'static str, u64>,
    /// How often each point was reached.
    pub reached: BTreeMap<&'static str, u64>,
    /// How often a process died at each.
    pub struck: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn reached(&mut self, point: Point) {
        *self.reached.entry(point.name()).or_default() += 1;
    }

    pub(super) fn struck(&mut self, point: Point) {
        *self.struck.entry(point.name()).or_default() += 1;
    }

    pub(super) fn count(&mut self, what: &'static str, times: u64) {
        *self.counted.entry(what).or_default() += times;
    }

    /// What the network has done.
    pub(super) fn network(&mut self, counts: Counts) {
        let Counts {
            losses,
            publish_losses,
            redeliveries,
            lost_acks,
            consumer_timeouts,
            unroutable,
            refused,
            alarms,
            lost_publishes,
            lost_confirms,
            consumers_waiting,
        } = counts;
        for (what, times) in [
            ("lost connections", losses),
            ("lost publishing connections", publish_losses),
            ("redeliveries", redeliveries),
            ("lost acks", lost_acks),
            ("consumer timeouts", consumer_timeouts),
            ("unroutable", unroutable),
            ("refused", refused),
            ("alarms", alarms),
            ("lost publishes", lost_publishes),
            ("lost confirms", lost_confirms),
            ("waiting consumers", consumers_waiting),
        ] {
            self.count(what, times);
        }
    }

    /// What a history has.
    pub(super) fn history(&mut self, history: &History) {
        self.count("events", history.entries.len() as u64);
        let mut fingerprints = BTreeMap::new();
        for entry in &history.entries {
            match &entry.event {
                Event::Accepted(seen) => {
                    self.count("messages", 1);
                    let known = fingerprints.insert(&seen.name, (seen.fingerprint, &seen.queue));
                    match known {
                        Some((known, queue)) if known == seen.fingerprint => {
                            self.count("twins", 1);
                            self.count("twins in another queue", u64::from(*queue != seen.queue));
                        }
                        Some(_) => self.count("conflicts", 1),
                        None => {}
                    }
                }
                Event::Run { batch, .. } => {
                    self.count("runs", 1);
                    self.count("runs in batches", u64::from(batch.is_some()));
                }
                Event::Called { call, .. } => {
                    self.count("calls", u64::from(*call != Call::Clears));
                    self.count("calls that are cleared", u64::from(*call == Call::Clears));
                }
                Event::Full { is_full: true, .. } => self.count("full stores", 1),
                Event::Full { is_full: false, .. } => self.count("room in full stores again", 1),
                Event::AckRefused { .. } => self.count("406", 1),
                Event::Published { letter, answers, .. } => {
                    self.count("published", 1);
                    self.count("dead letters", u64::from(letter.is_some()));
                    self.count("replies", u64::from(answers.is_some()));
                }
                Event::Commit { written, .. } => {
                    for record in &written.records {
                        match &record.ended {
                            Ended::Done => self.count("done", 1),
                            Ended::Dead(reason) => self.count(dead(reason), 1),
                        }
                    }
                    self.count("done by number", written.passed.len() as u64);
                    self.count("collected records", written.collected.len() as u64);
                }
                _ => {}
            }
        }
    }

    /// Adds those of other runs.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.lives += other.lives;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.disk_failures += other.disk_failures;
        self.slow_syncs += other.slow_syncs;
        self.takeovers += other.takeovers;
        self.drains += other.drains;
        self.clock_jumps += other.clock_jumps;
        self.collections += other.collections;
        let maps = [
            (&mut self.counted, &other.counted),
            (&mut self.reached, &other.reached),
            (&mut self.struck, &other.struck),
        ];
        for (own, other) in maps {
            for (what, times) in other {
                *own.entry(what).or_default() += times;
            }
        }
    }
}

/// The name of a count of dead messages.
fn dead(reason: &str) -> &'static str {
    match reason {
        "decode" => "dead: decode",
        "missing-id" => "dead: missing-id",
        "bad-id" => "dead: bad-id",
        "conflict" => "dead: conflict",
        "too-large" => "dead: too-large",
        "rejected" => "dead: rejected",
        "exhausted" => "dead: exhausted",
        "crash-loop" => "dead: crash-loop",
        "expired" => "dead: expired",
        "in-doubt" => "dead: in-doubt",
        _ => "dead: other",
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = [
            ("runs", self.runs),
            ("lives", self.lives),
            ("crashes", self.crashes),
            ("power cuts at a commit", self.power_cuts),
            ("disk failures", self.disk_failures),
            ("slow syncs", self.slow_syncs),
            ("takeovers", self.takeovers),
            ("drains", self.drains),
            ("clock jumps", self.clock_jumps),
            ("collections", self.collections),
        ];
        for (what, times) in plain {
            writeln!(f, "{times:>12}  {what}")?;
        }
        for (what, times) in &self.counted {
            writeln!(f, "{times:>12}  {what}")?;
        }
        for (point, times) in &self.reached {
            let struck = self.struck.get(point).copied().unwrap_or_default();
            writeln!(f, "{times:>12}  {point}, {struck} crashes there")?;
        }
        Ok(())
    }
}
