//! The tasks of the stages that the service spawns: consumers and decider.

use std::sync::Arc;

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::Shared;
use crate::{
    clock::Clock,
    config::Config,
    decider::Decider,
    exporter::{Client, Consumer},
    supervise::{Supervisor, Task},
};

pub(super) fn spawn_consumers(
    config: &Config,
    client: Client,
    shared: &Shared,
    give_up: watch::Receiver<bool>,
) -> JoinSet<()> {
    let consumer = Consumer {
        client,
        queue: Arc::clone(&shared.queue),
        retry: config.exporter.retry.clone(),
        metrics: Arc::clone(&shared.metrics),
        supervisor: Arc::clone(&shared.supervisor),
        clock: Clock::start(),
        give_up,
        leaves: config.durability.as_ref().is_some_and(|it| it.keeps_on_shutdown),
    };
    let mut consumers = JoinSet::new();
    for _ in 0..config.exporter.queue.num_consumers {
        let consumer = consumer.clone();
        let vital = shared.supervisor.vital(Task::Exporter);
        consumers.spawn(vital.over(async move {
            let supervisor = &consumer.supervisor;
            while supervisor.run(Task::Exporter, consumer.clone().run()).await.is_err() {
                if supervisor.keeps_panicking() {
                    return;
                }
            }
        }));
    }
    consumers
}

/// Decides the remaining traces. If a trace makes it panic, only the traces in hand are lost.
pub(super) async fn finish(decider: Option<&mut Decider>, supervisor: &Supervisor) {
    let Some(decider) = decider else { return };
    while supervisor.run(Task::Decider, decider.finish()).await.is_err() {
        decider.recover();
        if supervisor.keeps_panicking() {
            return;
        }
    }
}

/// Runs the decider until it is told to stop, and returns it so that it can finish.
pub(super) async fn decide(
    mut decider: Decider,
    mut stop: oneshot::Receiver<()>,
    supervisor: Arc<Supervisor>,
) -> Decider {
    loop {
        tokio::select! {
            // Stopping comes first: `finish` decides everything that this tick would have decided.
            biased;
            _ = &mut stop => return decider,
            _ = supervisor.run(Task::Decider, decider.run()) => decider.recover(),
        }
    }
}
