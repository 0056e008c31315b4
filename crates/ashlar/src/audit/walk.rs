//! A walk over what all ranges name, page by page.

use anyhow::{Result, bail};
use ashlar_client::Client;
use ashlar_types::{Extent, InventoryEntry, InventoryPosition, KeyPoint, RangeDescriptor};
use std::sync::Arc;

/// Extents of one page.
const PAGE_EXTENTS: u32 = 500;

/// Where a walk is. The ranges follow each other without a gap, because each begins where the last one ends.
pub(super) struct Walk<'a> {
    client: &'a Client,
    /// Where the range begins that is walked, or is next; `None`: all were.
    at: Option<KeyPoint>,
    after: Option<InventoryPosition>,
    range: Option<Arc<RangeDescriptor>>,
    pub(super) ranges: u64,
}

/// Some of what a range names.
pub(super) struct WalkedPage {
    pub(super) range: Arc<RangeDescriptor>,
    pub(super) entries: Vec<InventoryEntry>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, at: Some(KeyPoint::least()), after: None, range: None, ranges: 0 }
    }

    /// The next page; `None`: all ranges were walked from end to end. It gives up where a range changes meanwhile: what
    /// went to another one may not have been met.
    pub(super) async fn next(&mut self) -> Result<Option<WalkedPage>> {
        let Some(at) = &self.at else { return Ok(None) };
        let page = self.client.inventory(at, self.after.take(), PAGE_EXTENTS).await?;
        let same = match &self.range {
            Some(range) => **range == *page.range,
            None => page.range.interval.start == *at,
        };
        if !same {
            bail!("{} has changed while it was walked", page.range.id);
        }
        self.range = Some(page.range.clone());
        self.after = page.next;
        if self.after.is_none() {
            self.at.clone_from(&page.range.interval.end);
            self.range = None;
            self.ranges += 1;
        }
        Ok(Some(WalkedPage { range: page.range, entries: page.entries }))
    }
}

/// The extents that an entry names. Those of an object's list of parts are named by the parts themselves.
pub(super) fn names(entry: &InventoryEntry) -> &[Extent] {
    match entry {
        InventoryEntry::Plain { content, .. } | InventoryEntry::Part { content, .. } => {
            &content.extents
        }
        InventoryEntry::Garbage(extent) => std::slice::from_ref(extent),
        InventoryEntry::Composite { .. } => &[],
    }
}

/// All extents of an entry that are not garbage.
pub(super) fn extents(entry: &InventoryEntry) -> Vec<&Extent> {
    match entry {
        InventoryEntry::Plain { content, .. } | InventoryEntry::Part { content, .. } => {
            content.extents.iter().collect()
        }
        InventoryEntry::Composite { parts, .. } => {
            parts.iter().flat_map(|part| &part.extents).collect()
        }
        InventoryEntry::Garbage(_) => Vec::new(),
    }
}
