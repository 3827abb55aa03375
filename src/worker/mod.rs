//! The stock worker: what turns a `config.toml` into a running runtime without a line of Rust.
//!
//! Owns the delivery targets and the admin server. Knows nothing of sled or lapin; the runtime is used as any
//! embedder uses it.

#[allow(
    dead_code,
    unused_imports,
    reason = "the command line that builds targets comes with its own branch"
)]
pub(crate) mod deliver;

#[allow(
    dead_code,
    unused_imports,
    reason = "the command line that serves it comes with its own branch"
)]
pub(crate) mod admin;
