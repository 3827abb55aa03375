//! The keys of a queue that protect what is downstream, its memory, and its place at the broker.
//!
//! Written but empty is none, so that a queue can do without what `[defaults]` says. Whether values fit each other is
//! judged with the other options.

use std::num::NonZeroU32;
use std::time::Duration;

use super::read::Section;
use super::tree::Node;
use super::{units, values};
use crate::options::{BREAKER_FAILURES_MAX, BreakerOptions, QueueOptions, RATE_MAX, RateLimit};

/// Shortest times that mean anything.
const MOMENT: Duration = Duration::from_millis(1);
const CONSUMER_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Less than this is a wrong unit rather than a wish.
const IN_FLIGHT_BYTES_MIN: u64 = 1 << 20;

/// Reads the keys over what holds without them.
pub(crate) fn read(section: &mut Section<'_>, options: &mut QueueOptions) {
    options.breaker = read_breaker(section.section("breaker"), options.breaker);
    for (key, limit) in [("rate", &mut options.rate), ("tenant_rate", &mut options.tenant_rate)] {
        if let Some(read) = section.read(key, |node| optional(node, parse_rate)) {
            *limit = read;
        }
    }
    let timeout = values::duration(CONSUMER_TIMEOUT_MIN);
    let timeout = section.read("consumer_timeout", |node| match values::string(node) {
        Ok(text) if text.is_empty() => Ok(None),
        _ => timeout(node).map(Some),
    });
    if let Some(timeout) = timeout {
        options.consumer_timeout = timeout;
    }
    let bytes = section.read("max_in_flight", values::size(IN_FLIGHT_BYTES_MIN, u64::MAX));
    if let Some(bytes) = bytes {
        options.in_flight_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
}

/// `failures`, `probe` and `max` can be written alone; 0 failures are no breaker.
fn read_breaker(mut section: Section<'_>, base: Option<BreakerOptions>) -> Option<BreakerOptions> {
    let mut breaker = base.unwrap_or_default();
    let failures = section.read("failures", values::integer::<u32>(0, BREAKER_FAILURES_MAX.into()));
    if let Some(failures) = failures.and_then(NonZeroU32::new) {
        breaker.failures = failures;
    }
    for (key, time) in [("probe", &mut breaker.probe), ("max", &mut breaker.max)] {
        if let Some(read) = section.read(key, values::duration(MOMENT)) {
            *time = read;
        }
    }
    section.finish();
    match failures {
        Some(0) => None,
        Some(_) => Some(breaker),
        None => base.map(|_| breaker),
    }
}

fn optional<T>(node: &Node, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    match values::string(node)? {
        text if text.is_empty() => Ok(None),
        text => parse(&text).map(Some),
    }
}

/// Reads `100/s`, `10/m`, `5/h`, each with ` burst 20` behind it or without: then a second's worth, and at least one.
fn parse_rate(text: &str) -> Result<RateLimit, String> {
    let wrong = |problem: &str| {
        format!(r#"{text:?} {problem}; write for example "100/s", "10/m" or "100/s burst 20""#)
    };
    let (rate, burst) = match text.split_once("burst") {
        Some((rate, burst)) => (rate, Some(burst)),
        None => (text, None),
    };
    let (tokens, unit) = rate.split_once('/').ok_or_else(|| wrong("is no rate"))?;
    let number = |number: &str| match number.trim().parse::<u32>() {
        Ok(number) => NonZeroU32::new(number).ok_or_else(|| wrong("has a 0")),
        Err(_) => Err(wrong("has a number that is not whole, or too large")),
    };
    let tokens = number(tokens)?;
    let per = match unit.trim() {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(60 * 60),
        _ => return Err(wrong("is per no unit that is known")),
    };
    let per_second = tokens.get() / u32::try_from(per.as_secs()).unwrap_or(u32::MAX);
    if per_second > RATE_MAX {
        return Err(wrong(&format!("is more than {RATE_MAX}/s")));
    }
    let burst = match burst {
        Some(burst) => number(burst)?,
        None => NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN),
    };
    Ok(RateLimit { tokens, per, burst })
}

/// The rates of a queue, in words.
pub(crate) fn rates(options: &QueueOptions) -> Vec<String> {
    let of = [("", options.rate), (" of each tenant", options.tenant_rate)];
    let limits = of.into_iter().filter_map(|(whose, limit)| Some((whose, limit?)));
    let shown = |(whose, limit): (&str, RateLimit)| {
        let (tokens, per, burst) = (limit.tokens, units::format_duration(limit.per), limit.burst);
        format!("{tokens} attempts{whose} in {per}, {burst} at once")
    };
    limits.map(shown).collect()
}

/// What of the table of this name may be in work for longer than the broker allows, in words.
pub(crate) fn warnings(table: &str, options: &QueueOptions) -> Vec<String> {
    let Some(limit) = options.consumer_timeout else { return Vec::new() };
    let shown = units::format_duration;
    let mut warnings = Vec::new();
    let mut warn = |time: Duration, what: String| {
        if time > limit {
            warnings.push(format!(
                "queues.{table}: {what} can take {}, longer than consumer_timeout = {:?}: the broker takes the queue's messages back \
                 then, and delivers them again",
                shown(time),
                shown(limit),
            ));
        }
    };
    let attempts = options.retry.max_attempts.get();
    let longest = options.timeout.saturating_mul(attempts).saturating_add(options.retry.span());
    warn(longest, format!("{attempts} attempts of one message"));
    let rounds = u32::from(options.prefetch.get())
        .div_ceil(u32::try_from(options.concurrency.get()).unwrap_or(u32::MAX));
    let (prefetch, timeout) = (options.prefetch, shown(options.timeout));
    warn(
        options.timeout.saturating_mul(rounds),
        format!(
            "a prefetch of {prefetch} messages, with {} at once of {timeout} each,",
            options.concurrency
        ),
    );
    warnings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn options(defaults: &str, queue: &str) -> Result<QueueOptions, String> {
        let text =
            format!("[defaults]\n{defaults}\n[queues.q]\ndeliver = {{ type = 'log' }}\n{queue}\n");
        let config = Config::load(Some((Path::new("c.toml"), &text)), [], &[]);
        let mut config = config.map_err(|errors| errors.to_string())?;
        Ok(config.queues.remove(0).options)
    }

    #[test]
    fn a_rate_is_tokens_in_a_time_with_a_burst() {
        let rate = |text| {
            let limit = parse_rate(text).unwrap();
            (limit.tokens.get(), limit.per.as_secs(), limit.burst.get())
        };
        assert_eq!(rate("100/s"), (100, 1, 100));
        assert_eq!(rate("10/m"), (10, 60, 1));
        assert_eq!(rate("7200/h burst 5"), (7200, 3600, 5));
        assert_eq!(rate(" 3 / s  burst  1 "), (3, 1, 1));
        for wrong in ["100", "0/s", "1.5/s", "-1/s", "1/d", "1/s burst", "1/s burst 0", "2000000/s"]
        {
            let problem = parse_rate(wrong).unwrap_err();
            assert!(problem.contains("write for example \"100/s\""), "{problem}");
        }
    }

    #[test]
    fn a_queue_s_own_keys_win_and_empty_is_none() {
        let of = options("", "").unwrap();
        assert_eq!(of.breaker, Some(BreakerOptions::default()));
        assert_eq!((of.rate, of.tenant_rate), (None, None));
        let defaults = "breaker.failures = 0\nrate = '5/s'\nconsumer_timeout = ''";
        let of = options(defaults, "").unwrap();
        assert_eq!((of.breaker, of.consumer_timeout), (None, None));
        assert_eq!(of.rate.map(|rate| rate.tokens.get()), Some(5));
        let own = "breaker = { failures = 3, max = '5m' }\nrate = ''\nconsumer_timeout = '1h'";
        let of = options(defaults, own).unwrap();
        let breaker = of.breaker.unwrap();
        assert_eq!((breaker.failures.get(), breaker.max.as_secs()), (3, 300));
        assert_eq!(breaker.probe, BreakerOptions::default().probe);
        assert_eq!((of.rate, of.consumer_timeout), (None, Some(Duration::from_secs(3600))));
        assert_eq!(options("", "breaker.failures = 0").unwrap().breaker, None);
        assert_eq!(options("", "max_in_flight = '2 MiB'").unwrap().in_flight_bytes_max, 2 << 20);
    }

    #[test]
    fn what_cannot_be_is_said_where_it_is_written() {
        for (wrong, said) in [
            ("rate = '5'", "queues.q.rate"),
            ("tenant_rate = '5/s'", "needs scope = \"header:NAME\""),
            ("breaker = { probe = '1m', max = '1s' }", "is longer than max"),
            ("breaker = { failurs = 3 }", "failures"),
            ("consumer_timeout = '1ms'", "queues.q.consumer_timeout"),
            ("max_in_flight = '10 B'", "queues.q.max_in_flight"),
        ] {
            let problem = options("", wrong).unwrap_err();
            assert!(problem.contains(said), "{wrong}: {problem}");
        }
        assert!(options("", "scope = 'header:t'\ntenant_rate = '5/s'").is_ok());
    }

    #[test]
    fn times_past_the_broker_s_patience_are_warned_of() {
        let of_q = |queue| warnings("q", &options("", queue).unwrap());
        assert_eq!(of_q(""), Vec::<String>::new());
        let slow = of_q("timeout = '10m'");
        assert_eq!(slow.len(), 2, "{slow:?}");
        assert!(
            slow[0].starts_with("queues.q: 10 attempts of one message can take 1h 43m 3s"),
            "{slow:?}"
        );
        assert!(slow[1].contains("64 at once of 10m each, can take 1h 20m"), "{slow:?}");
        assert_eq!(of_q("timeout = '10m'\nconsumer_timeout = ''"), Vec::<String>::new());
    }

    #[test]
    fn rates_are_told_in_words() {
        let of = options("", "scope = 'header:t'\nrate = '9/s'\ntenant_rate = '6/m'").unwrap();
        assert_eq!(
            rates(&of),
            ["9 attempts in 1s, 9 at once", "6 attempts of each tenant in 1m, 1 at once"]
        );
    }
}
