//! Numbers out of the text that Prometheus reads: the demo shows what an operator would see.
//!
//! Sums over labels. Knows the form of a sample line and no more.

/// The sum of all series of this name; 0 if there is none.
pub(super) fn sum(text: &str, name: &str) -> f64 {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        let (_, value) = rest.rsplit_once(' ')?;
        value.parse::<f64>().ok()
    });
    samples.sum()
}

/// As [`sum`], for a counter.
pub(super) fn count(text: &str, name: &str) -> u64 {
    sum(text, name) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_name_are_added() {
        let text = "# TYPE a_total counter\na_total{queue=\"x y\",reason=\"b\"} 2\n\
            a_total{queue=\"z\"} 3\na_total_more 50\na_seconds_sum 0.25\n";
        assert_eq!(count(text, "a_total"), 5);
        assert_eq!(sum(text, "a_seconds_sum"), 0.25);
        assert_eq!(count(text, "b_total"), 0);
    }
}
