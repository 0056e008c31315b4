//! What an audit asks of the others: the root's sessions, what gateways still use, the floor of every range, what the
//! ranges name, what the disks hold; and what it tells the ranges of what it has found.
//!
//! Nothing here decides anything: the ranges judge again what they are told.

use crate::{Client, Failure};
use ashlar_types::{
    ClusterMap, DiskAnswer, DiskQuery, InventoryEntry, InventoryPosition, KeyPoint, LivingSession,
    MarkLost, NodeId, Orphan, RangeAnswer, RangeDescriptor, RangeOp, RangeQuery, Refusal,
    RootAnswer, RootOp, RootQuery, SessionId, decode, encode,
};
use ashlar_wire::Class;
use ashlar_wire::proto::data_client::DataClient;
use ashlar_wire::proto::gateway_client::GatewayClient;
use ashlar_wire::proto::operator_client::OperatorClient;
use ashlar_wire::proto::{AuditRequest, InventoryRequest, SessionsRequest};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// How long a gateway may take to say which sessions it uses.
const SESSIONS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a data node may take to go through the index of a disk.
const INVENTORY_PATIENCE: Duration = Duration::from_secs(60);
/// The sums of a large disk are more than tonic's default of 4 MiB.
const INVENTORY_BYTES_MAX: usize = 256 << 20;

/// Sessions that the root knows as open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingSessions {
    /// Every session that was opened before lies below it.
    pub floor: SessionId,
    /// Those that are open, by id.
    pub sessions: Vec<LivingSession>,
}

/// What a gateway says of its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionsInUse {
    /// The incarnation of the node.
    pub incarnation: u64,
    /// Those under which something is sent, or may still be.
    pub sessions: Vec<SessionId>,
    /// Whether one is being opened: it may be any that is not known otherwise.
    pub opening: bool,
}

/// A page of what a range names.
#[derive(Debug, Clone)]
pub struct InventoryPage {
    /// The range: a walk that began in another one, or under another epoch, begins anew.
    pub range: Arc<RangeDescriptor>,
    /// Some of it.
    pub entries: Vec<InventoryEntry>,
    /// Where to go on; `None`: this was the end of the range.
    pub next: Option<InventoryPosition>,
}

impl Client {
    /// The sessions that are open.
    pub async fn living_sessions(&self) -> Result<LivingSessions, Failure> {
        match self.root_query(RootQuery::LivingSessions).await? {
            RootAnswer::LivingSessions { floor, sessions } => {
                Ok(LivingSessions { floor, sessions })
            }
            _ => Err(Failure::other_answer("the open sessions")),
        }
    }

    /// A session is open no more. Ending it twice does no harm.
    pub async fn end_session(&self, session: SessionId) -> Result<(), Failure> {
        self.root(RootOp::EndSession { session }).await.map(drop)
    }

    /// The sessions of this client. What is not among them, and was open at the root before this was asked, is used by
    /// nobody and never will be.
    pub fn sessions_in_use(&self) -> (Vec<SessionId>, bool) {
        self.0.sessions_in_use()
    }

    /// What a gateway says of its sessions. The error says why it is not known.
    pub async fn sessions_of(&self, address: &str) -> Result<SessionsInUse, String> {
        let mut gateway = GatewayClient::new(self.0.dialer.channel(address, Class::Metadata));
        let asked = gateway.sessions(SessionsRequest {});
        let answer = self.0.host.clock.timeout(SESSIONS_PATIENCE, asked).await;
        let reply =
            answer.map_err(|late| late.to_string())?.map_err(|status| status.to_string())?;
        let reply = reply.into_inner();
        Ok(SessionsInUse {
            incarnation: reply.incarnation,
            sessions: reply.sessions.into_iter().map(SessionId).collect(),
            opening: reply.opening,
        })
    }

    /// From now on every range refuses all sessions below the floor that are not open: an entry in each of them, over
    /// the whole key space. An error: some may not have heard of it.
    pub async fn fence_sessions(&self, living: &LivingSessions) -> Result<(), Failure> {
        let listed: Vec<SessionId> = living.sessions.iter().map(|session| session.id).collect();
        let mut at = Some(KeyPoint::least());
        while let Some(point) = at {
            let op = RangeOp::RaiseSessionFloor { floor: living.floor, living: listed.clone() };
            let (_, interval) = self.0.execute_duty(&point, op).await?;
            at = interval.end;
        }
        Ok(())
    }

    /// A page of what the range names that holds `at`.
    pub async fn inventory(
        &self,
        at: &KeyPoint,
        after: Option<InventoryPosition>,
        limit: u32,
    ) -> Result<InventoryPage, Failure> {
        match self.0.query(at, RangeQuery::Inventory { after, limit }).await? {
            (RangeAnswer::Inventory { entries, next }, range) => {
                Ok(InventoryPage { range, entries, next })
            }
            _ => Err(Failure::other_answer("a page of what a range names")),
        }
    }

    /// Asks a data node what one of its disks holds. The error says why nothing is known.
    pub async fn ask_disk(
        &self,
        map: &ClusterMap,
        node: NodeId,
        query: &DiskQuery,
    ) -> Result<DiskAnswer, String> {
        let address = map.nodes.get(&node).map(|node| node.address.as_str());
        let address = address.ok_or_else(|| format!("{node} is not in the cluster map"))?;
        let mut data = DataClient::new(self.0.dialer.channel(address, Class::Bulk))
            .max_decoding_message_size(INVENTORY_BYTES_MAX)
            .max_encoding_message_size(INVENTORY_BYTES_MAX);
        let asked = data.inventory(InventoryRequest { body: encode(query).into() });
        let answer = self.0.host.clock.timeout(INVENTORY_PATIENCE, asked).await;
        let reply =
            answer.map_err(|late| late.to_string())?.map_err(|status| status.to_string())?;
        decode(&reply.into_inner().body).map_err(|error| error.to_string())
    }

    /// Tells the range that names an extent which of its shards are gone. `false`: it is named otherwise by now, or
    /// nothing more may be called missing of it.
    pub async fn mark_lost(&self, lost: MarkLost) -> Result<bool, Failure> {
        let at = lost.owner.at().clone();
        match self.0.execute_duty(&at, RangeOp::MarkLost(Box::new(lost))).await {
            Ok(_) => Ok(true),
            Err(Failure::Refused(Refusal::ExtentChanged | Refusal::TooFewLeft)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Tells the range that holds `at` to queue extents that nothing names.
    pub async fn queue_orphans(&self, at: &KeyPoint, orphans: Vec<Orphan>) -> Result<(), Failure> {
        self.0.execute_duty(at, RangeOp::QueueOrphans { orphans }).await.map(drop)
    }

    /// The report of the last audit that another node has done, as it encodes it; `None`: it has done none.
    pub async fn audit_report_of(&self, address: &str) -> Result<Option<Bytes>, String> {
        let mut other = OperatorClient::new(self.0.dialer.channel(address, Class::Metadata))
            .max_decoding_message_size(INVENTORY_BYTES_MAX);
        let asked = other.audit(AuditRequest { age_ms_max: 0, own: true });
        let answer = self.0.host.clock.timeout(SESSIONS_PATIENCE, asked).await;
        let reply =
            answer.map_err(|late| late.to_string())?.map_err(|status| status.to_string())?;
        Ok(Some(reply.into_inner().report).filter(|report| !report.is_empty()))
    }
}
