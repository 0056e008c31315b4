//! `ashlar disk drain | undrain | lose | remove` and `ashlar node drain`: asks a member, says what it means, and waits for the
//! end where that is wished.

use crate::show::{self, Verdict};
use anyhow::{Result, bail};
use ashlar::disk_change::{ChangeDisks, DiskStep, DisksChange, slots_on};
use ashlar::operator::{Member, Overview};
use ashlar_host::Host;
use ashlar_types::{DiskId, DiskState, NodeId};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A member that does not answer so often in a row is asked no more: it may be restarted meanwhile.
const UNANSWERED_MAX: u32 = 60;
/// After so many looks at which no slot had moved it is said.
const LOOKS_UNCHANGED: u32 = 60;

/// How it shall be done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    pub(crate) dry_run: bool,
    pub(crate) wait: bool,
    pub(crate) json: bool,
}

/// Changes disks, or says what that would mean. Whatever is not known to be done to all is an error.
pub(crate) async fn change(
    host: &Host,
    member: &Member,
    disks: Vec<DiskId>,
    step: DiskStep,
    how: How,
) -> Result<()> {
    let asked = ChangeDisks { disks, step, dry_run: how.dry_run };
    let before = member.overview().await?;
    let change = member.change_disks(&asked).await?;
    print!("{}", show::disks_change(&change, step, how.json)?);
    let why = || [&change.refusals[..], &change.remarks].concat().join("; ");
    match Verdict::of(&change) {
        Verdict::Done | Verdict::Possible => {}
        Verdict::Refused => bail!("refused: {}", change.refusals.join("; ")),
        Verdict::InPart => bail!("done to {} only: {}", change.changed.join(", "), why()),
        Verdict::Unknown => bail!(
            "whether it was done to {} is not known: say the same again, what was done is not done twice ({})",
            change.unknown.join(", "),
            why()
        ),
    }
    if how.wait { wait(host, member, &asked.disks, &change, &before, how).await } else { Ok(()) }
}

/// Until no group names the disks any more.
async fn wait(
    host: &Host,
    member: &Member,
    disks: &[DiskId],
    change: &DisksChange,
    before: &Overview,
    how: How,
) -> Result<()> {
    let (mut shown, mut unanswered, mut unchanged) = (None, 0, 0);
    let copied = loop {
        match member.overview().await {
            Ok(now) => {
                unanswered = 0;
                let left: usize = disks.iter().map(|&disk| slots_on(&now.map, disk)).sum();
                let copied = now.copied_bytes().saturating_sub(before.copied_bytes());
                unchanged = if shown == Some(left) { unchanged + 1 } else { 0 };
                if left > 0 && disks.iter().any(|disk| is_used_again(&now, *disk)) {
                    bail!("somebody has taken the drain back: {left} slots have stayed");
                }
                if unchanged == LOOKS_UNCHANGED && !how.json {
                    let waiting = LOOK_EVERY * LOOKS_UNCHANGED;
                    println!(
                        "no slot has moved for {waiting:?}: a disk that is needed may be away or full (ashlar disk ls)"
                    );
                    unchanged = 0;
                }
                if shown != Some(left) && !how.json {
                    let copied = show::bytes(copied);
                    println!("{left} of {} slots are left, {copied} copied", change.slots);
                }
                shown = Some(left);
                if left == 0 {
                    break copied;
                }
            }
            Err(error) if unanswered >= UNANSWERED_MAX => {
                return Err(
                    error.context("the slots go on moving, but nobody says how far they are")
                );
            }
            Err(_) => unanswered += 1,
        }
        host.clock.sleep(LOOK_EVERY).await;
    };
    if !how.json {
        println!(
            "no slot is left: {} were copied in the cluster meanwhile, {} were on it in the beginning; what is still there goes within a minute",
            show::bytes(copied),
            show::bytes(change.bytes)
        );
    }
    Ok(())
}

fn is_used_again(now: &Overview, disk: DiskId) -> bool {
    now.map.disks.get(&disk).is_some_and(|disk| disk.state == DiskState::Healthy)
}

/// The disk that is meant by its id, or by the directory in which it lies.
pub(crate) fn disk_named(overview: &Overview, name: &str) -> Result<DiskId> {
    if let Ok(id) = name.parse::<DiskId>()
        && overview.map.disks.contains_key(&id)
    {
        return Ok(id);
    }
    let mut in_directory = overview.disks_in(name);
    match (in_directory.pop(), in_directory.is_empty()) {
        (Some(disk), true) => Ok(disk),
        (Some(_), false) => {
            bail!("several nodes have a disk in {name}: name it by its id (ashlar disk ls)")
        }
        (None, _) => bail!("there is no disk '{name}': ashlar disk ls shows all"),
    }
}

/// The disks of a node that are not gone.
pub(crate) fn disks_of_node(overview: &Overview, node: NodeId) -> Vec<DiskId> {
    disks_where(overview, node, DiskState::is_read)
}

/// The disks of a node that drain.
pub(crate) fn draining_of_node(overview: &Overview, node: NodeId) -> Vec<DiskId> {
    disks_where(overview, node, |state| state == DiskState::Draining)
}

fn disks_where(overview: &Overview, node: NodeId, is: impl Fn(DiskState) -> bool) -> Vec<DiskId> {
    let disks = overview.map.disks.values();
    disks.filter(|disk| disk.node == node && is(disk.state)).map(|disk| disk.id).collect()
}
