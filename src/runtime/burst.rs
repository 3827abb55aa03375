//! How long a queue's deliveries are left to gather before the next ones are taken: pure.
//!
//! Each one that is waited for wakes the consumer, and that wakes threads, which costs more than the message does. So
//! where many come in a short time, the consumer looks again a little later and finds as many at once. Nobody waits
//! where few come, or where no more can come before an ack.

use std::time::Duration;

use tokio::time::Instant;

/// How long they gather; the shortest time that tokio's timer knows.
const REST: Duration = Duration::from_millis(1);

/// Deliveries in so short a time that are many.
const MANY: u32 = 8;

/// Deliveries that were taken since the last look at the time.
#[derive(Debug)]
pub(crate) struct Bursts {
    since: Instant,
    taken: u32,
    /// Until when nothing is taken.
    pub(crate) rest: Option<Instant>,
}

impl Bursts {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { since: now, taken: 0, rest: None }
    }

    pub(crate) const fn took(&mut self) {
        self.taken = self.taken.saturating_add(1);
    }

    /// All that was there is taken; whether more can come, says the caller.
    pub(crate) fn drained(&mut self, now: Instant, can_come: bool) {
        if self.taken >= MANY && can_come {
            self.rest = Some(now + REST);
        } else if now.duration_since(self.since) < REST {
            return;
        }
        (self.since, self.taken) = (now, 0);
    }

    pub(crate) const fn rested(&mut self) {
        self.rest = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(bursts: &mut Bursts, deliveries: u32) {
        (0..deliveries).for_each(|_| bursts.took());
    }

    #[test]
    fn deliveries_gather_only_where_many_come_in_a_short_time() {
        let start = Instant::now();
        let mut bursts = Bursts::new(start);
        let mut now = start;
        for _ in 0..10 {
            took(&mut bursts, MANY - 1);
            now += REST;
            bursts.drained(now, true);
            assert_eq!(bursts.rest, None, "they come one by one");
        }
        took(&mut bursts, MANY - 1);
        bursts.drained(now + REST / 4, true);
        took(&mut bursts, 1);
        now += REST / 2;
        bursts.drained(now, true);
        assert_eq!(bursts.rest, Some(now + REST));
        bursts.rested();
        assert_eq!(bursts.rest, None);
    }

    #[test]
    fn nobody_waits_for_what_cannot_come() {
        let now = Instant::now();
        let mut bursts = Bursts::new(now);
        took(&mut bursts, 10 * MANY);
        bursts.drained(now, false);
        assert_eq!(bursts.rest, None);
    }
}
