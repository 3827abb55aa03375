//! Each predicate holds of a legal history and is broken in one that differs in one thing.
