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

/// Whether mimalloc takes memory from the system in large pieces, before it is needed: 48 MB when idle instead of 7.
const EAGER_VARIABLE: &str = "MIMALLOC_ARENA_EAGER_COMMIT";

fn main() -> ExitCode {
    if !has_stack() || std::env::var_os(EAGER_VARIABLE).is_none() {
        return start_again();
    }
    onceward::worker::cli::main()
}

fn has_stack() -> bool {
    let stack_bytes = std::env::var(STACK_VARIABLE).ok().and_then(|text| text.parse().ok());
    stack_bytes.is_some_and(|stack_bytes: usize| stack_bytes >= STACK_BYTES_MIN)
}

/// One message with deeply nested headers overflows a thread of the usual size, for as long as it is in its queue.
///
/// Both variables are read when the process starts and cannot be set safely from inside, so it replaces itself: same
/// id, same arguments, and what the environment does not say already.
fn start_again() -> ExitCode {
    let mut again = match std::env::current_exe() {
        Ok(program) => Command::new(program),
        Err(unknown) => return cannot_start(&unknown),
    };
    again.args(std::env::args_os().skip(1));
    if !has_stack() {
        again.env(STACK_VARIABLE, STACK_BYTES_MIN.to_string());
    }
    if std::env::var_os(EAGER_VARIABLE).is_none() {
        again.env(EAGER_VARIABLE, "0");
    }
    cannot_start(&again.exec())
}

fn cannot_start(failed: &std::io::Error) -> ExitCode {
    eprintln!(
        "onceward: cannot start with {STACK_VARIABLE}={STACK_BYTES_MIN} and {EAGER_VARIABLE}=0: {failed}; set them \
         yourself"
    );
    ExitCode::FAILURE
}
