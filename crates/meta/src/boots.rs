//! Which boot of each node this node has heard of, durably: an old image of a node, or a copy, is refused.
//!
//! A boot is an incarnation, raised by each start, and a random number, so that two starts of one image differ. A boot of
//! a peer is on stable storage here before its first message is answered, and before an answer of it is counted: every
//! message names the boot that it is meant for, and only that one answers it. So once this node has counted a vote or an
//! entry of a boot, no earlier one, and no other of the same incarnation, gets a vote or entry past it, also after a
//! restart here.
//!
//! What it cannot tell: a boot that no peer has heard of, and a copy of the newest image that starts after it.

use ashlar_wal::{Note, Wal, WalError};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// One start of a node. The default stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Boot {
    /// Raised by each start.
    pub(crate) incarnation: u64,
    /// Random: tells two starts of one image apart.
    pub(crate) nonce: u64,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "incarnation {} ({:016x})", self.incarnation, self.nonce)
    }
}

impl Boot {
    /// Whether who knows `self` as a node's boot takes `other` for an old image of that node, or a copy.
    pub(crate) fn outdates(self, other: Self) -> bool {
        self.incarnation >= other.incarnation && self != other
    }

    fn to_note(self) -> Note {
        let mut note = Note::default();
        note[..8].copy_from_slice(&self.incarnation.to_le_bytes());
        note[8..].copy_from_slice(&self.nonce.to_le_bytes());
        note
    }

    fn of_note(note: Note) -> Self {
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        Self { incarnation: half(&note[..8]), nonce: half(&note[8..]) }
    }
}

/// Why a boot is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BootRefused {
    /// It is an old image, or a copy.
    #[error(
        "node-{peer} is known here by {known}: {told} is an old image of it, or a copy: give it an empty directory, and let it join as a new node"
    )]
    Outdated { peer: u64, told: Boot, known: Boot },
    /// It could not be kept.
    #[error("the boot of a peer could not be kept: {0}")]
    NotKept(#[from] WalError),
}

/// The boots.
pub(crate) struct Boots {
    wal: Wal,
    node: u64,
    own: Boot,
    /// What is on stable storage.
    known: Mutex<BTreeMap<u64, Boot>>,
    /// Held while a boot is made durable: later ones are compared with it, not with the one before.
    keeping: tokio::sync::Mutex<()>,
    /// Why this node is itself the old image, once a peer has said so.
    outdated: watch::Sender<Option<String>>,
}

impl Boots {
    /// Those that the WAL has noted; `own` is this start of `node`.
    pub(crate) fn load(wal: Wal, node: u64, own: Boot) -> Self {
        let known = wal.notes().into_iter().map(|(peer, note)| (peer, Boot::of_note(note)));
        let known = Mutex::new(known.collect());
        metrics::gauge!("ashlar_raft_outdated_node").set(0.0);
        Self {
            wal,
            node,
            own,
            known,
            keeping: tokio::sync::Mutex::default(),
            outdated: watch::channel(None).0,
        }
    }

    /// This start of this node.
    pub(crate) fn own(&self) -> Boot {
        self.own
    }

    /// The newest one that was heard of a peer.
    pub(crate) fn known(&self, peer: u64) -> Boot {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&peer).copied().unwrap_or_default()
    }

    /// Whether `boot` is the running one of `peer`. A newer one than known is on stable storage when this returns.
    pub(crate) async fn accept(&self, peer: u64, boot: Boot) -> Result<(), BootRefused> {
        if self.is_known(peer, boot)? {
            return Ok(());
        }
        let _one = self.keeping.lock().await;
        if self.is_known(peer, boot)? {
            return Ok(());
        }
        self.wal.note_durable(peer, boot.to_note()).await?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, boot);
        Ok(())
    }

    fn is_known(&self, peer: u64, told: Boot) -> Result<bool, BootRefused> {
        let known = self.known(peer);
        if known.outdates(told) {
            metrics::counter!("ashlar_raft_refused_boots_total", "peer" => peer.to_string())
                .increment(1);
            return Err(BootRefused::Outdated { peer, told, known });
        }
        Ok(known == told)
    }

    /// A peer knows `boot` as this node's: then this start is the old image, if that one is not older.
    pub(crate) fn told_of_self(&self, by: u64, boot: Boot) {
        if !boot.outdates(self.own) {
            return;
        }
        let why = format!(
            "node-{by} knows node-{} by {boot}, and this is {}: this directory is an old image of the node, or a copy. It takes no part in the metadata. Stop it, and let it join as a new node with an empty directory",
            self.node, self.own
        );
        let told = |now: &mut Option<String>| {
            let first = now.is_none();
            now.get_or_insert_with(|| why.clone());
            first
        };
        if self.outdated.send_if_modified(told) {
            tracing::error!(why, "this node is an old image");
            metrics::gauge!("ashlar_raft_outdated_node").set(1.0);
        }
    }

    /// Why this node takes no part, where a peer has said that it is an old image.
    pub(crate) fn outdated(&self) -> Option<String> {
        self.outdated.borrow().clone()
    }

    /// Waits until a peer says that this node is an old image.
    pub(crate) async fn until_outdated(&self) -> String {
        let mut told = self.outdated.subscribe();
        loop {
            if let Some(why) = told.borrow_and_update().clone() {
                return why;
            }
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_host::{CutStyle, Host, SimDisk};
    use ashlar_wal::WalConfig;
    use std::sync::Arc;

    const OWN: Boot = Boot { incarnation: 3, nonce: 9 };

    fn open(disk: &SimDisk) -> Boots {
        let host = Host::real().with_disk(Arc::new(disk.boot()));
        let config = WalConfig { file_bytes: 1 << 20, ..WalConfig::new("/wal".into()) };
        Boots::load(Wal::open(&host, config).expect("opens"), 1, OWN)
    }

    fn boot(incarnation: u64, nonce: u64) -> Boot {
        Boot { incarnation, nonce }
    }

    #[tokio::test]
    async fn r10_an_older_boot_and_another_one_of_the_same_incarnation_are_refused_after_a_restart_too()
     {
        let disk = SimDisk::new();
        open(&disk).accept(2, boot(5, 1)).await.expect("the first that is heard");
        for style in [CutStyle::DropAll, CutStyle::Torn { seed: 1 }] {
            disk.cut(style);
            let boots = open(&disk);
            boots.accept(2, boot(5, 1)).await.expect("the same");
            for outdated in [boot(4, 1), boot(5, 2), boot(0, 0)] {
                let refused = boots.accept(2, outdated).await;
                assert!(matches!(refused, Err(BootRefused::Outdated { .. })), "{refused:?}");
            }
        }
        disk.cut(CutStyle::KeepAll);
        let boots = open(&disk);
        boots.accept(2, boot(6, 4)).await.expect("a later one");
        assert!(boots.accept(2, boot(5, 1)).await.is_err());
        assert_eq!(boots.accept(3, boot(1, 1)).await, Ok(()), "another node");
    }

    #[tokio::test]
    async fn a_boot_that_was_not_synced_is_not_accepted() {
        let disk = SimDisk::new();
        let boots = open(&disk);
        boots.accept(2, boot(5, 1)).await.expect("kept");
        disk.fail_sync_after(0);
        assert!(matches!(boots.accept(2, boot(6, 1)).await, Err(BootRefused::NotKept(_))));
        assert_eq!(boots.known(2), boot(5, 1));
        // the power goes before the sync: who was not answered is not known, and may be outdated by another
        disk.cut(CutStyle::DropAll);
        let boots = open(&disk);
        assert_eq!(boots.known(2), boot(5, 1));
        assert_eq!(boots.accept(2, boot(6, 7)).await, Ok(()));
        assert!(boots.accept(2, boot(6, 1)).await.is_err());
    }

    #[tokio::test]
    async fn a_node_that_is_told_of_a_newer_start_of_itself_knows_that_it_is_an_old_image() {
        let boots = open(&SimDisk::new());
        for older in [Boot::default(), boot(2, 77), OWN] {
            boots.told_of_self(2, older);
            assert_eq!(boots.outdated(), None);
        }
        boots.told_of_self(2, boot(3, 10));
        assert!(boots.until_outdated().await.contains("empty directory"));
    }
}
