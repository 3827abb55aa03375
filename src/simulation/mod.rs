//! The proof of the promise: histories of what happened at a worker's borders, and the one checker that judges them.
//!
//! Feature `simulation`, for this project's own tests. Nothing here believes what a worker says of itself.

pub mod checker;
pub mod history;
pub mod model;

pub use crate::failpoint::Point;
pub use crate::planted::Bug;
