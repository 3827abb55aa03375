//! The proof of the promise: histories of what happened at a worker's borders, and the one checker that judges them.
//!
//! Feature `simulation`, for this project's own tests. Nothing here believes what a worker says of itself.

mod broker;
mod cast;
pub mod checker;
mod copies;
mod handler;
pub mod history;
mod log;
pub mod model;
mod names;
mod part;
mod run;
mod scenario;
mod stage;
mod step;
mod stored;
mod tally;
mod world;

pub use self::run::{Outcome, run};
pub use self::stored::StoredNames;
pub use self::tally::Tally;
pub use crate::failpoint::Point;
pub use crate::planted::{Bug, plant};
