//! What a data node answers over gRPC.

use crate::collect::CollectError;
use crate::{DataNode, GarbageJudge};
use ashlar_store::Store;
use ashlar_types::{
    CollectShards, DiskId, DiskQuery, Epoch, ListShards, ShardsCollected, decode, encode,
};
use ashlar_wire::proto::data_server::Data;
use ashlar_wire::proto::{
    CollectReply, CollectRequest, DiskStatus, InventoryReply, InventoryRequest, ListShardsReply,
    ListShardsRequest, PingReply, PingRequest,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Answers for a data node.
#[derive(Clone)]
pub struct DataService {
    node: Arc<DataNode>,
    judge: Arc<dyn GarbageJudge>,
}

impl std::fmt::Debug for DataService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataService({:?})", self.node)
    }
}

impl DataService {
    pub(crate) fn new(node: Arc<DataNode>, judge: Arc<dyn GarbageJudge>) -> Self {
        Self { node, judge }
    }

    /// Those that are served, and those that are out: nothing is to be written to these.
    fn disks(&self) -> Vec<DiskStatus> {
        let served = |(disk, store): (&DiskId, &Store)| {
            let rate = self.node.config.move_bytes_per_second;
            status(store, self.node.incoming.copied_bytes(*disk), rate)
        };
        let mut disks: Vec<DiskStatus> = self.node.stores().iter().map(served).collect();
        let is_out = |disk: &DiskId| self.node.why_out(*disk).is_some();
        let out = self.node.disk_reports().into_iter().filter_map(|report| report.disk);
        disks.extend(out.filter(is_out).map(status_of_one_that_is_out));
        disks
    }
}

#[tonic::async_trait]
impl Data for DataService {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        self.node.heard_of(Epoch(request.into_inner().map_epoch));
        Ok(Response::new(PingReply {
            node: self.node.config.node.0,
            incarnation: self.node.config.incarnation,
            map_epoch: self.node.map_epoch().0,
            disks: self.disks(),
        }))
    }

    async fn collect(
        &self,
        request: Request<CollectRequest>,
    ) -> Result<Response<CollectReply>, Status> {
        let request: CollectShards = decode(&request.into_inner().body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let outcomes = self.node.collect(&*self.judge, &request).await;
        let outcomes = outcomes.map_err(|error| refused(&error))?;
        Ok(Response::new(CollectReply { body: encode(&ShardsCollected { outcomes }).into() }))
    }

    async fn inventory(
        &self,
        request: Request<InventoryRequest>,
    ) -> Result<Response<InventoryReply>, Status> {
        let query: DiskQuery = decode(&request.into_inner().body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (node, tasks) = (self.node.clone(), self.node.host.tasks.clone());
        let body = tasks.run_blocking(move || encode(&node.inventory(&query))).await;
        Ok(Response::new(InventoryReply { body: body.into() }))
    }

    async fn list_shards(
        &self,
        request: Request<ListShardsRequest>,
    ) -> Result<Response<ListShardsReply>, Status> {
        let ask: ListShards = decode(&request.into_inner().body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let listed = self.node.list_shards(&ask).await;
        Ok(Response::new(ListShardsReply { body: encode(&listed).into() }))
    }
}

fn refused(error: &CollectError) -> Status {
    match error {
        CollectError::TooMany(_) => Status::invalid_argument(error.to_string()),
        CollectError::NotJudged(_) => Status::unavailable(error.to_string()),
    }
}

fn status_of_one_that_is_out(disk: DiskId) -> DiskStatus {
    DiskStatus { disk: disk.0.to_be_bytes().to_vec().into(), out: true, ..DiskStatus::default() }
}

fn status(store: &Store, copied_bytes: u64, move_bytes_per_second: u64) -> DiskStatus {
    let usage = store.usage();
    DiskStatus {
        disk: store.disk_id().0.to_be_bytes().to_vec().into(),
        writable: usage.writable,
        out: false,
        capacity_bytes: usage.capacity,
        free_bytes: usage.free,
        shards: usage.shards,
        directory: store.dir().display().to_string(),
        shard_bytes: store.live_bytes(),
        copied_bytes,
        move_bytes_per_second,
    }
}
