//! The faults, each from its beginning to its end; what follows from it is the test's affair.

use std::time::Duration;

use tokio::time::sleep;

use super::scene::Scene;
use super::support::proxy::Net;

/// Longer than two heartbeats of the worker, so that either side gives the other up.
const SILENCE: Duration = Duration::from_secs(4);

/// What goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    BrokerKilled,
    BrokerStopped,
    MemoryAlarm,
    DiskAlarm,
    ConnectionsClosed,
    WorkerStopped,
    WorkerKilled,
    NetCut,
    NetStalled,
    OnlyFromBroker,
    OnlyToBroker,
    NetSlow,
}

impl Fault {
    pub(crate) const ALL: [Self; 12] = [
        Self::BrokerKilled,
        Self::BrokerStopped,
        Self::MemoryAlarm,
        Self::DiskAlarm,
        Self::ConnectionsClosed,
        Self::WorkerStopped,
        Self::WorkerKilled,
        Self::NetCut,
        Self::NetStalled,
        Self::OnlyFromBroker,
        Self::OnlyToBroker,
        Self::NetSlow,
    ];

    /// Whether the worker has to connect again.
    pub(crate) const fn ends_connections(self) -> bool {
        !matches!(self, Self::MemoryAlarm | Self::DiskAlarm | Self::NetSlow)
    }

    /// Strikes, and is over when this returns.
    pub(crate) async fn strike(self, scene: &mut Scene) {
        let node = scene.vhost.node();
        match self {
            Self::BrokerKilled => {
                // RabbitMQ 3.10.8 may lose a quorum queue that was declared a moment before: nobody is answered then.
                sleep(Duration::from_secs(3)).await;
                node.signal("KILL");
                sleep(Duration::from_secs(1)).await;
                blocking(|| node.start_again());
            }
            Self::BrokerStopped => {
                node.signal("STOP");
                sleep(SILENCE).await;
                node.signal("CONT");
            }
            Self::MemoryAlarm => {
                blocking(|| node.ctl(&["set_vm_memory_high_watermark", "absolute", "10MB"]));
                scene.is_blocked().await;
                blocking(|| node.ctl(&["set_vm_memory_high_watermark", "0.4"]));
            }
            Self::DiskAlarm => {
                blocking(|| node.ctl(&["set_disk_free_limit", "9000GB"]));
                scene.is_blocked().await;
                blocking(|| node.ctl(&["set_disk_free_limit", "50MB"]));
            }
            Self::ConnectionsClosed => {
                let vhost = scene.vhost.name();
                blocking(|| node.ctl(&["close_all_connections", "--vhost", vhost, "test"]));
            }
            Self::WorkerStopped => {
                scene.worker().signal("STOP");
                sleep(SILENCE).await;
                scene.worker().signal("CONT");
            }
            Self::WorkerKilled => {
                scene.kill_worker();
                scene.start();
            }
            Self::NetCut => scene.net(Net::Cut, Duration::from_millis(500)).await,
            Self::NetStalled => scene.net(Net::Stalled, SILENCE).await,
            Self::OnlyFromBroker => scene.net(Net::FromBrokerOnly, SILENCE).await,
            Self::OnlyToBroker => scene.net(Net::ToBrokerOnly, SILENCE).await,
            Self::NetSlow => {
                let slow = Net::Slow(Duration::from_millis(150));
                scene.net(slow, SILENCE).await;
            }
        }
    }
}

impl Scene {
    /// The broker takes nothing from those who publish, for a while.
    async fn is_blocked(&self) {
        sleep(SILENCE).await;
        let states = blocking(|| self.vhost.node().ctl(&["list_connections", "state"]));
        assert!(states.contains("block"), "no connection is blocked: {states}");
    }

    /// The net is like this for a while.
    async fn net(&self, net: Net, time: Duration) {
        self.proxy.set(net);
        sleep(time).await;
        self.proxy.set(Net::Sound);
    }
}

/// rabbitmqctl takes a second: the ledger and the proxy go on meanwhile.
pub(crate) fn blocking<T>(run: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(run)
}
