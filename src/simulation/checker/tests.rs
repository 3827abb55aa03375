//! Each predicate holds of a legal history, and is broken in one that differs from it in one thing.

mod ends;
mod lives;
mod order;
mod sends;
mod story;

use self::story::{Story, message};

/// What would pass unseen if the checker grew slower with each entry: the simulation makes 20,000 histories.
#[test]
fn the_checker_takes_a_time_in_proportion_to_the_history() {
    let took = |messages: u64| {
        let mut story = Story::new();
        for number in 0..messages {
            let seen = message(&format!("t{number}"), Some(&format!("k{}", number % 7)));
            story.works_off(number + 1, &seen);
        }
        story.rest();
        let best = (0..7).map(|_| {
            #[expect(clippy::disallowed_methods, reason = "the time that it really takes")]
            let begun = std::time::Instant::now();
            story.holds();
            begun.elapsed()
        });
        best.min().unwrap_or_default()
    };
    let (short, long) = (took(60), took(960));
    println!("{short:?} for 60 messages of 8 entries each, {long:?} for 960");
    assert!(long < short * 16 * 4, "{long:?} for 960 messages, {short:?} for 60");
}
