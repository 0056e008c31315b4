//! L1 (contract §2): when faults end, within 60 s all nodes are ready, and every gateway writes and reads.

use crate::client::Client;
use crate::options::Options;
use crate::record::Recorder;
use crate::world::World;
use std::time::Duration;
use tokio::time::Instant;

const RECOVERY_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Waits until it holds; how long that took.
pub(crate) async fn check(
    world: &World,
    recorder: &Recorder,
    client: &mut Client,
    options: &Options,
) {
    let began = Instant::now();
    let mut doubt = None;
    while began.elapsed() < RECOVERY_MAX {
        match world.all_ready().await {
            Ok(()) => doubt = writes(client, options).await.err(),
            Err(why) => doubt = Some(why.to_string()),
        }
        if doubt.is_none() {
            return recorder.note(&format!("recovered after {:?}", began.elapsed()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let why = doubt.unwrap_or_default();
    recorder.find("L1", format!("{RECOVERY_MAX:?} after the last fault: {why}"));
}

async fn writes(client: &mut Client, options: &Options) -> Result<(), String> {
    for gateway in 0..usize::from(options.gateways) {
        let key = format!("after-{gateway}");
        if !client.put(gateway, &key).await {
            return Err(format!("the gateway of node-{} does not write", gateway + 1));
        }
        client.get(gateway, &key).await;
    }
    Ok(())
}
