//! The MD5 of an upload, in a lane of its own.
//!
//! MD5 makes 0.56 GB/s a core, less than everything else of a PUT together; a long body's is therefore computed by a
//! task beside the one that encodes and sends. Short bodies are not worth the hop.

use ashlar_host::{Host, TaskKind};
use bytes::Bytes;
use md5::{Digest as _, Md5};
use tokio::sync::{mpsc, oneshot};

/// Up to this length the digest is computed where the bytes are read (120 us at most).
const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// Pieces that wait for the lane; hyper reads pieces of up to 400 KiB, so this bounds a lane to about 3 MiB.
const WAITING_MAX: usize = 8;

/// See the module.
pub(crate) enum Md5Lane {
    Inline(Md5),
    Task { pieces: mpsc::Sender<Bytes>, digest: oneshot::Receiver<[u8; 16]> },
}

impl Md5Lane {
    /// For a body of that length.
    pub(crate) fn new(host: &Host, length: u64) -> Self {
        if length <= INLINE_BYTES_MAX {
            return Self::Inline(Md5::new());
        }
        let (pieces, mut queue) = mpsc::channel::<Bytes>(WAITING_MAX);
        let (done, digest) = oneshot::channel();
        let lane = async move {
            let mut md5 = Md5::new();
            while let Some(bytes) = queue.recv().await {
                md5.update(&bytes);
            }
            // nobody waits any more when the upload was given up
            let _sent = done.send(md5.finalize().into());
        };
        let _runs_on = host.tasks.spawn(TaskKind::Request("md5"), Box::pin(lane));
        Self::Task { pieces, digest }
    }

    /// Takes more bytes.
    pub(crate) async fn update(&mut self, bytes: &Bytes) {
        match self {
            Self::Inline(md5) => md5.update(bytes),
            Self::Task { pieces, .. } => {
                // a lane that has died says so at the end
                drop(pieces.send(bytes.clone()).await);
            }
        }
    }

    /// The digest of all of them; `None`: the lane's task has died.
    pub(crate) async fn finish(self) -> Option<[u8; 16]> {
        match self {
            Self::Inline(md5) => Some(md5.finalize().into()),
            Self::Task { pieces, digest } => {
                drop(pieces);
                digest.await.ok()
            }
        }
    }
}
