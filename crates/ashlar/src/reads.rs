//! Says to collectors of garbage which reads are open at this gateway, and to audits which sessions it uses.

use ashlar_client::Client;
use ashlar_wire::proto::gateway_server::Gateway;
use ashlar_wire::proto::{OpenReadsReply, OpenReadsRequest, SessionsReply, SessionsRequest};
use tonic::{Request, Response, Status};

/// Answers for the client through which this node's gateway reads.
pub(crate) struct ReadsService {
    pub(crate) client: Client,
    pub(crate) incarnation: u64,
}

#[tonic::async_trait]
impl Gateway for ReadsService {
    async fn open_reads(
        &self,
        _: Request<OpenReadsRequest>,
    ) -> Result<Response<OpenReadsReply>, Status> {
        let numbers = self.client.open_reads();
        Ok(Response::new(OpenReadsReply {
            incarnation: self.incarnation,
            oldest: numbers.oldest,
            next: numbers.next,
        }))
    }

    async fn sessions(
        &self,
        _: Request<SessionsRequest>,
    ) -> Result<Response<SessionsReply>, Status> {
        let (sessions, opening) = self.client.sessions_in_use();
        let sessions = sessions.into_iter().map(|session| session.0).collect();
        Ok(Response::new(SessionsReply { incarnation: self.incarnation, sessions, opening }))
    }
}
