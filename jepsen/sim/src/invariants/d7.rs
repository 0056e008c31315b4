//! D7 and R4 (contract §2): in the end the sums of every replica are those of its rows. Hashes that replicas tell are kept
//! up by difference: a row that was changed past apply would differ, and nobody would tell.

use crate::record::Recorder;
use crate::world::World;
use ashlar::node::RunningNode;

/// Visits every row of every replica.
pub(crate) fn check(world: &World, recorder: &Recorder) {
    let mut rows = 0;
    for index in 0..world.count() {
        let recount = |node: &RunningNode| node.meta().map(|meta| meta.recount());
        let counted = world.look(index, |machine| machine.node().and_then(recount)).flatten();
        let counted = match counted {
            None => continue,
            Some(Ok(counted)) => counted,
            Some(Err(error)) => {
                recorder.find("R4", format!("node-{} cannot be counted: {error}", index + 1));
                continue;
            }
        };
        for (range, recount) in counted {
            rows += recount.rows;
            let (told, is) = (recount.told, recount.counted);
            if told != is {
                let what = format!("{range} on node-{}: hash {told:x}, its rows {is:x}", index + 1);
                recorder.find("R4", what);
            }
            for wrong in recount.usage {
                recorder.find("D7", format!("{range} on node-{}: {wrong:?}", index + 1));
            }
        }
    }
    recorder.note(&format!("{rows} rows of all replicas were counted"));
}
