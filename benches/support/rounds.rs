//! Arguments of a bench, and its figures over several rounds: the median with the extremes beside it.

use std::str::FromStr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The value behind `--name` on the command line, as in `cargo bench --bench pipeline -- --messages 50000`.
pub(crate) fn argument<T: FromStr>(name: &str, default: T) -> Result<T> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    match (arguments.next(), arguments.next()) {
        (Some(_), Some(value)) => {
            value.parse().ok().with_context(|| format!("{name} {value:?} is no value for it"))
        }
        (Some(_), None) => anyhow::bail!("{name} needs a value"),
        (None, _) => Ok(default),
    }
}

/// One figure of every round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one; of an even number the lower of the two.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len().saturating_sub(1) / 2;
        self.0.get(middle).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// Median, lowest and highest, with this many decimals.
    pub(crate) fn json(&self, decimals: i32) -> Value {
        json!({
            "median": rounded(self.median(), decimals),
            "min": rounded(self.min(), decimals),
            "max": rounded(self.max(), decimals),
        })
    }
}

impl FromIterator<f64> for Rounds {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        let mut rounds = Self::default();
        figures.into_iter().for_each(|figure| rounds.push(figure));
        rounds
    }
}

pub(crate) fn rounded(figure: f64, decimals: i32) -> f64 {
    let unit = 10f64.powi(decimals);
    (figure * unit).round() / unit
}
