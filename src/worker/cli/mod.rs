//! The commands of the command line, one file each; `main` only parses and calls them.

pub mod check;
pub mod demo;
mod source;

pub use self::source::ConfigArgs;
