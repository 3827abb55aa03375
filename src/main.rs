//! The binary `onceward`.
//!
//! Only starts things: enough stack for every thread, then the command line.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use onceward::STACK_BYTES_MIN;

/// Messages are made by one thread and freed by another, which the system's allocator does slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STACK_VARIABLE: &str = "RUST_MIN_STACK";

fn main() -> ExitCode {
    if !has_stack() {
        return start_again_with_stack();
    }
    onceward::worker::cli::main()
}

fn has_stack() -> bool {
    let stack_bytes = std::env::var(STACK_VARIABLE).ok().and_then(|text| text.parse().ok());
    stack_bytes.is_some_and(|stack_bytes: usize| stack_bytes >= STACK_BYTES_MIN)
}

/// One message with deeply nested headers overflows a thread of the usual size, for as long as it is in its queue.
///
/// The size is read from the environment when the first thread starts and cannot be set safely from inside, so this
/// process replaces itself: same id, same arguments, one variable more.
fn start_again_with_stack() -> ExitCode {
    let failed = match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(STACK_VARIABLE, STACK_BYTES_MIN.to_string())
            .exec(),
        Err(unknown) => unknown,
    };
    eprintln!(
        "onceward: cannot start with {STACK_VARIABLE}={STACK_BYTES_MIN}: {failed}; set it yourself"
    );
    ExitCode::FAILURE
}
