//! What the integration tests share: a RabbitMQ node, a vhost for each test, a proxy before it, a raw publisher,
//! workers as processes, a payment ledger.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate of its own and uses its part"
)]

pub mod ledger;
pub mod process;
pub mod proxy;
pub mod rabbitmq;
pub mod raw_amqp;
