//! What an operator sees: health here, metrics beside it. Emits through facades and installs nothing.

mod health;

pub use self::health::{Health, Readiness};
