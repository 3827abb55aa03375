//! Each predicate holds of a legal history, and is broken in one that differs from it in one thing.

mod ends;
mod lives;
mod order;
mod protect;
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
        // Of a time that is shared with others only what is its own, and enough of it to be measured.
        let times = 1920 / messages;
        let begun = own_ns();
        (0..times).for_each(|_| story.holds());
        (own_ns() - begun) / times
    };
    let (short, long) = (took(60), took(960));
    println!("{short} ns for 60 messages of 7 entries each, {long} ns for 960");
    assert!(long < short * 16 * 3, "{long} ns for 960 messages, {short} ns for 60");
}

/// Time that this thread has had of a processor.
fn own_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
    let first = text.split_whitespace().next().expect("three numbers");
    first.parse().expect("a number")
}
