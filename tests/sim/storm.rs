//! Faults, one after the other; several storms at once overlap.

use std::{path::Path, sync::Arc, time::Duration};

use tailwater::service::Service;
use tokio::{sync::watch, time::sleep};

use crate::{backend::Backend, journal::Journal, network::Link, policies::SETS};

const HOUR_NANOS: i64 = 3_600_000_000_000;

/// The parts of a run that faults affect.
#[derive(Debug)]
pub struct Storm<'a> {
    pub journal: &'a Arc<Journal>,
    pub service: &'a Service,
    pub backend: &'a Arc<Backend>,
    /// The links of the senders, and last the link to the backend.
    pub links: &'a [Arc<Link>],
    /// Makes the senders crash.
    pub crashes: &'a [watch::Sender<u64>],
    /// The file that policies are read from.
    pub policies: &'a Path,
    pub rng: fastrand::Rng,
    /// Whether there are no faults.
    pub is_calm: bool,
}

impl Storm<'_> {
    /// Causes faults until it is dropped.
    pub async fn blow(mut self) {
        while !self.is_calm {
            self.pause(3_000).await;
            let fault = self.rng.u32(0..11);
            self.journal.note(format_args!("fault {fault}"));
            match fault {
                0 => self.clog().await,
                1 => self.partition_backend().await,
                2 => self.any_link().reset(),
                3 => self.swizzle().await,
                4 => {
                    self.backend.crash();
                    self.pause(20_000).await;
                    self.backend.restart();
                }
                5 => self.backend.set_badness(*self.choice(&[0, 0, 20, 50, 100])),
                6 => {
                    let index = self.rng.usize(0..self.crashes.len());
                    self.crashes[index].send_modify(|crashes| *crashes += 1);
                }
                7 => {
                    let most = *self.choice(&[0, 2, 50, 2_000]);
                    self.any_link().change(|weather| weather.latency_millis = most);
                }
                8 => self.reload(),
                9 => self.reload_garbage(),
                _ => {
                    let drift = self.rng.i64(-HOUR_NANOS..=HOUR_NANOS);
                    let step = *self.choice(&[HOUR_NANOS, -HOUR_NANOS, 1_000_000_000, drift]);
                    self.journal.step_wall(step);
                }
            }
        }
    }

    async fn pause(&mut self, most_millis: u64) {
        sleep(Duration::from_millis(self.rng.u64(0..most_millis))).await;
    }

    fn choice<'c, T>(&mut self, of: &'c [T]) -> &'c T {
        &of[self.rng.usize(0..of.len())]
    }

    fn any_link(&mut self) -> &Arc<Link> {
        &self.links[self.rng.usize(0..self.links.len())]
    }

    /// Clogs one direction of one link for a while.
    async fn clog(&mut self) {
        let (index, direction) = (self.rng.usize(0..self.links.len()), self.rng.usize(0..2));
        self.links[index].change(|weather| weather.clogged[direction] = true);
        self.pause(15_000).await;
        self.links[index].change(|weather| weather.clogged[direction] = false);
    }

    /// Sometimes longer than keep-alive takes to notice.
    async fn partition_backend(&mut self) {
        let link = self.links.last().expect("the backend's");
        link.change(|weather| weather.clogged = [true; 2]);
        self.pause(40_000).await;
        let link = self.links.last().expect("the backend's");
        link.change(|weather| weather.clogged = [false; 2]);
    }

    /// Clogs a random subset of directions one by one, and frees them in another order.
    async fn swizzle(&mut self) {
        let all = (0..self.links.len()).flat_map(|link| [(link, 0), (link, 1)]);
        let mut some: Vec<(usize, usize)> = all.filter(|_| self.rng.bool()).collect();
        for is_clogged in [true, false] {
            self.rng.shuffle(&mut some);
            for &(link, direction) in &some {
                self.links[link].change(|weather| weather.clogged[direction] = is_clogged);
                self.pause(3_000).await;
            }
        }
    }

    fn reload(&mut self) {
        let set = self.rng.usize(0..SETS.len());
        std::fs::write(self.policies, SETS[set].text).expect("written");
        let outcome = self.service.admin().reload.run();
        self.journal.check(outcome.is_ok(), || format!("set {set} was not loaded"));
        self.journal.decide_by(set);
    }

    fn reload_garbage(&mut self) {
        std::fs::write(self.policies, "[[policy]]\nname = 7\n").expect("written");
        let outcome = self.service.admin().reload.run();
        self.journal.check(outcome.is_err(), || "garbage was loaded".into());
    }
}
