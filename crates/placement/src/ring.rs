//! The hash ring: consistent_hash over fixed bytes, hashed by XXH3.
//!
//! Never over std `Hash` of a type: what it feeds the hasher may change with the compiler, and differs between machines.
//! The ring gives an order of preference; who is full is judged by the caller (bounded loads).

use consistent_hash::{Node, RingHash, StaticHashRing};
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::Xxh3;

/// Points of each member on the ring: with 16 the order of preference is even enough, as loads are bounded anyway.
const POINTS: usize = 16;

/// What is hashed: its bytes, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fixed(pub(crate) [u8; 16]);

impl Hash for Fixed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

struct FixedHash;

impl RingHash for FixedHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = Xxh3::new();
        item.hash(&mut hasher);
        hasher.finish()
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut hasher = Xxh3::new();
        node_key.hash(&mut hasher);
        hasher.write(&u64::try_from(vnode_seq).unwrap_or(u64::MAX).to_le_bytes());
        hasher.finish()
    }
}

/// A ring of members, each with a value.
pub(crate) struct Ring<V: 'static>(StaticHashRing<'static, Fixed, V, FixedHash>);

impl<V> Ring<V> {
    pub(crate) fn new(members: impl Iterator<Item = (Fixed, V)>) -> Self {
        let node = |(key, value)| Node::new(key).value(value).quantity(POINTS);
        Self(StaticHashRing::new(FixedHash, members.map(node)))
    }

    /// The members in the order of preference of an item, each once.
    pub(crate) fn preference(&self, item: Fixed) -> impl Iterator<Item = &V> {
        self.0.calc_candidates(&item).map(|node| &node.value)
    }
}

/// A number that an item gives a member: the same everywhere and for ever.
pub(crate) fn score(item: Fixed, member: Fixed) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.write(&item.0);
    hasher.write(&member.0);
    hasher.finish()
}
