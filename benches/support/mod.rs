//! What the benches share: the machine they ran on, a recorder of metrics, the spread of figures over rounds, and
//! messages that are waiting or offered by a timetable.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod drain;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod offering;
pub(crate) mod recorder;
pub(crate) mod rounds;
pub(crate) mod timed;

/// As the stock binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the stock binary has in its environment, for processes whose memory is measured.
pub(crate) const ALLOCATOR_VARIABLE: (&str, &str) = ("MIMALLOC_ARENA_EAGER_COMMIT", "0");
