//! What becomes of panics in the binary: a line in the log, or on standard error where nothing is logged.
//!
//! Whoever logs JSON reads no other text. What a panic leads to is said by who is hit by it.

use std::panic::{PanicHookInfo, set_hook};

use tracing::{debug, error};

use super::complain;

/// Where the code of the store's engine lies: it panics on damaged files, which is caught and reported as damage.
const ENGINE_SOURCES: &str = "/sled-";

/// For the whole process.
pub(super) fn install() {
    set_hook(Box::new(tell));
}

fn tell(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let reason = text.unwrap_or("no reason is given");
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    if at.contains(ENGINE_SOURCES) {
        debug!(at, reason, "the engine of the store gives up");
    } else if tracing::dispatcher::has_been_set() {
        error!(at, reason, "a part of the worker has panicked");
    } else {
        complain(&format_args!("a bug in onceward, please report it: {reason}, at {at}"));
    }
}
