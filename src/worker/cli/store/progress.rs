//! How far a long look at a store is, on a terminal only; and each damage as it is found. On stderr, never on stdout.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::message::escape;
use crate::store::{Damage, Watch};

/// A count that grows on a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `what` are counted.
    pub(crate) fn new(what: &'static str) -> Self {
        // Draws nothing where there is no terminal, and some times a second where there is one.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // The template is a constant; were it wrong, the plain style would do.
        if let Ok(style) = ProgressStyle::with_template("{human_pos} {msg}, {per_sec}, {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    /// Clears the line.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

impl Watch for Progress {
    fn progress(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    fn damaged(&mut self, damage: &Damage) {
        self.bar.suspend(|| super::complain(&escape(damage.to_string().as_bytes())));
    }
}
