//! The binary `onceward`.
//!
//! Only starts things: enough stack for every thread, an allocator that takes memory as it is needed, then the command
//! line.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use onceward::STACK_BYTES_MIN;

/// Messages are made by one thread and freed by another, which the system's allocator does slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Whether mimalloc takes memory from the system in large pieces, before it is needed.
///
/// What is in the environment already stands, and for this alone the process does not start again: it works either way.
const EAGER_VARIABLE: &str = "MIMALLOC_ARENA_EAGER_COMMIT";

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
/// process replaces itself: same id, same arguments, one variable more, and what the allocator reads then.
fn start_again_with_stack() -> ExitCode {
    let eager = std::env::var_os(EAGER_VARIABLE).unwrap_or_else(|| "0".into());
    let failed = match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(STACK_VARIABLE, STACK_BYTES_MIN.to_string())
            .env(EAGER_VARIABLE, eager)
            .exec(),
        Err(unknown) => unknown,
    };
    eprintln!(
        "onceward: cannot start with {STACK_VARIABLE}={STACK_BYTES_MIN}: {failed}; set it yourself"
    );
    ExitCode::FAILURE
}
