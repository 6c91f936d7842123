//! `[receiver.kafka]` in the wiring.

use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "kafka")]
use tokio::task::spawn_blocking;

use super::StartError;
#[cfg(feature = "kafka")]
use crate::receiver::kafka;
use crate::{
    config::Config,
    credentials::{ClientSecrets, Live},
    receiver::{
        Intake,
        kafka::{Member, Settings},
    },
};

/// The most partitions that one instance can have.
pub(super) const PARTITIONS_MAX: usize = 4_096;

/// The Kafka receiver of a running service.
#[derive(Debug)]
pub(super) struct Kafka {
    pub(super) member: Arc<Mutex<Member>>,
    /// Absent in a simulation, which feeds the member itself.
    #[cfg(feature = "kafka")]
    client: Option<kafka::Kafka>,
}

impl Kafka {
    pub(super) fn new(config: &Config, intake: &Arc<Intake>) -> Option<Self> {
        let limit_bytes = config.grpc.max_recv_msg_bytes;
        let settings = Settings { encoding: config.kafka.as_ref()?.encoding, limit_bytes };
        let member = Arc::new(Mutex::new(Member::new(intake, settings)));
        Some(Kafka {
            member,
            #[cfg(feature = "kafka")]
            client: None,
        })
    }

    /// Connects to the brokers, in a build that can.
    #[cfg_attr(
        not(feature = "kafka"),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "nothing to connect with")
    )]
    pub(super) fn connect(
        &mut self,
        config: &Config,
        secrets: &Option<Arc<Live<ClientSecrets>>>,
        intake: &Arc<Intake>,
    ) -> Result<(), StartError> {
        #[cfg(feature = "kafka")]
        if let Some(kafka) = &config.kafka {
            let secrets = secrets.clone();
            self.client = Some(kafka::Kafka::start(kafka, secrets, &self.member, intake)?);
        }
        #[cfg(not(feature = "kafka"))]
        let _ = (config, secrets, intake);
        Ok(())
    }

    /// Gives all partitions up.
    pub(super) async fn stop(self) {
        #[cfg(feature = "kafka")]
        if let Some(client) = self.client {
            // The thread may wait for brokers.
            let _ = spawn_blocking(|| client.stop()).await;
        }
        give_up(&self.member);
    }
}

/// Gives all partitions up without a commit: the next owner reads again what is not in one by now.
/// If the thread of the client still waits for brokers, it finds nothing to commit. What the
/// exporter gives up at the end of a shutdown must not be committed.
pub(super) fn give_up(member: &Mutex<Member>) {
    member.lock().unwrap_or_else(PoisonError::into_inner).revoke_all();
}
