//! What a data node answers over gRPC.

use crate::DataNode;
use ashlar_store::Store;
use ashlar_wire::proto::data_server::Data;
use ashlar_wire::proto::{DiskStatus, PingReply, PingRequest};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Answers for a data node.
#[derive(Debug, Clone)]
pub struct DataService(Arc<DataNode>);

impl DataService {
    pub(crate) fn new(node: Arc<DataNode>) -> Self {
        Self(node)
    }
}

#[tonic::async_trait]
impl Data for DataService {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Ok(Response::new(PingReply {
            node: self.0.config.node.0,
            incarnation: self.0.config.incarnation,
            map_epoch: self.0.map_epoch().0,
            disks: self.0.stores().values().map(status).collect(),
        }))
    }
}

fn status(store: &Store) -> DiskStatus {
    let usage = store.usage();
    DiskStatus {
        disk: store.disk_id().0.to_be_bytes().to_vec().into(),
        writable: usage.writable,
        capacity_bytes: usage.capacity,
        free_bytes: usage.free,
        shards: usage.shards,
    }
}
