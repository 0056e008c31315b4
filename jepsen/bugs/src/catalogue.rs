//! What can be switched on, what it breaks, and how it is found soonest.

/// A seeded bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bug {
    /// Its name in the code.
    pub id: &'static str,
    /// What is done wrong, in words.
    pub what: &'static str,
    /// The promise that it breaks (`docs/guarantees.md`).
    pub breaks: &'static str,
    /// The faults that reach it soonest, as `ashlar-sim --faults` reads them.
    pub faults: &'static str,
    /// The seed that is known to find it under these faults.
    pub seed: u64,
}

/// All of them, from the disk upwards.
pub const CATALOGUE: &[Bug] = &[
    Bug {
        id: "log-without-sync",
        what: "the log answers before its batch is on stable storage",
        breaks: "R5",
        faults: "power-all",
        seed: 1,
    },
    Bug {
        id: "damage-is-a-torn-tail",
        what: "damage below what was synced is taken for a torn tail",
        breaks: "R5",
        faults: "rot-log,kill",
        seed: 7,
    },
    Bug {
        id: "shard-without-sync",
        what: "a shard is acknowledged before it is on stable storage",
        breaks: "D1",
        faults: "power-all",
        seed: 2,
    },
    Bug {
        id: "damaged-replica-votes",
        what: "a replica whose log is damaged takes part as before",
        breaks: "R5",
        faults: "rot-log,kill",
        seed: 7,
    },
    Bug {
        id: "read-unconfirmed",
        what: "whoever believes to lead a range answers reads without asking a quorum",
        breaks: "R11",
        faults: "partition",
        seed: 1,
    },
    Bug {
        id: "condition-without-effect",
        what: "apply does not judge conditions",
        breaks: "C3",
        faults: "kill",
        seed: 1,
    },
    Bug {
        id: "resend-is-new",
        what: "a command that is sent again is applied again",
        breaks: "C2",
        faults: "partition,storm",
        seed: 2,
    },
    Bug {
        id: "unknown-is-refused",
        what: "a gateway says of a write whose outcome is not known that it was not applied",
        breaks: "C7",
        faults: "pause,partition,power-some",
        seed: 51,
    },
    Bug {
        id: "snapshot-without-sync",
        what: "the log is purged below a snapshot that is not on stable storage",
        breaks: "R8",
        faults: "power-all",
        seed: 2,
    },
    Bug {
        id: "page-without-more",
        what: "a full page says that nothing follows",
        breaks: "C4",
        faults: "kill",
        seed: 1,
    },
    Bug {
        id: "snapshot-loses-a-row",
        what: "a replica that installs a snapshot misses rows of it",
        breaks: "R4",
        faults: "rot-log,power-one",
        seed: 4,
    },
    Bug {
        id: "emptied-while-a-voter",
        what: "a damaged replica begins anew before its removal is committed",
        breaks: "R5",
        faults: "rot-log,kill,partition",
        seed: 5,
    },
    Bug {
        id: "delete-without-effect",
        what: "a delete is acknowledged and changes nothing",
        breaks: "C6",
        faults: "kill",
        seed: 1,
    },
    Bug {
        id: "parity-is-not-computed",
        what: "the parity of a stripe is left as it was in the buffer",
        breaks: "D1",
        faults: "kill",
        seed: 1,
    },
    Bug {
        id: "slot-moves-without-its-shards",
        what: "a slot is said to have moved although nothing of it was copied",
        breaks: "D4",
        faults: "drain",
        seed: 4,
    },
    Bug {
        id: "repair-without-writing",
        what: "a missing shard is said to be rebuilt although nothing was written",
        breaks: "D4",
        faults: "kill,slow-disk",
        seed: 1,
    },
    Bug {
        id: "write-outside-of-the-range",
        what: "a range goes on taking writes of keys that a split has given to another",
        breaks: "R4",
        faults: "split",
        seed: 1,
    },
    Bug {
        id: "read-behind-the-split",
        what: "a range goes on answering reads of keys that a split has given to another",
        breaks: "C2",
        faults: "split",
        seed: 1,
    },
    Bug {
        id: "replay-begins-the-child-anew",
        what: "a split that is applied again drops the log of its child",
        breaks: "R5",
        faults: "split,kill",
        seed: 1,
    },
    Bug {
        id: "anew-from-the-first-entry",
        what: "a replica that a move has brought applies the log from its first entry",
        breaks: "R4",
        faults: "split,move-replica",
        seed: 1,
    },
    Bug {
        id: "apply-loses-a-row",
        what: "a replica now and then loses a row of what it has applied",
        breaks: "R4",
        faults: "kill",
        seed: 1,
    },
];

/// The bug of this name.
pub fn find(id: &str) -> Option<&'static Bug> {
    CATALOGUE.iter().find(|bug| bug.id == id)
}

#[cfg(test)]
mod tests {
    use super::CATALOGUE;
    use std::collections::BTreeSet;

    #[test]
    fn an_id_names_one_bug() {
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|bug| bug.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
    }
}
