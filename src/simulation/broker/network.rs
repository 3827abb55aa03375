//! Frames under way between worker and broker, and connections that are lost.
//!
//! One task moves time on: it takes each frame when its time has come. Frames of one connection and direction keep
//! their order. Everything is drawn from the seed of the run, in an order that the run alone decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::history::Event;
use super::super::log::Log;
use super::super::names::Names;
use super::consume::Client;
use super::publish::Publishing;
use super::queues::{Acked, Queues};
use super::routes::Routes;
use super::{lost, ms};
use crate::broker::{BrokerError, Delivery};

/// How good the network is.
#[derive(Clone, Debug)]
pub(in super::super) struct Weather {
    /// Longest time of a frame on its way, in milliseconds.
    pub(in super::super) latency_ms_max: u64,
    /// After how long the broker closes a channel for a message that is not acked.
    pub(in super::super) consumer_timeout_ms: Option<u64>,
}

/// The network, with the broker behind it; clones are handles to the same one.
#[derive(Clone)]
pub(in super::super) struct Network {
    pub(super) log: Log,
    pub(super) names: Arc<Names>,
    inner: Arc<Mutex<Inner>>,
    moved: Arc<Notify>,
}

/// Something that happens when its time has come.
pub(super) enum Frame {
    /// A delivery reaches the worker.
    Arrives(u64, Box<Delivery>),
    Ack {
        channel: u64,
        tag: u64,
        multiple: bool,
    },
    /// The worker closes a channel; asked in a drain, or with the connection.
    Close {
        channel: u64,
        asked: bool,
        done: Arc<Notify>,
    },
    /// The broker may send to the channel.
    Deliver(u64),
    /// The broker finds out that the connection of a channel is gone.
    BrokerNotices(u64),
    WorkerNotices(u64, &'static str),
    /// Is this delivery still unacked?
    TimesOut(u64, u64),
    /// A batch of messages reaches the broker.
    Take(u64),
    /// Its answers reach the worker.
    Answer(u64),
    PublisherNotices(u64),
}

pub(super) struct Inner {
    pub(super) rng: fastrand::Rng,
    pub(super) weather: Weather,
    pub(super) queues: Queues,
    pub(super) routes: Routes,
    /// What workers hold of channels, by channel.
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) publishing: BTreeMap<u64, Publishing>,
    pub(super) next_publishing: u64,
    pub(super) frames: BTreeMap<(Instant, u64), Frame>,
    next_frame: u64,
    pub(super) unreachable_until: Option<Instant>,
    /// Lives that can reach nobody any more.
    pub(super) gone: BTreeSet<u32>,
    pub(super) copies: u64,
}

impl Network {
    pub(in super::super) fn new(log: Log, names: Arc<Names>, weather: Weather, seed: u64) -> Self {
        let inner = Inner {
            rng: fastrand::Rng::with_seed(seed),
            weather,
            queues: Queues::default(),
            routes: Routes::default(),
            clients: BTreeMap::new(),
            publishing: BTreeMap::new(),
            next_publishing: 0,
            frames: BTreeMap::new(),
            next_frame: 0,
            unreachable_until: None,
            gone: BTreeSet::new(),
            copies: 0,
        };
        Self { log, names, inner: Arc::new(Mutex::new(inner)), moved: Arc::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes each frame when its time has come, for ever.
    pub(in super::super) async fn run(self) {
        loop {
            let next = self.lock().frames.first_key_value().map(|((due, _), _)| *due);
            tokio::select! {
                biased;
                () = self.moved.notified() => {}
                () = sleep_until(next) => self.take_due(),
            }
        }
    }

    fn take_due(&self) {
        let now = Instant::now();
        let mut inner = self.lock();
        while let Some(first) = inner.frames.first_entry()
            && first.key().0 <= now
        {
            let frame = first.remove();
            self.take(&mut inner, frame);
        }
        drop(inner);
        self.moved.notify_one();
    }

    /// Has a frame taken after this time.
    pub(super) fn send(&self, inner: &mut Inner, due: Instant, frame: Frame) {
        inner.frames.insert((due, inner.next_frame), frame);
        inner.next_frame += 1;
        self.moved.notify_one();
    }

    /// A handshake.
    pub(super) async fn connect(&self, life: u32) -> Result<(), BrokerError> {
        let (delay_ms, until) = {
            let mut inner = self.lock();
            let latency_ms = inner.latency_ms();
            (1 + 4 * latency_ms, inner.unreachable_until)
        };
        tokio::time::sleep(ms(delay_ms)).await;
        let inner = self.lock();
        if inner.gone.contains(&life) || until.is_some_and(|until| Instant::now() < until) {
            drop(inner);
            return Err(lost("connection refused"));
        }
        Ok(())
    }

    pub(super) fn take(&self, inner: &mut Inner, frame: Frame) {
        match frame {
            Frame::Arrives(channel, delivery) => inner.arrive(channel, Ok(*delivery)),
            Frame::Deliver(channel) => self.deliver(inner, channel),
            Frame::Ack { channel, tag, multiple } => self.ack(inner, channel, tag, multiple),
            Frame::Close { channel, asked, done } => {
                if inner.is_heard(channel) {
                    self.close(inner, channel, asked);
                }
                done.notify_one();
            }
            Frame::BrokerNotices(channel) => self.close(inner, channel, false),
            Frame::WorkerNotices(channel, reason) => inner.arrive(channel, Err(lost(reason))),
            Frame::TimesOut(channel, tag) => {
                if inner.queues.is_outstanding(channel, tag) {
                    inner.routes.counts.consumer_timeouts += 1;
                    self.refuse(inner, channel, "406 PRECONDITION_FAILED: consumer timeout");
                }
            }
            Frame::Take(id) => self.take_published(inner, id),
            Frame::Answer(id) => inner.answer(id),
            Frame::PublisherNotices(id) => inner.break_publishing(id),
        }
    }

    /// Sends to the channel what it may get.
    pub(super) fn deliver(&self, inner: &mut Inner, channel: u64) {
        while let Some(sent) = inner.queues.deliver(channel) {
            let (tag, redelivered) = (sent.tag, sent.redelivered);
            self.log.put(Event::Delivered { channel, tag, redelivered, seen: sent.seen });
            inner.routes.counts.redeliveries += u64::from(redelivered);
            if let Some(timeout_ms) = inner.weather.consumer_timeout_ms {
                let due = Instant::now() + ms(timeout_ms);
                self.send(inner, due, Frame::TimesOut(channel, tag));
            }
            let delivery = Delivery { tag, redelivered, message: sent.message, defect: None };
            if let Some(due) = inner.due_down(channel) {
                self.send(inner, due, Frame::Arrives(channel, Box::new(delivery)));
            }
        }
    }

    fn ack(&self, inner: &mut Inner, channel: u64, tag: u64, multiple: bool) {
        if !inner.is_heard(channel) {
            inner.routes.counts.lost_acks += 1;
            return;
        }
        match inner.queues.ack(channel, tag, multiple) {
            Acked::Taken => {
                self.log.put(Event::Acked { channel, tag, multiple });
                self.deliver(inner, channel);
            }
            Acked::Refused => {
                self.log.put(Event::AckRefused { channel, tag });
                self.refuse(inner, channel, "406 PRECONDITION_FAILED: unknown delivery tag");
            }
            Acked::Unread => {}
        }
    }

    /// The broker closes the channel, and says so.
    fn refuse(&self, inner: &mut Inner, channel: u64, reason: &'static str) {
        if let Some(due) = inner.due_down(channel) {
            self.send(inner, due, Frame::WorkerNotices(channel, reason));
        }
        self.close(inner, channel, false);
    }

    pub(super) fn close(&self, inner: &mut Inner, channel: u64, asked: bool) {
        let (was_open, active) = inner.queues.close(channel);
        if was_open {
            self.log.put(Event::ChannelClosed { channel, asked });
        }
        if let Some(active) = active {
            self.deliver(inner, active);
        }
    }

    /// What the worker has not settled, by queue: waiting and unacked.
    pub(in super::super) fn left(&self) -> Vec<(Arc<str>, usize, usize)> {
        self.lock().queues.left()
    }
}

impl Inner {
    pub(super) fn latency_ms(&mut self) -> u64 {
        self.rng.u64(0..=self.weather.latency_ms_max)
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
