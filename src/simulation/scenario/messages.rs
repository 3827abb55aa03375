//! What producers send in a run, and when: new messages, twins, other bodies under known ids, and what has no use.

use super::Action;
use super::queues::{BODY_BYTES_MAX, CLASS_HEADER, CLASSES, QueuePlan, REPLIES};
use crate::identity::{ID_BYTES_MAX, OnMissingId, Scope};
use crate::message::{Message, Properties};

/// How far behind its message a twin may come.
const TWIN_MS_MAX: u64 = 20_000;

pub(super) fn draw(
    rng: &mut fastrand::Rng,
    queues: &[QueuePlan],
    span_ms: u64,
) -> Vec<(u64, Action)> {
    let count = rng.usize(5..=60);
    let keys = rng.u64(1..=8);
    let twin_percent = rng.u64(0..40);
    let odd_percent = if rng.bool() { 0 } else { rng.u64(0..20) };
    let mut numbers = [0_u64; 2];
    let mut actions = Vec::new();
    for number in 0..count {
        let Some(plan) = queues.get(rng.usize(..queues.len())) else { break };
        let mut message = message(rng, plan, number, keys);
        if plan.is_numbered {
            count_on(rng, &mut message, &mut numbers);
        }
        let at_ms = rng.u64(0..span_ms);
        let is_odd = rng.u64(0..100) < odd_percent;
        if is_odd && !plan.is_numbered {
            spoil(rng, &mut message, number);
        }
        if rng.u64(0..100) < twin_percent {
            for twin in 0..rng.u64(1..3) {
                let (mut again, to) = elsewhere(rng, queues, plan, &message);
                // Without an id it is none: its body tells which one it is.
                if !has_id(plan, &again) || !has_id(to, &again) {
                    again.body = format!("{number}, {twin} again").into();
                }
                let after_ms = if rng.bool() { rng.u64(0..60) } else { rng.u64(0..TWIN_MS_MAX) };
                actions.push((at_ms + after_ms, publish(again)));
            }
        }
        if rng.u64(0..100) < odd_percent && !plan.is_numbered && has_id(plan, &message) {
            let (mut other, _) = elsewhere(rng, queues, plan, &message);
            other.body = format!("another {number}").into();
            let after_ms = if rng.bool() { rng.u64(0..60) } else { rng.u64(0..TWIN_MS_MAX) };
            actions.push((at_ms + after_ms, publish(other)));
        }
        actions.push((at_ms, publish(message)));
    }
    actions
}

/// The message once more: at times in another queue, if the queues share ids.
fn elsewhere<'a>(
    rng: &mut fastrand::Rng,
    queues: &'a [QueuePlan],
    plan: &'a QueuePlan,
    message: &Message,
) -> (Message, &'a QueuePlan) {
    let is_shared = plan.options.identity.scope != Scope::Queue;
    let other = (is_shared && rng.bool()).then(|| rng.usize(..queues.len()));
    let to = other.and_then(|at| queues.get(at)).unwrap_or(plan);
    (Message { routing_key: to.options.queue.clone(), ..message.clone() }, to)
}

/// Whether it has an id that can be used.
fn has_id(plan: &QueuePlan, message: &Message) -> bool {
    let rules = &plan.options.identity;
    let Message { properties, .. } = message;
    let has_scope = match &rules.scope {
        Scope::Header(name) => properties.headers.contains_key(name),
        Scope::Queue | Scope::Global => true,
    };
    let has_id = match &properties.message_id {
        Some(id) => id.len() <= ID_BYTES_MAX,
        None => rules.on_missing_id == OnMissingId::Fingerprint,
    };
    has_scope && (has_id || plan.is_numbered)
}

fn publish(message: Message) -> Action {
    Action::Publish(Box::new(message))
}

fn message(rng: &mut fastrand::Rng, plan: &QueuePlan, number: usize, keys: u64) -> Message {
    let mut properties = Properties {
        message_id: Some(format!("m{number}")),
        delivery_mode: Some(2),
        content_type: rng.bool().then(|| "text/plain".to_owned()),
        app_id: rng.bool().then(|| "shop".to_owned()),
        ..Properties::default()
    };
    let headers = &mut properties.headers;
    if rng.u8(0..10) > 0 {
        headers.insert("key".to_owned(), format!("k{}", rng.u64(0..keys)).into());
    }
    if matches!(plan.options.identity.scope, Scope::Header(_)) && rng.u8(0..20) > 0 {
        headers.insert("tenant".to_owned(), format!("t{}", rng.u8(0..2)).into());
    }
    if plan.options.retention_by.is_some() && rng.bool() {
        let class = rng.choice(CLASSES).unwrap_or_default();
        headers.insert(CLASS_HEADER.to_owned(), class.into());
    }
    if plan.replies && rng.u8(0..4) > 0 {
        let queue = if rng.u8(0..8) == 0 { "nowhere" } else { REPLIES };
        properties.reply_to = Some(queue.to_owned());
        properties.correlation_id = Some(format!("c{number}"));
    }
    Message {
        exchange: String::new(),
        routing_key: plan.options.queue.clone(),
        properties,
        body: format!("body {number}").into(),
    }
}

/// Gives it the next number of one of the producers; at times one is left out.
fn count_on(rng: &mut fastrand::Rng, message: &mut Message, numbers: &mut [u64; 2]) {
    let producer = rng.usize(..numbers.len());
    let Some(next) = numbers.get_mut(producer) else { return };
    let headers = &mut message.properties.headers;
    headers.insert("producer".to_owned(), format!("p{producer}").into());
    headers.insert("number".to_owned(), next.to_string().into());
    *next += if rng.u8(0..10) == 0 { 2 } else { 1 };
}

/// Makes it one that no handler gets.
fn spoil(rng: &mut fastrand::Rng, message: &mut Message, number: usize) {
    match rng.u8(0..3) {
        0 => message.properties.message_id = None,
        1 => message.body = format!("{number}{}", "x".repeat(BODY_BYTES_MAX)).into(),
        _ => message.properties.message_id = Some("i".repeat(ID_BYTES_MAX + 1)),
    }
}
