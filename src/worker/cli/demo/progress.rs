//! How far the demo is: a bar on a terminal, a plain line every tenth otherwise. On stderr, never on stdout.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

use super::report::thousands;

/// Shows how many orders have ended, and what was done to the runtime meanwhile.
pub(super) struct Progress {
    total: usize,
    /// Tenths of the orders that were told of in plain lines.
    told_tenths: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new(total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let template = "{bar:40} {human_pos} of {human_len} orders, {elapsed}";
            // The template is a constant; were it wrong, the plain style would do.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { total, told_tenths: 0, bar }
    }

    /// So many orders have ended.
    pub(super) fn at(&mut self, ended: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(ended as u64);
            return;
        }
        let tenths = (ended * 10).checked_div(self.total).unwrap_or(10);
        if tenths > self.told_tenths {
            self.told_tenths = tenths;
            let (ended, total) = (thousands(ended as u64), thousands(self.total as u64));
            self.say(&format!("{:>3} %  {ended} of {total} orders", tenths * 10));
        }
    }

    /// Says something beside the bar.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // Progress that nobody reads is no failure.
            None => drop(writeln!(std::io::stderr().lock(), "{line}")),
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
