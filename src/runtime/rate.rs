//! Buckets of tokens: one for a queue, one for each tenant that is not at its full rate.
//!
//! Pure: time is an argument. A bucket is the time at which it is full again, and a full one is not kept: the memory of
//! tenants is that of those who ran lately, and it has a limit. Does not wait.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::identity::Identity;
use crate::options::RateLimit;

/// Most tenants that are remembered. With more those that have waited longest for a full bucket get one at once.
const TENANTS_MAX: usize = 64 * 1024;

/// Tenants from which on full buckets are looked for.
const TENANTS_FEW: usize = 1024;

/// Tokens that come back in time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// `None` if it never was less than full.
    full_at: Option<Instant>,
}

impl Bucket {
    /// How long until it has a token.
    pub(crate) fn wait(&self, limit: &RateLimit, now: Instant) -> Duration {
        let Some(full_at) = self.full_at else { return Duration::ZERO };
        let spare = limit.interval().saturating_mul(limit.burst.get() - 1);
        full_at.saturating_duration_since(now).saturating_sub(spare)
    }

    /// Takes tokens. Of more than one those that it has not are owed: who comes next waits for them.
    pub(crate) fn take(&mut self, limit: &RateLimit, tokens: u32, now: Instant) {
        let from = self.full_at.map_or(now, |full_at| full_at.max(now));
        // What is beyond the clock's end is never waited for to its end.
        self.full_at = from.checked_add(limit.interval().saturating_mul(tokens)).or(self.full_at);
    }
}

/// The buckets of tenants, by a hash of who they are.
#[derive(Debug)]
pub(crate) struct TenantBuckets {
    limit: RateLimit,
    buckets: HashMap<Identity, Bucket>,
    /// How many may be kept until full ones are looked for again.
    look_at: usize,
}

impl TenantBuckets {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, buckets: HashMap::new(), look_at: TENANTS_FEW }
    }

    /// How long until the tenant has a token.
    pub(crate) fn wait(&self, tenant: &Identity, now: Instant) -> Duration {
        self.buckets.get(tenant).map_or(Duration::ZERO, |bucket| bucket.wait(&self.limit, now))
    }

    pub(crate) fn take(&mut self, tenant: Identity, tokens: u32, now: Instant) {
        self.buckets.entry(tenant).or_default().take(&self.limit, tokens, now);
        if self.buckets.len() > self.look_at {
            self.forget(now);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.buckets.retain(|_, bucket| bucket.full_at.is_some_and(|full_at| full_at > now));
        if self.buckets.len() > TENANTS_MAX {
            let mut times: Vec<_> = self.buckets.values().filter_map(|of| of.full_at).collect();
            let middle = times.len() / 2;
            let (_, &mut median, _) = times.select_nth_unstable(middle);
            self.buckets.retain(|_, bucket| bucket.full_at.is_some_and(|at| at > median));
        }
        // Twice what is left: so a look at all of them is paid for by as many that came.
        self.look_at = (2 * self.buckets.len()).clamp(TENANTS_FEW, TENANTS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn limit(tokens: u32, per_ms: u64, burst: u32) -> RateLimit {
        let number = |number| NonZeroU32::new(number).unwrap();
        let per = Duration::from_millis(per_ms);
        RateLimit { tokens: number(tokens), per, burst: number(burst) }
    }

    fn tenant(number: u32) -> Identity {
        Identity::from_bytes(u128::from(number).to_le_bytes())
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let (limit, now) = (limit(10, 1000, 3), Instant::now());
        let mut bucket = Bucket::default();
        for _ in 0..3 {
            assert_eq!(bucket.wait(&limit, now), Duration::ZERO);
            bucket.take(&limit, 1, now);
        }
        assert_eq!(bucket.wait(&limit, now), Duration::from_millis(100));
        // A batch is let through by one token and owes the others.
        let now = now + Duration::from_millis(100);
        bucket.take(&limit, 5, now);
        assert_eq!(bucket.wait(&limit, now), Duration::from_millis(500));
        assert_eq!(bucket.wait(&limit, now + Duration::from_secs(9)), Duration::ZERO);
    }

    #[test]
    fn tenants_do_not_wait_for_one_another() {
        let now = Instant::now();
        let mut tenants = TenantBuckets::new(limit(1, 1000, 1));
        tenants.take(tenant(1), 1, now);
        assert_eq!(tenants.wait(&tenant(1), now), Duration::from_secs(1));
        assert_eq!(tenants.wait(&tenant(2), now), Duration::ZERO);
    }

    #[test]
    fn a_flood_of_tenants_is_remembered_in_bounded_memory() {
        let start = Instant::now();
        let mut tenants = TenantBuckets::new(limit(1, 1000, 1));
        for number in 0..100_000 {
            tenants.take(tenant(number), 1, start + Duration::from_millis(number.into()));
        }
        assert!(tenants.buckets.len() <= 2 * TENANTS_FEW, "full ones are dropped");
        // Of those that are never full again only so many.
        let mut tenants = TenantBuckets::new(limit(1, 3_600_000, 1));
        for number in 0..300_000 {
            tenants.take(tenant(number), 1, start + Duration::from_millis(number.into()));
            assert!(tenants.buckets.len() <= TENANTS_MAX + 1);
        }
        let last = start + Duration::from_millis(300_000);
        assert!(tenants.wait(&tenant(299_999), last) > Duration::ZERO, "the latest are kept");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn in_no_stretch_of_time_more_start_than_burst_and_rate_allow(
            tokens in 1..50u32, per_ms in 1..5_000u64, burst in 1..20u32,
            pauses_ms in prop::collection::vec(0..3_000u64, 1..100),
        ) {
            let limit = limit(tokens, per_ms, burst);
            let (start, mut now) = (Instant::now(), Instant::now());
            let mut bucket = Bucket::default();
            let mut starts = Vec::new();
            for pause_ms in pauses_ms {
                now += Duration::from_millis(pause_ms);
                now += bucket.wait(&limit, now);
                prop_assert_eq!(bucket.wait(&limit, now), Duration::ZERO);
                bucket.take(&limit, 1, now);
                starts.push((now - start).as_secs_f64());
            }
            let per_s = 1.0 / limit.interval().as_secs_f64();
            for (first, from) in starts.iter().enumerate() {
                for (last, to) in starts.iter().enumerate().skip(first) {
                    let started = (last - first + 1) as f64;
                    let allowed = f64::from(burst) + (to - from) * per_s;
                    prop_assert!(started <= allowed + 1e-3, "{started} in {}", to - from);
                }
            }
        }
    }
}
