//! The stock worker: what the binary `onceward` is made of besides the runtime.
//!
//! Owns the configuration file and the commands of the command line. The runtime knows nothing of
//! it: whoever embeds the library builds [`Options`](crate::Options) and handlers directly.

pub mod cli;
pub mod config;
