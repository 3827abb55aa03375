//! What is in the queue, what the handler does, and how much of it is in flight.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::support::load::Mix;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) mix: Mix,
    pub(crate) handling: Handling,
    pub(crate) prefetch: u16,
}

/// What the handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handling {
    Nothing,
    /// Sleeps on tokio's timer, whose millisecond takes between one and two; all that is in flight may run at once.
    OneMs,
}

pub(crate) const WAIT: Duration = Duration::from_millis(1);
pub(crate) const PREFETCHES: [u16; 2] = [500, 2000];

const KEYS: [u64; 4] = [1, 100, 10_000, 1_000_000];
const TWINS_PERCENT: [u64; 3] = [0, 10, 90];

/// The mix that others are set against.
pub(crate) const MAIN_KEYS: u64 = 10_000;
/// The mix whose groups the raw subjects write again.
pub(crate) const RAW_KEYS: u64 = 1_000_000;

/// How many keys must be at work at once for a case of a handler of 1 ms to get as many messages as the others.
const AT_ONCE_FOR_ALL: u64 = 300;

impl Case {
    pub(crate) const fn plain(keys: u64, prefetch: u16) -> Self {
        Self { mix: Mix { keys, twins_percent: 0 }, handling: Handling::Nothing, prefetch }
    }

    pub(crate) fn name(&self) -> String {
        let Mix { keys, twins_percent } = self.mix;
        let keys = if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") };
        let twins =
            if twins_percent == 0 { String::new() } else { format!(" {twins_percent} % twins") };
        let handling = if self.handling == Handling::OneMs { " 1 ms" } else { "" };
        format!("{keys}{twins}{handling}")
    }

    /// How many messages it gets, so that no case takes much longer than the others.
    pub(crate) fn messages(&self, most: u64) -> u64 {
        let at_once = self.mix.keys.min(u64::from(self.prefetch));
        match self.handling {
            Handling::Nothing => most,
            Handling::OneMs => (most * at_once / AT_ONCE_FOR_ALL).clamp(1, most),
        }
    }

    /// Part of the default run: twins for the main mix only, and 1 ms only without twins and with the larger prefetch.
    const fn is_usual(&self) -> bool {
        let is_main = self.mix.keys == MAIN_KEYS;
        match self.handling {
            Handling::Nothing => self.mix.twins_percent == 0 || is_main,
            Handling::OneMs => self.mix.twins_percent == 0 && self.prefetch > PREFETCHES[0],
        }
    }
}

/// The cases of this matrix, `usual` or `full`, whose names have `only` in them.
pub(crate) fn cases(matrix: &str, only: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for handling in [Handling::Nothing, Handling::OneMs] {
        for twins_percent in TWINS_PERCENT {
            for keys in KEYS {
                let mix = Mix { keys, twins_percent };
                cases.extend(PREFETCHES.map(|prefetch| Case { mix, handling, prefetch }));
            }
        }
    }
    match matrix {
        "usual" => cases.retain(Case::is_usual),
        "full" => {}
        other => bail!("--matrix {other:?} is neither usual nor full"),
    }
    cases.retain(|case| case.name().contains(only));
    Ok(cases)
}
