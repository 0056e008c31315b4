//! `ashlar range ls | move`, and what `ashlar node drain | undrain | remove` means for the ranges that a node holds.

use crate::show;
use anyhow::{Context, Result, bail};
use ashlar::operator::{Member, Overview};
use ashlar::replica_change::{ChangeReplicas, is_done};
use ashlar_host::Host;
use ashlar_types::{NodeId, RangeId, RangeReplicas, ReplicaDirectory, ReplicaMove};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A member that does not answer so often in a row is asked no more: it may be restarted meanwhile.
const UNANSWERED_MAX: u32 = 60;

/// The id of a range, as `range ls` shows it.
pub(crate) fn range_named(name: &str) -> Result<RangeId> {
    if name == "root" {
        return Ok(RangeId::ROOT);
    }
    let number = name.strip_prefix("range-").unwrap_or(name).parse();
    let number =
        number.with_context(|| format!("'{name}' is not the id of a range: see range ls"))?;
    Ok(RangeId(number))
}

/// The id of a node, by its id or name.
pub(crate) fn node_named(overview: &Overview, name: &str) -> Result<NodeId> {
    let mut nodes = overview.map.nodes.values();
    let node = nodes.find(|node| node.name == name || node.id.to_string() == name);
    let node = node.with_context(|| format!("there is no node '{name}': see node ls"))?;
    Ok(node.id)
}

/// Moves a replica of a range, and waits for the end where that is wished.
pub(crate) async fn move_replica(
    host: &Host,
    member: &Member,
    step: ReplicaMove,
    wait: bool,
    json: bool,
) -> Result<()> {
    let (from, to) = (step.from.first().copied(), step.to.first().copied());
    let range = step.range;
    member.change_replicas(&ChangeReplicas::Move { range, from, to }).await?;
    if !wait {
        print!("{}", show::ranges(&member.replicas().await?, json)?);
        return Ok(());
    }
    let is_over = |now: &ReplicaDirectory| {
        let known = now.ranges.iter().find(|one| one.range.id == range);
        let known = known.with_context(|| format!("there is no {range} any more"))?;
        match &known.moving {
            _ if is_done(known, &step) => Ok(true),
            Some(moving) if *moving == step => Ok(false),
            _ => bail!("the move was given up: {range} is held by {}", show::nodes_of(known)),
        }
    };
    let now = watch(host, member, is_over, |_| {}).await?;
    print!("{}", show::ranges(&now, json)?);
    Ok(())
}

/// Waits until a node holds no range.
pub(crate) async fn await_empty(
    host: &Host,
    member: &Member,
    node: NodeId,
    json: bool,
) -> Result<()> {
    let mut shown = None;
    let left = |now: &ReplicaDirectory| held(now, node);
    let is_over = |now: &ReplicaDirectory| {
        if !now.drained.contains(&node) {
            bail!("somebody has taken the drain back: {node} holds {} ranges", left(now));
        }
        Ok(left(now) == 0)
    };
    let show = |now: &ReplicaDirectory| {
        let left = left(now);
        if shown.replace(left) != Some(left) && !json {
            println!("{left} ranges are left on {node}");
        }
    };
    watch(host, member, is_over, show).await.map(|_| ())
}

/// How many ranges a node holds, or is to hold.
pub(crate) fn held(directory: &ReplicaDirectory, node: NodeId) -> usize {
    directory.ranges.iter().filter(|one: &&RangeReplicas| one.names(node)).count()
}

/// Asks again and again until it is over.
async fn watch(
    host: &Host,
    member: &Member,
    is_over: impl Fn(&ReplicaDirectory) -> Result<bool>,
    mut show: impl FnMut(&ReplicaDirectory),
) -> Result<ReplicaDirectory> {
    let mut unanswered = 0;
    loop {
        match member.replicas().await {
            Ok(now) => {
                unanswered = 0;
                show(&now);
                if is_over(&now)? {
                    return Ok(now);
                }
            }
            Err(error) if unanswered >= UNANSWERED_MAX => {
                return Err(error.context("it goes on, but nobody says how far it is"));
            }
            Err(_) => unanswered += 1,
        }
        host.clock.sleep(LOOK_EVERY).await;
    }
}
