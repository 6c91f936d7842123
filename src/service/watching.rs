//! The tasks that check files once a second, until the service stops.

use std::sync::Arc;

use tokio::task::{JoinSet, spawn_blocking};

use crate::{
    changes,
    credentials::Watch,
    reload::Reload,
    supervise::{Supervisor, Task},
};

/// Watches credentials if any are configured, and policy files with `watch_policy_files`.
pub(super) fn spawn(
    credentials: Arc<Watch>,
    policies: &Arc<Reload>,
    supervisor: &Arc<Supervisor>,
) -> JoinSet<()> {
    let mut watchers = JoinSet::new();
    if !credentials.is_empty() {
        let look = move || credentials.look();
        watchers.spawn(watch(look, Task::Credentials, Arc::clone(supervisor)));
    }
    if policies.is_watching() {
        let policies = Arc::clone(policies);
        // The reload logs and counts its outcome.
        let look = move || drop(policies.look());
        watchers.spawn(watch(look, Task::Reload, Arc::clone(supervisor)));
    }
    watchers
}

async fn watch(look: impl Fn() + Clone + Send + 'static, task: Task, supervisor: Arc<Supervisor>) {
    let _vital = supervisor.vital(task);
    loop {
        tokio::time::sleep(changes::PERIOD).await;
        // Runs on a blocking thread, because a file system may hang and a worker must not.
        if spawn_blocking(look.clone()).await.is_err() {
            supervisor.panicked(task);
        }
    }
}
