//! The activity on a connection: requests under way and unread answers. It shows whether the
//! connection is idle, and whether its client reads its answers.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use http::{HeaderValue, Response, header::CONNECTION};
use tokio::sync::Notify;

/// Marks an answer whose body may take any time, such as a stream of health changes. Until its end
/// the connection is not idle, even if it sends nothing for hours.
#[derive(Clone, Debug, Default)]
pub(crate) struct LongLived(pub(super) Arc<Leash>);

impl LongLived {
    /// An answer whose sender may close the connection.
    pub(crate) fn on(leash: Arc<Leash>) -> Self {
        LongLived(leash)
    }
}

/// Closes the connection of an answer that nobody reads. HTTP/2 cannot end only that stream,
/// because the end would wait behind the unread data.
#[derive(Debug, Default)]
pub(crate) struct Leash(pub(super) OnceLock<Weak<Activity>>);

impl Leash {
    /// Closes the connection.
    pub(crate) fn hang_up(&self) {
        if let Some(activity) = self.0.get().and_then(Weak::upgrade) {
            activity.hang_up.notify_one();
        }
    }
}

/// The requests under way, the unread answers, and the number of requests and answers so far. It
/// tells an idle connection from one that does not read its answers.
#[derive(Debug, Default)]
pub(super) struct Activity {
    pub(super) under_way: Arc<AtomicUsize>,
    pub(super) begun: AtomicU64,
    pub(super) unread: AtomicUsize,
    pub(super) answered: AtomicU64,
    /// Set for an HTTP/1.1 connection that must close after its next answer.
    pub(super) is_old: AtomicBool,
    /// Set once its client was told to close.
    pub(super) was_told: AtomicBool,
    /// Notified when an answer is not read and its sender gives up.
    pub(super) hang_up: Notify,
}

impl Activity {
    /// Whether a request is under way or an answer is still unwritten.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way.load(Relaxed) > 0 || self.unread.load(Relaxed) > 0
    }

    /// Tells the client of an old HTTP/1.1 connection to open another one.
    pub(super) fn tell<B>(&self, response: &mut Response<B>) {
        if self.is_old.load(Relaxed) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            self.was_told.store(true, Relaxed);
        }
    }
}

/// Counts one request under way until it is dropped, which also happens if the client leaves before
/// the answer.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn one_more(number: &Arc<AtomicUsize>) -> Self {
        number.fetch_add(1, Relaxed);
        Counted(Arc::clone(number))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Counts one unread answer until it is dropped.
pub(super) struct Unread(Arc<Activity>);

impl Unread {
    pub(super) fn one_more(activity: &Arc<Activity>) -> Self {
        activity.unread.fetch_add(1, Relaxed);
        Unread(Arc::clone(activity))
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Relaxed);
        self.0.answered.fetch_add(1, Relaxed);
    }
}
