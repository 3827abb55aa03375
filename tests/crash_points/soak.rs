//! Kills at random points and times, and faults of the broker, for as long as asked: `scripts/soak`.
