//! Points that somebody waits at: the names of points, the watcher of this thread, the end of this process.
//!
//! Only in builds with the feature `simulation`. Decides nothing about what a watcher does.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::Point;

impl Point {
    /// Every point, in the order of a message's way.
    pub const ALL: [Self; 16] = [
        Self::Received,
        Self::Claimed,
        Self::LookedUp,
        Self::AttemptRecorded,
        Self::StepStored,
        Self::HandlerReturned,
        Self::Applied,
        Self::Synced,
        Self::AckWritten,
        Self::Published,
        Self::Confirmed,
        Self::DeadLetterPublished,
        Self::OutgoingRemoved,
        Self::Collecting,
        Self::Opening,
        Self::Draining,
    ];

    /// As in `ONCEWARD_CRASH`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Claimed => "claimed",
            Self::LookedUp => "looked-up",
            Self::AttemptRecorded => "attempt-recorded",
            Self::StepStored => "step-stored",
            Self::HandlerReturned => "handler-returned",
            Self::Applied => "applied",
            Self::Synced => "synced",
            Self::AckWritten => "ack-written",
            Self::Published => "published",
            Self::Confirmed => "confirmed",
            Self::DeadLetterPublished => "dead-letter-published",
            Self::OutgoingRemoved => "outgoing-removed",
            Self::Collecting => "collecting",
            Self::Opening => "opening",
            Self::Draining => "draining",
        }
    }
}

type Watcher = Arc<dyn Fn(Point)>;

thread_local! {
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

/// Has `watcher` told of every point that is reached on this thread from now on; `None` ends that.
pub(crate) fn watch(watcher: Option<Watcher>) {
    WATCHER.set(watcher);
}

struct Crash {
    point: Point,
    /// How often it is still reached before the process ends, and once more.
    left: AtomicU64,
}

/// Read once: a process is started to be killed.
fn crash() -> Option<&'static Crash> {
    static CRASH: OnceLock<Option<Crash>> = OnceLock::new();
    CRASH.get_or_init(|| parse(&std::env::var("ONCEWARD_CRASH").ok()?)).as_ref()
}

/// # Panics
///
/// A test that names no point would prove nothing.
fn parse(text: &str) -> Option<Crash> {
    let (name, hit) = text.split_once(':').unwrap_or((text, "1"));
    let point = Point::ALL.into_iter().find(|point| point.name() == name);
    let point = point.unwrap_or_else(|| panic!("ONCEWARD_CRASH: no point {name:?}"));
    let hit = hit.parse().unwrap_or_else(|_| panic!("ONCEWARD_CRASH: {hit:?} is no number"));
    Some(Crash { point, left: AtomicU64::new(hit) })
}

pub(super) fn reached(point: Point) {
    let watcher = WATCHER.with_borrow(Clone::clone);
    if let Some(watcher) = watcher {
        // Not under the borrow: it may end the watch.
        watcher(point);
    }
    if let Some(crash) = crash()
        && crash.point == point
        && crash.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
    }
}
