//! All cases in each round, in another order each time, and the raw subjects right after the case that they repeat.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::case::{Case, MAIN_KEYS, PREFETCHES, RAW_KEYS};
use crate::drain::drain;
use crate::raw::Raw;
use crate::subject::Subject;
use crate::support::load::Mix;
use crate::support::recorder::Recorder;

pub(crate) struct Matrix {
    cases: Vec<Case>,
    subjects: Vec<Subject>,
    raw: Vec<(Raw, Subject)>,
    messages: u64,
}

impl Matrix {
    pub(crate) fn new(cases: Vec<Case>, messages: u64) -> Self {
        let subject =
            |case: &Case| Subject::new(&case.name(), case.prefetch, case.messages(messages));
        let subjects = cases.iter().map(subject).collect();
        let raw = PREFETCHES.into_iter().flat_map(|prefetch| {
            Raw::ALL.map(|raw| (raw, Subject::new(raw.name(), prefetch, messages)))
        });
        Self { subjects, raw: raw.collect(), cases, messages }
    }

    pub(crate) fn run(&mut self, round: usize, recorder: &Recorder) -> Result<()> {
        let raw_name = Case::plain(RAW_KEYS, 1).name();
        for index in 0..self.cases.len() {
            let index = (index + round) % self.cases.len();
            let (Some(case), Some(subject)) = (self.cases.get(index), self.subjects.get_mut(index))
            else {
                continue;
            };
            let figures = drain(*case, case.messages(self.messages), recorder)
                .with_context(|| format!("{} with prefetch {}", subject.name, case.prefetch))?;
            subject.push(&figures);
            if subject.name == raw_name {
                let same = self.raw.iter_mut().filter(|(_, raw)| raw.prefetch == case.prefetch);
                for (raw, subject) in same {
                    subject.push(&raw.repeat(&figures)?);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn print(&self) {
        let raw = self.raw.iter().map(|(_, subject)| subject);
        let subjects: Vec<&Subject> =
            self.subjects.iter().chain(raw).filter(|subject| subject.was_run()).collect();
        if subjects.is_empty() {
            return;
        }
        for subject in &subjects {
            println!("{}", subject.json());
        }
        let ratios = Self::ratios(&subjects);
        for (name, prefetch, ratio) in &ratios {
            println!("{}", json!({"ratio": name, "prefetch": prefetch, "times": ratio.json(3)}));
        }
        println!("\n{}", Subject::heading());
        for subject in &subjects {
            println!("{}", subject.row());
        }
        println!("\n{:<36} {:>8} {:>8} {:>8} {:>8}", "ratio", "prefetch", "median", "min", "max");
        for (name, prefetch, ratio) in &ratios {
            let (median, min, max) = (ratio.median(), ratio.min(), ratio.max());
            println!("{name:<36} {prefetch:>8} {median:>8.2} {min:>8.2} {max:>8.2}");
        }
    }

    /// Name, prefetch, and the ratio by round, of those that were run.
    fn ratios(subjects: &[&Subject]) -> Vec<(String, u16, crate::support::rounds::Rounds)> {
        let name = |keys, twins_percent| {
            Case { mix: Mix { keys, twins_percent }, ..Case::plain(keys, 1) }.name()
        };
        let pairs = [
            (name(RAW_KEYS, 0), Raw::Journal.name().to_owned()),
            (name(1, 0), name(MAIN_KEYS, 0)),
            (name(MAIN_KEYS, 90), name(MAIN_KEYS, 0)),
        ];
        let mut ratios = Vec::new();
        for (this, that) in pairs {
            for prefetch in PREFETCHES {
                let find = |name: &str| {
                    let of =
                        |subject: &&&Subject| subject.name == *name && subject.prefetch == prefetch;
                    subjects.iter().find(of).copied()
                };
                if let (Some(first), Some(second)) = (find(&this), find(&that)) {
                    ratios.push((format!("{this} / {that}"), prefetch, first.ratio(second)));
                }
            }
        }
        ratios
    }
}
