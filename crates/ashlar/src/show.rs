//! Answers for people: tables of aligned columns, or JSON with the same facts.
//!
//! Only facts go in; every text here is made from them, so that what a person reads and what a program reads agree.

use anyhow::Result;
use ashlar::disk_change::{DiskStep, DisksChange, slots_on};
use ashlar::operator::Overview;
use ashlar_types::{
    ClusterMap, Disk, DiskId, DiskState, KeyPoint, Node, NodeId, PlacementGroup, RangeId,
    RangeReplicas, ReplicaDirectory, Role,
};
use ashlar_wire::proto::{DiskStatus, PingReply};
use serde::Serialize;

/// What is said of a node.
#[derive(Debug, Serialize)]
struct NodeLine {
    node: String,
    name: String,
    zone: String,
    roles: Vec<Role>,
    address: String,
    state: &'static str,
    disks: usize,
}

/// What is said of a disk. What only its node knows is `None` while that does not answer.
#[derive(Debug, Serialize)]
struct DiskLine {
    disk: String,
    node: String,
    zone: String,
    state: &'static str,
    capacity_bytes: u64,
    free_bytes: Option<u64>,
    shards: Option<u64>,
    /// What they take.
    shard_bytes: Option<u64>,
    /// Slots of placement groups whose home it is.
    slots: usize,
    /// Slots that are leaving it now.
    leaving: usize,
    /// Slots that are on their way to it.
    arriving: usize,
    directory: Option<String>,
}

/// What is said of a range.
#[derive(Debug, Serialize)]
struct RangeLine {
    range: String,
    epoch: u64,
    /// The first point inside; `None`: it begins where all keys begin.
    from: Option<PointLine>,
    /// The first point behind; `None`: it goes to the end of all keys.
    to: Option<PointLine>,
    voters: Vec<String>,
    /// What is changing of them.
    moving: Option<MovingLine>,
}

/// Nodes that come and go.
#[derive(Debug, Serialize)]
struct MovingLine {
    from: Vec<String>,
    to: Vec<String>,
}

/// A point between keys: the first keys behind it are those of `bucket` from `key` on.
#[derive(Debug, Serialize)]
struct PointLine {
    bucket: String,
    key: String,
}

impl PointLine {
    fn of(point: &KeyPoint) -> Self {
        let key = String::from_utf8_lossy(&point.key).into_owned();
        Self { bucket: point.bucket.to_string(), key }
    }

    fn text(&self) -> String {
        if self.key.is_empty() {
            self.bucket.clone()
        } else {
            // quoted: a key may hold blanks and line ends
            format!("{} {:?}", self.bucket, self.key)
        }
    }
}

/// All ranges: the root, then the others in the order of keys.
pub(crate) fn ranges(directory: &ReplicaDirectory, json: bool) -> Result<String> {
    let lines: Vec<RangeLine> = directory.ranges.iter().map(range_line).collect();
    if json {
        return as_json(&lines);
    }
    let point = |point: &Option<PointLine>, none: &str| {
        point.as_ref().map_or_else(|| none.to_owned(), PointLine::text)
    };
    let rows = lines.iter().map(|line| {
        let of_keys = line.range != ROOT;
        let none = |none: &'static str| if of_keys { none } else { "-" };
        let moving = line.moving.as_ref();
        vec![
            line.range.clone(),
            line.epoch.to_string(),
            point(&line.from, none("(start)")),
            point(&line.to, none("(end)")),
            line.voters.join(","),
            moving.map_or_else(|| "-".to_owned(), MovingLine::text),
        ]
    });
    Ok(table(&["RANGE", "EPOCH", "FROM", "TO", "VOTERS", "MOVING"], rows))
}

/// What the range of the cluster map and of the directories is called.
const ROOT: &str = "root";

impl MovingLine {
    fn text(&self) -> String {
        let (from, to) = (self.from.join(","), self.to.join(","));
        match (from.is_empty(), to.is_empty()) {
            (true, _) => format!("+ {to}"),
            (_, true) => format!("- {from}"),
            _ => format!("{from} > {to}"),
        }
    }
}

/// The nodes that hold a range.
pub(crate) fn nodes_of(one: &RangeReplicas) -> String {
    names(&one.range.voters).join(",")
}

fn names(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(ToString::to_string).collect()
}

fn range_line(one: &RangeReplicas) -> RangeLine {
    let range = &one.range;
    let of_keys = range.id != RangeId::ROOT;
    let point = |point: &KeyPoint| of_keys.then(|| PointLine::of(point));
    let start = &range.interval.start;
    RangeLine {
        range: if of_keys { range.id.to_string() } else { ROOT.to_owned() },
        epoch: range.epoch.0,
        from: point(start).filter(|_| *start != KeyPoint::least()),
        to: range.interval.end.as_ref().and_then(point),
        voters: names(&range.voters),
        moving: one
            .moving
            .as_ref()
            .map(|step| MovingLine { from: names(&step.from), to: names(&step.to) }),
    }
}

/// All nodes.
pub(crate) fn nodes(overview: &Overview, json: bool) -> Result<String> {
    let lines: Vec<NodeLine> =
        overview.map.nodes.values().map(|node| node_line(overview, node)).collect();
    if json {
        return as_json(&lines);
    }
    let rows = lines.iter().map(|line| {
        vec![
            line.node.clone(),
            line.name.clone(),
            line.zone.clone(),
            line.roles
                .iter()
                .map(|role| format!("{role:?}").to_lowercase())
                .collect::<Vec<_>>()
                .join(","),
            line.address.clone(),
            line.disks.to_string(),
            line.state.to_owned(),
        ]
    });
    Ok(table(&["NODE", "NAME", "ZONE", "ROLES", "ADDRESS", "DISKS", "STATE"], rows))
}

/// All disks.
pub(crate) fn disks(overview: &Overview, json: bool) -> Result<String> {
    let mut disks: Vec<&Disk> = overview.map.disks.values().collect();
    disks.sort_by_key(|disk| (disk.node, disk.id));
    let lines: Vec<DiskLine> = disks.into_iter().map(|disk| disk_line(overview, disk)).collect();
    if json {
        return as_json(&lines);
    }
    let known = |figure: Option<String>| figure.unwrap_or_else(|| "?".to_owned());
    let rows = lines.iter().map(|line| {
        vec![
            line.disk.clone(),
            line.node.clone(),
            line.zone.clone(),
            line.state.to_owned(),
            bytes(line.capacity_bytes),
            known(line.free_bytes.map(bytes)),
            known(line.shards.map(|shards| shards.to_string())),
            known(line.shard_bytes.map(bytes)),
            line.slots.to_string(),
            format!("-{} +{}", line.leaving, line.arriving),
            known(line.directory.clone()),
        ]
    });
    let heads = [
        "DISK",
        "NODE",
        "ZONE",
        "STATE",
        "SIZE",
        "FREE",
        "SHARDS",
        "DATA",
        "SLOTS",
        "MOVING",
        "DIRECTORY",
    ];
    Ok(table(&heads, rows))
}

/// What a change of disks has come to, or would.
pub(crate) fn disks_change(change: &DisksChange, step: DiskStep, json: bool) -> Result<String> {
    if json {
        return as_json(change);
    }
    let (done, planned) = match step {
        DiskStep::Drain => ("draining", "can be drained"),
        DiskStep::Undrain => ("in use again", "can be used again"),
        DiskStep::Remove => ("removed", "can be removed"),
        DiskStep::Lose => ("dead: its shards are rebuilt elsewhere", "can be declared dead"),
    };
    let verdict = match Verdict::of(change) {
        Verdict::Done => done,
        Verdict::Unknown => "whether it was done is not known",
        Verdict::InPart => "done in part",
        Verdict::Refused => "refused; nothing was changed",
        Verdict::Possible => planned,
    };
    let moving = match step {
        DiskStep::Drain => {
            let (slots, moved) = (change.slots, bytes(change.bytes));
            format!(": {slots} slots with {moved} to move{}", at_least(change.seconds))
        }
        DiskStep::Undrain | DiskStep::Remove | DiskStep::Lose => String::new(),
    };
    let fates = [
        change.changed.iter().map(|disk| format!("disk {disk}: {done}")).collect::<Vec<_>>(),
        change.unknown.iter().map(|disk| format!("disk {disk}: it was done, or was not")).collect(),
    ];
    let lines = change.refusals.iter().chain(&change.remarks).chain(fates.iter().flatten());
    let lines = lines.map(|line| format!("- {line}\n"));
    Ok(format!("{verdict}{moving}\n{}", lines.collect::<String>()))
}

/// What a change of disks has come to, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Done to all of the disks.
    Done,
    /// Nobody knows of some of them.
    Unknown,
    /// Done to some, surely not to others.
    InPart,
    /// Surely done to none.
    Refused,
    /// It was only asked what it would mean, and nothing speaks against it.
    Possible,
}

impl Verdict {
    /// That of a change.
    pub(crate) fn of(change: &DisksChange) -> Self {
        if change.done {
            Self::Done
        } else if !change.unknown.is_empty() {
            Self::Unknown
        } else if !change.changed.is_empty() {
            Self::InPart
        } else if !change.refusals.is_empty() {
            Self::Refused
        } else {
            Self::Possible
        }
    }
}

/// How long a drain takes at least.
fn at_least(seconds: u64) -> String {
    match seconds {
        0 => String::new(),
        1..120 => format!(", which takes {seconds} s or more"),
        120..7200 => format!(", which takes {} min or more", seconds.div_ceil(60)),
        _ => format!(", which takes {} h or more", seconds.div_ceil(3600)),
    }
}

fn node_line(overview: &Overview, node: &Node) -> NodeLine {
    let answer = overview.answer_of(node.id);
    let has_disks = node.roles.contains(&Role::Data);
    let state = match answer {
        Some(answer) if answer.incarnation == node.incarnation => "up",
        Some(_) => "starting",
        None if has_disks => "no answer",
        None => "not asked (no disks)",
    };
    NodeLine {
        node: node.id.to_string(),
        name: node.name.clone(),
        zone: node.zone.clone(),
        roles: node.roles.clone(),
        address: node.address.clone(),
        state,
        disks: overview.map.disks.values().filter(|disk| disk.node == node.id).count(),
    }
}

fn disk_line(overview: &Overview, disk: &Disk) -> DiskLine {
    let node = overview.map.nodes.get(&disk.node);
    let status = overview.answer_of(disk.node).and_then(|answer| status_of(answer, disk.id));
    DiskLine {
        disk: disk.id.to_string(),
        node: disk.node.to_string(),
        zone: node.map(|node| node.zone.clone()).unwrap_or_default(),
        state: disk_state(disk, status, slots_on(&overview.map, disk.id)),
        capacity_bytes: disk.capacity_bytes,
        free_bytes: status.map(|status| status.free_bytes),
        shards: status.map(|status| status.shards),
        shard_bytes: status.map(|status| status.shard_bytes),
        slots: slots_of(&overview.map, disk.id),
        leaving: moves(&overview.map, |group, slot, _| group.homes.get(slot) == Some(&disk.id)),
        arriving: moves(&overview.map, |_, _, to| to == disk.id),
        directory: status.map(|status| status.directory.clone()),
    }
}

/// What the root has decided comes first, then what its node says now.
fn disk_state(disk: &Disk, status: Option<&DiskStatus>, slots: usize) -> &'static str {
    match (disk.state, status) {
        (DiskState::Dead, _) => "dead",
        (DiskState::Removed, _) => "removed",
        (DiskState::Draining, Some(_)) if slots == 0 => "drained",
        (DiskState::Draining, None) => "draining, no answer",
        (DiskState::Draining, Some(_)) => "draining",
        (DiskState::Suspect, _) => "suspect",
        (DiskState::Healthy, None) => "no answer",
        (DiskState::Healthy, Some(status)) if !status.writable => "takes no writes",
        (DiskState::Healthy, Some(status)) if status.free_bytes == 0 => "full",
        (DiskState::Healthy, Some(_)) => "healthy",
    }
}

fn status_of(answer: &PingReply, disk: DiskId) -> Option<&DiskStatus> {
    answer.disks.iter().find(|status| status.disk[..] == disk.0.to_be_bytes())
}

fn slots_of(map: &ClusterMap, disk: DiskId) -> usize {
    map.groups.values().flat_map(|group| &group.homes).filter(|home| **home == disk).count()
}

/// The moves that are under way of which this holds: the group, the slot's place in it, the target.
fn moves(map: &ClusterMap, is: impl Fn(&PlacementGroup, usize, DiskId) -> bool) -> usize {
    let moving = |group: &&PlacementGroup| {
        group.moving.is_some_and(|(slot, to)| is(group, usize::from(slot.0), to))
    };
    map.groups.values().filter(moving).count()
}

fn as_json<T: Serialize + ?Sized>(lines: &T) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(lines)?))
}

/// Bytes in the unit that leaves at most four digits.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = (count.ilog2() / 10).clamp(1, 6) as usize;
    #[expect(clippy::cast_precision_loss, reason = "one decimal for people")]
    let value = count as f64 / f64::from(1_u32 << 10).powi(i32::try_from(power).unwrap_or(1));
    format!("{value:.1} {}", UNITS[power - 1])
}

/// Columns as wide as their widest text, two spaces apart.
pub(crate) fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count()).max()
    };
    let widths: Vec<usize> = (0..heads.len()).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_at_most_four_digits_before_the_point() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = vec![
            vec!["a".to_owned(), "long text".to_owned()],
            vec!["bcd".to_owned(), "x".to_owned()],
        ];
        let text = table(&["ONE", "TWO"], rows.into_iter());
        assert_eq!(text, "ONE  TWO\na    long text\nbcd  x\n");
    }

    #[test]
    fn ranges_are_shown_with_the_keys_between_which_they_lie() {
        use ashlar_types::{BucketId, Epoch, Interval, RangeDescriptor, ReplicaMove};
        let between = KeyPoint::new(BucketId(7), *b"a b");
        let voters = vec![NodeId(1), NodeId(2)];
        let range = |id, epoch, start, end| {
            let (id, epoch, interval) = (RangeId(id), Epoch(epoch), Interval { start, end });
            let range = RangeDescriptor { id, epoch, interval, voters: voters.clone() };
            RangeReplicas { range, moving: None }
        };
        let root = RangeReplicas { range: RangeDescriptor::root(voters.clone()), moving: None };
        let mut last = range(9, 1, between.clone(), None);
        let (from, to) = (vec![NodeId(2)], vec![NodeId(4)]);
        last.moving = Some(ReplicaMove { range: RangeId(9), from, to });
        let first = range(1, 2, KeyPoint::least(), Some(between));
        let all = ReplicaDirectory { ranges: vec![root, first, last], drained: Vec::new() };
        let expected = "\
RANGE    EPOCH  FROM            TO              VOTERS         MOVING
root     0      -               -               node-1,node-2  -
range-1  2      (start)         bucket-7 \"a b\"  node-1,node-2  -
range-9  1      bucket-7 \"a b\"  (end)           node-1,node-2  node-2 > node-4
";
        assert_eq!(ranges(&all, false).expect("a table"), expected);
        let json: serde_json::Value =
            serde_json::from_str(&ranges(&all, true).expect("JSON")).expect("JSON");
        assert_eq!(json[1]["from"], serde_json::Value::Null);
        assert_eq!(json[1]["to"]["key"], "a b");
        assert_eq!(json[2]["from"]["bucket"], "bucket-7");
        assert_eq!(json[2]["moving"]["to"][0], "node-4");
    }

    #[test]
    fn what_the_root_has_decided_of_a_disk_comes_before_what_its_node_says() {
        let disk = |state| Disk {
            id: DiskId(1),
            node: NodeId(1),
            capacity_bytes: 1,
            incarnation: 1,
            state,
        };
        let well = DiskStatus { writable: true, free_bytes: 1, ..DiskStatus::default() };
        assert_eq!(disk_state(&disk(DiskState::Dead), Some(&well), 1), "dead");
        assert_eq!(disk_state(&disk(DiskState::Healthy), None, 1), "no answer");
        assert_eq!(disk_state(&disk(DiskState::Healthy), Some(&well), 1), "healthy");
        assert_eq!(disk_state(&disk(DiskState::Draining), Some(&well), 1), "draining");
        assert_eq!(disk_state(&disk(DiskState::Draining), Some(&well), 0), "drained");
        let full = DiskStatus { free_bytes: 0, ..well };
        assert_eq!(disk_state(&disk(DiskState::Healthy), Some(&full), 1), "full");
    }

    #[test]
    fn c7_what_nobody_knows_of_a_change_of_disks_is_not_called_a_refusal() {
        let told = |change: &DisksChange| {
            let text = disks_change(change, DiskStep::Drain, false).expect("text");
            (Verdict::of(change), text.lines().next().unwrap_or_default().to_owned())
        };
        let refusals = vec!["why".to_owned()];
        let refused = DisksChange { refusals, ..DisksChange::default() };
        assert_eq!(told(&refused).0, Verdict::Refused);
        assert!(told(&refused).1.starts_with("refused; nothing was changed"));
        let in_part = DisksChange { changed: vec!["d".to_owned()], ..refused };
        assert_eq!(told(&in_part).0, Verdict::InPart);
        assert!(told(&in_part).1.starts_with("done in part"));
        let unknown = DisksChange { unknown: vec!["e".to_owned()], ..in_part };
        assert_eq!(told(&unknown).0, Verdict::Unknown);
        assert!(told(&unknown).1.starts_with("whether it was done is not known"));
    }
}
