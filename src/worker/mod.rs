//! The stock worker: what turns a `config.toml` into a running runtime without a line of Rust.
//!
//! Owns the configuration file, the delivery targets, the admin server and the command line. Knows nothing of sled or
//! lapin; the runtime is used as any embedder uses it.

pub(crate) mod admin;
pub mod cli;
pub mod config;
pub(crate) mod deliver;
mod url;
