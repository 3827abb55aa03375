//! The endpoint that the worker calls: it counts every call with id, key, attempt and time, and judges them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::traffic::Order;

/// One call, as it was seen.
#[derive(Clone, Debug)]
struct Call {
    order: Order,
    key: String,
    effect: String,
    attempt: u32,
    began: Instant,
    /// `None` if the caller has gone away before the answer.
    ended: Option<Instant>,
}

/// A running ledger; ends when dropped.
pub(crate) struct Ledger {
    url: String,
    calls: Calls,
    _server: JoinSet<()>,
}

type Calls = Arc<Mutex<Vec<Call>>>;

/// What must be true of how often a message is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// The process lived: no message is handed over again that was answered.
    Once,
    /// The process was killed: a message may be handed over again, under the same effect key.
    Repeated,
}

impl Ledger {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/calls", listener.local_addr().expect("an address"));
        let calls = Calls::default();
        let router = axum::Router::new()
            .route("/calls", axum::routing::post(answer))
            .with_state(Arc::clone(&calls));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, calls, _server: server }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().expect("nobody panics under it")
    }

    /// Messages that were answered for good.
    pub(crate) fn finished(&self) -> BTreeSet<usize> {
        let calls = self.calls();
        let ended = calls.iter().filter(|call| call.ended.is_some());
        ended.filter(|call| !is_refused(call)).map(|call| call.order.number).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.calls().len()
    }

    /// All that must be true of the calls in the end, but for who was called at all.
    pub(crate) fn check(&self, runs: Runs) {
        let calls = self.calls();
        let mut effects: HashMap<usize, &str> = HashMap::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut sequences: BTreeMap<usize, usize> = BTreeMap::new();
        for call in calls.iter() {
            assert_eq!(call.key, call.order.key.to_string(), "{call:?}");
            let number = call.order.number;
            if let Some(effect) = effects.insert(number, &call.effect) {
                assert_eq!(effect, call.effect, "{number} has two effect keys");
                continue;
            }
            let other = numbers.insert(&call.effect, number);
            assert_eq!(other, None, "{number} shares its effect key");
            let last = sequences.insert(call.order.key, call.order.sequence);
            assert!(last < Some(call.order.sequence), "out of order after {last:?}: {call:?}");
        }
        if runs == Runs::Once {
            check_runs(&calls);
        }
    }
}

/// Each message is run until it is answered for good and never again, and no two of a key at a time.
fn check_runs(calls: &[Call]) {
    let mut by_key: BTreeMap<usize, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        by_key.entry(call.order.key).or_default().push(call);
    }
    for calls in by_key.values() {
        for pair in calls.windows(2) {
            let [before, after] = pair else { unreachable!() };
            let ended = before.ended.expect("its caller has gone away");
            assert!(ended <= after.began, "two at a time: {before:?} and {after:?}");
        }
        let mut attempts: BTreeMap<usize, Vec<&Call>> = BTreeMap::new();
        for call in calls {
            attempts.entry(call.order.number).or_default().push(call);
        }
        for calls in attempts.values() {
            let expected =
                if calls.iter().any(|call| call.order.is_refused_once()) { 2 } else { 1 };
            assert_eq!(calls.len(), expected, "runs of one message: {calls:?}");
            let counted: Vec<u32> = calls.iter().map(|call| call.attempt).collect();
            assert!(counted.windows(2).all(|pair| pair[0] < pair[1]), "{calls:?}");
        }
    }
}

const fn is_refused(call: &Call) -> bool {
    call.order.is_refused_once() && call.attempt == 1
}

/// Takes a little time, and says what the order's number asks for.
async fn answer(State(calls): State<Calls>, headers: HeaderMap, body: String) -> StatusCode {
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_else(|| panic!("{name} is missing in {headers:?}")).to_owned()
    };
    let call = Call {
        order: Order::parse(body.as_bytes()),
        key: header("x-onceward-key"),
        effect: header("idempotency-key"),
        attempt: header("x-onceward-attempt").parse().expect("a number"),
        began: Instant::now(),
        ended: None,
    };
    let order = call.order;
    let refused = is_refused(&call);
    let at = {
        let mut calls = calls.lock().expect("nobody panics under it");
        calls.push(call);
        calls.len() - 1
    };
    // Some take long enough to be under way whatever happens.
    let millis = if order.number.is_multiple_of(40) { 1500 } else { 5 };
    sleep(Duration::from_millis(millis)).await;
    if let Some(call) = calls.lock().expect("nobody panics under it").get_mut(at) {
        call.ended = Some(Instant::now());
    }
    if order.is_bad() {
        StatusCode::BAD_REQUEST
    } else if refused {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}
