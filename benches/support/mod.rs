//! What the benches share: the machine they ran on, a recorder of metrics, and the spread of figures over rounds.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod machine;
pub(crate) mod recorder;
pub(crate) mod rounds;
