//! What all handles of a client share, and the work in the background that keeps it fresh.

use crate::buckets::BucketCache;
use crate::call::{Attempt, Target, Verb};
use crate::directory::Directory;
use crate::health::{Health, Hedges};
use crate::open_reads::OpenReads;
use crate::pool::Pool;
use crate::session::Session;
use crate::silence::Silence;
use crate::{ClientConfig, Failure};
use arc_swap::ArcSwap;
use ashlar_host::{Host, Monotonic, TaskKind};
use ashlar_placement::Chooser;
use ashlar_types::{
    ClusterMap, RootAnswer, RootCommand, RootOp, RootOutcome, RootQuery, SessionId, decode, encode,
};
use ashlar_wire::Dialer;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Memory is given out in pages of this size.
const MEMORY_PAGE_BYTES: u64 = 4096;
/// Between two looks at sessions that may be ended.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// What all handles of a client share.
pub(crate) struct Inner {
    pub(crate) host: Host,
    pub(crate) dialer: Dialer,
    pub(crate) config: ClientConfig,
    pub(crate) map: ArcSwap<ClusterMap>,
    /// The rings of that map.
    pub(crate) chooser: ArcSwap<Chooser>,
    pub(crate) directory: Directory,
    /// When the directory was last read: held while it is being read, so that one reads for all.
    pub(crate) directory_refreshed: AsyncMutex<Option<Monotonic>>,
    pub(crate) buckets: BucketCache,
    pub(crate) health: Health,
    pub(crate) silence: Silence,
    pub(crate) hedges: Hedges,
    pub(crate) pool: Arc<Pool>,
    pub(crate) reads: Arc<OpenReads>,
    map_wanted: Notify,
    map_epoch: watch::Sender<u64>,
    session: AsyncMutex<Option<Arc<Session>>>,
    /// Sessions that take nothing new; ended when nobody uses them any more.
    retired: Mutex<Vec<Arc<Session>>>,
    memory: Arc<Semaphore>,
    memory_pages: u32,
}

impl Inner {
    pub(crate) fn new(host: Host, dialer: Dialer, config: ClientConfig) -> Arc<Self> {
        let memory_pages = u32::try_from(config.memory_bytes / MEMORY_PAGE_BYTES)
            .unwrap_or(u32::MAX)
            .clamp(1, u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Arc::new(Self {
            map: ArcSwap::default(),
            chooser: ArcSwap::from_pointee(Chooser::new(&ClusterMap::default())),
            directory: Directory::default(),
            directory_refreshed: AsyncMutex::default(),
            buckets: BucketCache::default(),
            health: Health::default(),
            silence: Silence::default(),
            hedges: Hedges::default(),
            pool: Pool::new(config.memory_bytes),
            reads: Arc::default(),
            map_wanted: Notify::new(),
            map_epoch: watch::Sender::new(0),
            session: AsyncMutex::default(),
            retired: Mutex::default(),
            memory: Arc::new(Semaphore::new(memory_pages as usize)),
            memory_pages,
            host,
            dialer,
            config,
        })
    }

    /// Starts what runs in the background: it ends with the node, or with the last handle.
    pub(crate) fn start(self: &Arc<Self>) {
        let spawn = |name, work: BoxFuture<'static, ()>| {
            let stopped = self.host.shutdown.requested();
            let until_stopped = async move {
                tokio::select! {
                    biased;
                    () = stopped => {}
                    () = work => {}
                }
            };
            drop(self.host.tasks.spawn(TaskKind::Background(name), Box::pin(until_stopped)));
        };
        spawn("cluster map", Box::pin(keep_map(Arc::downgrade(self))));
        spawn("disk pings", Box::pin(crate::health::keep_pinging(Arc::downgrade(self))));
        spawn("session ends", Box::pin(keep_tidy(Arc::downgrade(self))));
    }

    /// A command to the root, until it is answered.
    pub(crate) async fn root(&self, op: RootOp) -> Result<RootOutcome, Failure> {
        self.send_root(&self.root_command(op)).await
    }

    /// The nonce makes resends recognisable.
    pub(crate) fn root_command(&self, op: RootOp) -> RootCommand {
        RootCommand { nonce: self.host.random.next_u128(), op }
    }

    pub(crate) async fn send_root(&self, command: &RootCommand) -> Result<RootOutcome, Failure> {
        let mut attempt = Attempt::new(self);
        let body = Bytes::from(encode(command));
        let answered = self.call(Target::Root, Verb::Execute, body, &mut attempt).await;
        let answered = answered.map_err(|unanswered| attempt.give_up(unanswered.to_string()))?;
        match decode::<RootOutcome>(&answered.body) {
            Ok(RootOutcome::Refused(refusal)) => Err(Failure::Root(refusal)),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(Failure::unknown(error.to_string())),
        }
    }

    pub(crate) async fn root_query(&self, query: RootQuery) -> Result<RootAnswer, Failure> {
        let mut attempt = Attempt::new(self);
        let body = Bytes::from(encode(&query));
        let answered = self.call(Target::Root, Verb::Query, body, &mut attempt).await;
        let answered =
            answered.map_err(|unanswered| Failure::unavailable(unanswered.to_string()))?;
        match decode::<RootAnswer>(&answered.body)? {
            RootAnswer::NotBootstrapped => Err(Failure::unavailable("there is no cluster yet")),
            answer => Ok(answer),
        }
    }

    /// Asks for the map soon: something has shown that it is old.
    pub(crate) fn want_map(&self) {
        self.map_wanted.notify_one();
    }

    /// Waits until the map satisfies `wanted`, or for `patience`.
    pub(crate) async fn map_where(
        &self,
        patience: Duration,
        wanted: impl Fn(&ClusterMap) -> bool,
    ) -> bool {
        let mut epochs = self.map_epoch.subscribe();
        let found = async {
            loop {
                if wanted(&self.map.load()) {
                    return true;
                }
                self.want_map();
                if epochs.changed().await.is_err() {
                    return false;
                }
            }
        };
        self.host.clock.timeout(patience, found).await.unwrap_or(false)
    }

    async fn fetch_map(&self) {
        let have = self.map.load().epoch;
        let newer_than = (have.0 > 0).then_some(have);
        match self.root_query(RootQuery::Map { newer_than }).await {
            Ok(RootAnswer::Map(Some(map))) => self.install_map(Arc::new(*map)),
            Ok(RootAnswer::Map(None)) => {}
            Ok(_) => tracing::warn!("the cluster map was answered by something else"),
            Err(error) => tracing::debug!(%error, "the cluster map could not be read"),
        }
    }

    /// A map never replaces a newer one (R12).
    fn install_map(&self, map: Arc<ClusterMap>) {
        if map.epoch > self.map.load().epoch {
            let epoch = map.epoch.0;
            self.chooser.store(Arc::new(Chooser::new(&map)));
            self.map.store(map);
            metrics::gauge!("ashlar_client_map_epoch").set(epoch_as_gauge(epoch));
            self.map_epoch.send_replace(epoch);
        }
    }

    /// The session under which new commands go, opened if there is none.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, Failure> {
        // those who wait behind an opener that gets no answer wait no longer than they would for their own
        let waited = self.host.clock.timeout(self.config.patience, self.session.lock()).await;
        let busy = |_| Failure::unavailable("no gateway session could be opened in time");
        let mut current = waited.map_err(busy)?;
        let now = self.host.clock.now();
        if let Some(session) = current.as_ref() {
            let young = now - session.opened < self.config.session_age_max;
            if young && !session.is_fenced() {
                return Ok(session.clone());
            }
        }
        let (node, incarnation) = (self.config.node, self.config.incarnation);
        let opened = self.root(RootOp::OpenSession { node, incarnation }).await;
        let session = match opened {
            Ok(RootOutcome::Session(id)) => Session::new(id, now),
            Ok(_) => return Err(Failure::other_answer("opening a session")),
            // an aged session is as good as before: it is only not as short as it might be
            Err(_) if current.as_ref().is_some_and(|session| !session.is_fenced()) => {
                return current.clone().ok_or_else(|| Failure::unavailable("no gateway session"));
            }
            // a session that was opened without our knowing it is never used: its end is the root's business
            Err(Failure::Unknown { reason }) => return Err(Failure::unavailable(reason)),
            Err(failure) => return Err(failure),
        };
        tracing::info!(session = %session.id, "a gateway session was opened");
        if let Some(old) = current.replace(session.clone()) {
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(old);
        }
        Ok(session)
    }

    /// The sessions under which commands go, or may still go, and whether one is being opened.
    pub(crate) fn sessions_in_use(&self) -> (Vec<SessionId>, bool) {
        let current = self.session.try_lock();
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sessions: Vec<SessionId> = retired.iter().map(|old| old.id).collect();
        match &current {
            Ok(current) => sessions.extend(current.as_ref().map(|session| session.id)),
            // whoever holds the lock may be about to put the present one among the retired
            Err(_) => return (sessions, true),
        }
        (sessions, false)
    }

    /// An aged session that nobody uses is kept no longer: what was written under it can be audited.
    fn retire_idle(&self) {
        let Ok(mut current) = self.session.try_lock() else { return };
        let now = self.host.clock.now();
        let idle = current.take_if(|session| {
            now - session.opened >= self.config.session_age_max && Arc::strong_count(session) == 1
        });
        if let Some(old) = idle {
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(old);
        }
    }

    /// Ends retired sessions that nothing refers to any more.
    async fn end_retired(&self) {
        let unused: Vec<Arc<Session>> = {
            let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
            let (unused, used) = retired.drain(..).partition(|old| Arc::strong_count(old) == 1);
            *retired = used;
            unused
        };
        for old in unused {
            if let Err(error) = self.root(RootOp::EndSession { session: old.id }).await {
                tracing::warn!(session = %old.id, %error, "an old session could not be ended");
            }
        }
    }

    /// A share of the memory for streams. It waits, but not longer than patience.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failure> {
        let pages = bytes.div_ceil(MEMORY_PAGE_BYTES).max(1);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX).min(self.memory_pages);
        let waiting = self.memory.clone().acquire_many_owned(pages);
        let permit = self.host.clock.timeout(self.config.patience, waiting).await;
        let permit =
            permit.map_err(|_| Failure::unavailable("all memory for streams is in use"))?;
        Ok(permit.expect("the semaphore is never closed"))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is for people")]
fn epoch_as_gauge(epoch: u64) -> f64 {
    epoch as f64
}

/// Until the map is there it is asked for more eagerly: nothing can be read or written without it.
const MAP_EVERY_AT_START: Duration = Duration::from_millis(50);

async fn keep_map(client: Weak<Inner>) {
    while let Some(inner) = client.upgrade() {
        inner.fetch_map().await;
        let known = inner.map.load().epoch.0 > 0;
        let pause = if known { inner.config.map_every } else { MAP_EVERY_AT_START };
        // a wish is served after a moment, so that a burst of them is one question
        let wished = async {
            inner.map_wanted.notified().await;
            inner.host.clock.sleep(Duration::from_millis(5)).await;
        };
        tokio::select! {
            biased;
            () = wished => {}
            () = inner.host.clock.sleep(pause) => {}
        }
    }
}

async fn keep_tidy(client: Weak<Inner>) {
    while let Some(inner) = client.upgrade() {
        inner.retire_idle();
        inner.end_retired().await;
        inner.host.clock.sleep(TIDY_EVERY.min(inner.config.session_age_max)).await;
    }
}
