//! The internal port serves members, over both HTTP versions, and nobody else (S4).

use ashlar_host::Host;
use ashlar_wire::proto::data_client::DataClient;
use ashlar_wire::proto::data_server::{Data, DataServer};
use ashlar_wire::proto::{
    CollectReply, CollectRequest, InventoryReply, InventoryRequest, ListShardsReply,
    ListShardsRequest, PingReply, PingRequest,
};
use ashlar_wire::{Authority, Class, Dialer, Security, ShardBody};
use axum::Router;
use axum::routing::put;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tonic::{Request, Response, Status};

struct Pong;

#[tonic::async_trait]
impl Data for Pong {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Ok(Response::new(PingReply { node: 7, ..PingReply::default() }))
    }

    async fn collect(&self, _: Request<CollectRequest>) -> Result<Response<CollectReply>, Status> {
        Err(Status::unimplemented("this node collects nothing"))
    }

    async fn inventory(
        &self,
        _: Request<InventoryRequest>,
    ) -> Result<Response<InventoryReply>, Status> {
        Err(Status::unimplemented("this node has nothing"))
    }

    async fn list_shards(
        &self,
        _: Request<ListShardsRequest>,
    ) -> Result<Response<ListShardsReply>, Status> {
        Err(Status::unimplemented("this node has no shards"))
    }
}

async fn start(host: &Host, security: Security) -> String {
    let listener = host.network.listen("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("has an address").to_string();
    let router: Router = tonic::service::Routes::new(DataServer::new(Pong)).into_axum_router();
    let router = router.route("/shard", put(|body: Bytes| async move { body.len().to_string() }));
    let _server = host.tasks.spawn(
        ashlar_host::TaskKind::Background("server"),
        Box::pin(ashlar_wire::serve(host.clone(), listener, security, router)),
    );
    address
}

fn shard(bytes: usize) -> http::Request<ShardBody> {
    let body = Full::new(Bytes::from(vec![1; bytes])).map_err(|never| match never {}).boxed();
    http::Request::put("/shard").header("host", "ashlar.internal").body(body).expect("well formed")
}

async fn speaks_both(dialer: &Dialer, address: &str) {
    let channel = dialer.channel(address, Class::Bulk);
    let pong =
        DataClient::new(channel).ping(PingRequest::default()).await.expect("a member is served");
    assert_eq!(pong.into_inner().node, 7);
    for bytes in [1, 100_000] {
        let answer = dialer.http1(address, shard(bytes)).await.expect("a member is served");
        assert_eq!(
            answer.into_body().collect().await.expect("whole").to_bytes(),
            bytes.to_string()
        );
    }
}

#[tokio::test]
async fn members_speak_grpc_and_http1_over_mutual_tls() {
    let host = Host::real();
    let authority = Authority::create().expect("creates");
    let security =
        |node| Security::mutual(&authority.issue(node).expect("issues")).expect("is accepted");
    let address = start(&host, security("node-1")).await;
    speaks_both(&Dialer::new(host, &security("node-2")), &address).await;
}

#[tokio::test]
async fn a_plain_port_speaks_both_too() {
    let host = Host::real();
    let address = start(&host, Security::Plain).await;
    speaks_both(&Dialer::new(host, &Security::Plain), &address).await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let host = Host::real();
    let ours = Authority::create().expect("creates");
    let address =
        start(&host, Security::mutual(&ours.issue("node-1").expect("issues")).expect("accepted"))
            .await;

    let theirs = Authority::create().expect("creates").issue("node-2").expect("issues");
    let foreign = Dialer::new(host.clone(), &Security::mutual(&theirs).expect("accepted"));
    assert!(foreign.http1(&address, shard(1)).await.is_err(), "another cluster's certificate");
    let plain = Dialer::new(host.clone(), &Security::Plain);
    assert!(plain.http1(&address, shard(1)).await.is_err(), "no TLS");

    let joining = Security::joining(ours.fingerprint().expect("hashes")).expect("builds");
    let joining = Dialer::with_tls(host.clone(), Some(joining));
    let answer = joining.http1(&address, shard(1)).await.expect("the handshake is allowed");
    assert_eq!(answer.status(), 403, "nothing but Join without a certificate");

    let mistaken = Dialer::with_tls(host, Some(Security::joining([0; 32]).expect("builds")));
    assert!(
        mistaken.http1(&address, shard(1)).await.is_err(),
        "an authority that the token does not name"
    );
}
