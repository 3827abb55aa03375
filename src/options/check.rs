//! Options of a queue that contradict each other, or that mean nothing: found before anything runs.
//!
//! Pure. The worker refuses to start with the first one, the stock worker's configuration says all at once; both by the
//! rules here. Whether the options fit the broker's queue is found out when it is consumed.

use std::time::Duration;

use super::{BATCH_MAX, BREAKER_FAILURES_MAX, CLASSES_MAX, OnDuplicate, QueueOptions, RATE_MAX};
use crate::identity::{OnMissingId, Scope, Source};

/// Longest header value of a class in bytes: it is a part of the name under which the store keeps its records.
const CLASS_BYTES_MAX: usize = 255;

/// An option of a queue that cannot be as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue {queue:?}: {option}{} = {value} {problem}", .class.as_ref().map(|class| format!(" of {class:?}")).unwrap_or_default())]
#[non_exhaustive]
pub struct OptionError {
    /// The queue.
    pub queue: String,
    /// The option, by the name of its field.
    pub option: &'static str,
    /// Of [`super::RetentionBy::values`]: the header's value.
    pub class: Option<String>,
    /// What it is set to.
    pub value: Box<str>,
    /// What is wrong with that, and what to do.
    pub problem: Box<str>,
    /// All options that have a part in it.
    pub(crate) involved: &'static [&'static str],
}

impl QueueOptions {
    /// Checks that no option contradicts another and that each means something; a worker does it when it starts.
    ///
    /// # Errors
    ///
    /// The first problem that is found: change the option that it names.
    pub fn check(&self) -> Result<(), OptionError> {
        self.problems(|duration| format!("{duration:?}")).into_iter().next().map_or(Ok(()), Err)
    }

    /// Checks what a handler of batches cannot have besides: it returns no results.
    pub(crate) fn check_for_batches(&self) -> Result<(), OptionError> {
        let mut found = Problems { queue: &self.queue, found: Vec::new() };
        if self.on_duplicate == OnDuplicate::Replay {
            let problem = "has no result to replay: a handler of batches returns none";
            found.add("on_duplicate", &["on_duplicate"], "Replay", problem);
        }
        found.found.pop().map_or(Ok(()), Err)
    }

    /// Everything that is wrong, with durations as `shown` writes them.
    pub(crate) fn problems(&self, shown: impl Fn(Duration) -> String) -> Vec<OptionError> {
        let mut found = Problems { queue: &self.queue, found: Vec::new() };
        self.check_names(&mut found);
        self.check_times(&mut found, &shown);
        self.check_classes(&mut found);
        self.check_identity(&mut found);
        self.check_protection(&mut found, &shown);
        if self.batch.get() > BATCH_MAX {
            found.add("batch", &["batch"], self.batch, format!("is more than {BATCH_MAX}"));
        }
        found.found
    }

    fn check_names(&self, found: &mut Problems<'_>) {
        if self.queue.is_empty() {
            found.add(
                "queue",
                &["queue"],
                "\"\"",
                "is empty; write the queue's name at the broker",
            );
        }
        if self.dead_letter == self.queue {
            let problem = "must not be the queue itself: its dead letters would be consumed again";
            let value = format!("{:?}", self.dead_letter);
            found.add("dead_letter", &["dead_letter", "queue"], value, problem);
        }
    }

    /// A record that leaves before the last attempt of a redelivered message would let it take effect twice.
    fn check_times(&self, found: &mut Problems<'_>, shown: &impl Fn(Duration) -> String) {
        if self.timeout.is_zero() {
            let problem = "would end every attempt as it begins";
            found.add("timeout", &["timeout"], shown(self.timeout), problem);
        }
        let attempts = self.retry.max_attempts.get();
        let span = self.retry.span();
        // Without a timeout nothing is known of runs, and no retention would be enough for them.
        let timeout = (self.timeout < Duration::MAX).then(|| self.timeout.saturating_mul(attempts));
        let longest = span.saturating_add(timeout.unwrap_or_default());
        let runs = timeout.map_or_else(String::new, |_| {
            format!("{attempts} times timeout {} and ", shown(self.timeout))
        });
        let problem = format!(
            "is not longer than all attempts of one message can take, {} ({runs}waits of {}); \
             lengthen retention or shorten retry",
            shown(longest),
            shown(span),
        );
        if self.retention <= longest {
            let involved = &["retention", "timeout", "retry"];
            found.add("retention", involved, shown(self.retention), &problem);
        }
        for (class, retention) in self.retention_by.iter().flat_map(|by| &by.values) {
            if *retention <= longest {
                let involved = &["retention_by", "timeout", "retry"];
                found.add("retention_by", involved, shown(*retention), &problem);
                found.of_class(class);
            }
        }
    }

    fn check_classes(&self, found: &mut Problems<'_>) {
        let Some(by) = &self.retention_by else { return };
        let involved = &["retention_by"];
        let mut add = |value: &str, problem| found.add("retention_by", involved, value, problem);
        if by.header.is_empty() {
            add("header \"\"", "names no header".to_owned());
        }
        if by.values.is_empty() {
            let problem = format!("has no values of {:?}; leave it out", by.header);
            add("{}", problem);
        }
        if by.values.len() > CLASSES_MAX {
            let value = format!("{} values", by.values.len());
            add(&value, format!("are too many, the limit is {CLASSES_MAX}"));
        }
        for class in by.values.keys().filter(|class| class.len() > CLASS_BYTES_MAX) {
            let value = format!("a value of {} bytes", class.len());
            add(&value, format!("is too long, the limit is {CLASS_BYTES_MAX}"));
        }
    }

    fn check_protection(&self, found: &mut Problems<'_>, shown: &impl Fn(Duration) -> String) {
        if let Some(breaker) = &self.breaker {
            let mut add = |value, problem: &str| found.add("breaker", &["breaker"], value, problem);
            if breaker.failures.get() > BREAKER_FAILURES_MAX {
                let problem = format!("is too many, the limit is {BREAKER_FAILURES_MAX}");
                add(format!("failures {}", breaker.failures), &problem);
            }
            if breaker.probe.is_zero() {
                add(format!("probe {}", shown(breaker.probe)), "would try again without a pause");
            }
            if breaker.probe > breaker.max {
                let problem = format!("is longer than max {}", shown(breaker.max));
                add(format!("probe {}", shown(breaker.probe)), &problem);
            }
        }
        for (option, limit) in [("rate", self.rate), ("tenant_rate", self.tenant_rate)] {
            let Some(limit) = limit else { continue };
            let value = format!("{} in {}", limit.tokens, shown(limit.per));
            if limit.per.as_secs_f64() * f64::from(RATE_MAX) < f64::from(limit.tokens.get()) {
                let problem = format!("is more than {RATE_MAX} a second; leave it out");
                found.add(option, &["rate", "tenant_rate"], value, problem);
            }
        }
        let is_of_tenants = matches!(self.identity.scope, Scope::Header(_));
        if let (Some(limit), false) = (self.tenant_rate, is_of_tenants) {
            let value = format!("{} in {}", limit.tokens, shown(limit.per));
            let problem = "needs scope = \"header:NAME\", which says who the tenants are";
            found.add("tenant_rate", &["tenant_rate", "scope"], value, problem);
        }
        if self.consumer_timeout.is_some_and(|limit| limit.is_zero()) {
            let problem = "leaves no time; leave it out if the broker has no limit";
            let involved = &["consumer_timeout"];
            found.add("consumer_timeout", involved, shown(Duration::ZERO), problem);
        }
        if self.in_flight_bytes_max == 0 {
            let problem = "would take in nothing";
            found.add("in_flight_bytes_max", &["max_in_flight"], 0, problem);
        }
    }

    fn check_identity(&self, found: &mut Problems<'_>) {
        let rules = &self.identity;
        if rules.id.is_empty() && rules.on_missing_id == OnMissingId::DeadLetter {
            let problem = "is empty, so every message would be dead-lettered; name a source, or set \
                           on_missing_id = \"fingerprint\"";
            found.add("id", &["id", "on_missing_id"], "[]", problem);
        }
        for source in &rules.id {
            if let Some(problem) = source.id_problem() {
                found.add("id", &["id"], source, problem);
            }
        }
        for source in &rules.key {
            if let Some(problem) = source.key_problem() {
                found.add("key", &["key"], source, problem);
            }
        }
        let mut numbered =
            rules.id.iter().filter(|source| matches!(source, Source::Sequence { .. }));
        if let (OnDuplicate::Replay, Some(source)) = (self.on_duplicate, numbered.next()) {
            let problem = format!(
                "needs a record of each message, and none is kept of those with the id {source}; \
                 take another id, or leave replay out"
            );
            found.add("on_duplicate", &["on_duplicate", "id"], "\"replay\"", problem);
        }
    }
}

struct Problems<'a> {
    queue: &'a str,
    found: Vec<OptionError>,
}

impl Problems<'_> {
    fn add(
        &mut self,
        option: &'static str,
        involved: &'static [&'static str],
        value: impl ToString,
        problem: impl Into<String>,
    ) {
        self.found.push(OptionError {
            queue: self.queue.to_owned(),
            option,
            class: None,
            value: value.to_string().into(),
            problem: problem.into().into(),
            involved,
        });
    }

    /// The problem that was added last is one of this class.
    fn of_class(&mut self, class: &str) {
        if let Some(last) = self.found.last_mut() {
            last.class = Some(class.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroUsize};

    use super::*;
    use crate::options::{BreakerOptions, RateLimit, RetentionBy};

    fn problem(change: impl FnOnce(&mut QueueOptions)) -> String {
        let mut options = QueueOptions::new("orders");
        change(&mut options);
        options.check().unwrap_err().to_string()
    }

    fn retention_by(values: &[(&str, u64)]) -> Option<RetentionBy> {
        let values = values.iter().map(|(value, s)| ((*value).to_owned(), Duration::from_secs(*s)));
        Some(RetentionBy { header: "x-type".to_owned(), values: values.collect() })
    }

    #[test]
    fn the_defaults_contradict_nothing() {
        assert_eq!(QueueOptions::new("orders").check(), Ok(()));
    }

    #[test]
    fn no_retention_is_shorter_than_all_attempts_of_a_message() {
        let longest = Duration::from_millis(10 * 30_000 + 183_500);
        assert_eq!(
            problem(|options| options.retention = longest),
            "queue \"orders\": retention = 483.5s is not longer than all attempts of one message can take, 483.5s \
             (10 times timeout 30s and waits of 183.5s); lengthen retention or shorten retry"
        );
        let of_class = problem(|options| {
            options.retention_by = retention_by(&[("billing", 1_000_000), ("telemetry", 60)]);
        });
        let expected = "queue \"orders\": retention_by of \"telemetry\" = 60s is not longer than";
        assert!(of_class.starts_with(expected), "{of_class}");
        let mut options = QueueOptions::new("orders");
        options.retention = longest + Duration::from_millis(1);
        options.retention_by = retention_by(&[("telemetry", 484)]);
        assert_eq!(options.check(), Ok(()));
        options.timeout = Duration::MAX;
        assert_eq!(options.check(), Ok(()), "without a timeout only waits count");
        options.retry.max_attempts = NonZeroU32::MAX;
        let without_timeout = options.check().unwrap_err().to_string();
        assert!(without_timeout.contains("s (waits of "), "{without_timeout}");
    }

    #[test]
    fn classes_have_a_header_and_values_and_are_few() {
        let classes =
            |values: &[(&str, u64)]| problem(|options| options.retention_by = retention_by(values));
        assert!(classes(&[]).contains("retention_by = {} has no values of \"x-type\""));
        let names: Vec<String> = (0..=CLASSES_MAX).map(|number| number.to_string()).collect();
        let many: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1_000)).collect();
        assert!(classes(&many).contains("65 values are too many"));
        assert!(classes(&[(&"x".repeat(256), 1_000)]).contains("256 bytes is too long"));
        let no_header = problem(|options| {
            let header = String::new();
            options.retention_by =
                retention_by(&[("a", 1_000)]).map(|by| RetentionBy { header, ..by });
        });
        assert!(no_header.contains("header \"\" names no header"), "{no_header}");
    }

    #[test]
    fn what_cannot_be_had_together_is_refused() {
        let sequence = |producer: Source| Source::Sequence {
            producer: producer.into(),
            sequence: Source::Header("n".to_owned()).into(),
        };
        let good = || sequence(Source::Header("p".to_owned()));
        let replay = problem(|options| {
            options.identity.id = vec![Source::MessageId, good()];
            options.on_duplicate = OnDuplicate::Replay;
        });
        assert!(replay.contains("on_duplicate = \"replay\" needs a record"), "{replay}");
        let nested = problem(|options| options.identity.id = vec![sequence(good())]);
        assert!(nested.contains("has a sequence as its producer"), "{nested}");
        let key = problem(|options| options.identity.key = vec![good()]);
        assert!(key.contains(": key = { producer"), "{key}");
        let no_id = problem(|options| options.identity.id.clear());
        assert!(no_id.contains("every message would be dead-lettered"), "{no_id}");
        let routing_key = problem(|options| options.identity.id = vec![Source::RoutingKey]);
        assert!(routing_key.contains("id = routing-key is for ordering keys"), "{routing_key}");
        let own = problem(|options| options.dead_letter = "orders".to_owned());
        assert!(own.contains("dead_letter = \"orders\" must not be the queue itself"), "{own}");
        let batch = problem(|options| options.batch = NonZeroUsize::MAX);
        assert!(batch.ends_with("is more than 100"), "{batch}");
        assert!(problem(|options| options.timeout = Duration::ZERO).contains("timeout = 0ns"));
    }

    #[test]
    fn protection_that_means_nothing_is_refused() {
        let breaker = |change: fn(&mut BreakerOptions)| {
            problem(|options| change(options.breaker.as_mut().expect("on by default")))
        };
        let many = breaker(|breaker| breaker.failures = NonZeroU32::MAX);
        assert!(many.contains("failures 4294967295 is too many"), "{many}");
        let zero = breaker(|breaker| breaker.probe = Duration::ZERO);
        assert!(zero.contains("probe 0ns would try again without a pause"), "{zero}");
        let reversed = breaker(|breaker| breaker.max = Duration::from_millis(1));
        assert!(reversed.contains("probe 1s is longer than max 1ms"), "{reversed}");
        let limit = RateLimit::per_second(NonZeroU32::MIN);
        let tenants = problem(|options| options.tenant_rate = Some(limit));
        assert!(tenants.contains("tenant_rate = 1 in 1s needs scope"), "{tenants}");
        for per in [Duration::ZERO, Duration::from_nanos(1)] {
            let fast = problem(|options| options.rate = Some(RateLimit { per, ..limit }));
            assert!(fast.contains("is more than 1000000 a second"), "{fast}");
        }
        let none = problem(|options| options.consumer_timeout = Some(Duration::ZERO));
        assert!(none.contains("consumer_timeout = 0ns"), "{none}");
        assert!(problem(|options| options.in_flight_bytes_max = 0).contains("take in nothing"));
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let mut options = QueueOptions::new("orders");
        options.retention = Duration::from_secs(1);
        options.retention_by = retention_by(&[("a", 1), ("b", 2)]);
        options.dead_letter = "orders".to_owned();
        let found = options.problems(|_| "x".to_owned());
        let found: Vec<_> =
            found.iter().map(|error| (error.option, error.class.as_deref())).collect();
        let classes = [("retention_by", Some("a")), ("retention_by", Some("b"))];
        assert_eq!(found, [[("dead_letter", None), ("retention", None)], classes].concat());
    }
}
