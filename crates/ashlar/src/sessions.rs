//! Ends the gateway sessions that nobody uses: only what was written under an ended session can be audited.
//!
//! The root is asked first which sessions are open, then each of their gateways which it uses. What a gateway does not
//! name then, it will never use: the session was opened by a call whose answer it did not hear, or by an earlier life of
//! it. (A boot ends the sessions of earlier lives by itself.) A gateway that has not answered for a lease is taken for
//! dead. None of this has to be right: what makes an ended session harmless is the fence in every range, and a gateway
//! that lives after all opens another one.

use crate::leading::Leading;
use ashlar_client::{Client, Failure, SessionsInUse};
use ashlar_host::{Host, Monotonic};
use ashlar_types::{ClusterMap, LivingSession, NodeId};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Looks again and again, while this node leads the root.
pub(crate) struct SessionEnds {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
    /// A gateway that has not answered for so long is taken for dead.
    pub(crate) silent_max: Duration,
}

impl SessionEnds {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        let mut silent = BTreeMap::new();
        loop {
            self.host.clock.sleep(LOOK_EVERY.min(self.silent_max)).await;
            if !self.leading.root() {
                silent.clear();
                continue;
            }
            match look(&self.client).await {
                Ok(gateways) => {
                    let now = self.host.clock.now();
                    let dead = dead(&mut silent, &gateways, now, self.silent_max);
                    end(&self.client, &gateways, &dead).await;
                }
                Err(failure) => tracing::debug!(%failure, "the open sessions are not known now"),
            }
        }
    }
}

/// Those that have been silent for a lease, as this node measures it.
fn dead(
    silent: &mut BTreeMap<NodeId, Monotonic>,
    gateways: &[Gateway],
    now: Monotonic,
    silent_max: Duration,
) -> BTreeSet<NodeId> {
    let quiet = gateways.iter().filter(|gateway| gateway.answer.is_none());
    let quiet: BTreeSet<NodeId> = quiet.map(|gateway| gateway.node).collect();
    silent.retain(|node, _| quiet.contains(node));
    for &node in &quiet {
        silent.entry(node).or_insert(now);
    }
    let over = |&(_, &since): &(&NodeId, &Monotonic)| now - since >= silent_max;
    silent.iter().filter(over).map(|(&node, _)| node).collect()
}

/// Ends what surely nobody uses, at once: before an audit.
pub(crate) async fn end_unused(client: &Client) -> Result<(), Failure> {
    let gateways = look(client).await?;
    end(client, &gateways, &BTreeSet::new()).await;
    Ok(())
}

/// A node with open sessions.
struct Gateway {
    node: NodeId,
    sessions: Vec<LivingSession>,
    /// `None`: it does not answer.
    answer: Option<SessionsInUse>,
    /// Whether it is a member.
    member: bool,
}

async fn look(client: &Client) -> Result<Vec<Gateway>, Failure> {
    // in this order: a session that is opened behind the list is judged the next time
    let living = client.living_sessions().await?;
    let map = client.map_now().await?;
    let mut by_node: BTreeMap<NodeId, Vec<LivingSession>> = BTreeMap::new();
    for session in living.sessions {
        by_node.entry(session.node).or_default().push(session);
    }
    let asked = by_node.into_iter().map(|(node, sessions)| ask(client, &map, node, sessions));
    Ok(join_all(asked).await)
}

async fn ask(
    client: &Client,
    map: &ClusterMap,
    node: NodeId,
    sessions: Vec<LivingSession>,
) -> Gateway {
    let Some(member) = map.nodes.get(&node) else {
        return Gateway { node, sessions, answer: None, member: false };
    };
    let answer = client.sessions_of(&member.address).await;
    if let Err(reason) = &answer {
        tracing::debug!(%node, reason, "a gateway does not say which sessions it uses");
    }
    Gateway { node, sessions, answer: answer.ok(), member: true }
}

async fn end(client: &Client, gateways: &[Gateway], dead: &BTreeSet<NodeId>) {
    for gateway in gateways {
        for session in &gateway.sessions {
            if !is_over(gateway, session, dead.contains(&gateway.node)) {
                continue;
            }
            match client.end_session(session.id).await {
                Ok(()) => {
                    metrics::counter!("ashlar_sessions_ended_total").increment(1);
                    tracing::info!(session = %session.id, node = %gateway.node, "a session that nobody uses was ended");
                }
                Err(failure) => {
                    tracing::debug!(session = %session.id, %failure, "a session could not be ended now");
                }
            }
        }
    }
}

/// Whether nobody uses a session any more, as far as that can be known.
fn is_over(gateway: &Gateway, session: &LivingSession, dead: bool) -> bool {
    match &gateway.answer {
        None => dead || !gateway.member,
        Some(answer) if answer.incarnation != session.incarnation => {
            answer.incarnation > session.incarnation
        }
        Some(answer) => !answer.opening && !answer.sessions.contains(&session.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::SessionId;

    const SESSION: LivingSession =
        LivingSession { id: SessionId(5), node: NodeId(1), incarnation: 2 };

    fn gateway(answer: Option<SessionsInUse>) -> Gateway {
        Gateway { node: NodeId(1), sessions: vec![SESSION], answer, member: true }
    }

    fn answer(incarnation: u64, sessions: &[u64], opening: bool) -> Option<SessionsInUse> {
        let sessions = sessions.iter().copied().map(SessionId).collect();
        Some(SessionsInUse { incarnation, sessions, opening })
    }

    #[test]
    fn a_session_is_over_when_its_gateway_does_not_name_it() {
        assert!(!is_over(&gateway(answer(2, &[4, 5], false)), &SESSION, false), "in use");
        assert!(is_over(&gateway(answer(2, &[6], false)), &SESSION, false), "never heard of");
        assert!(!is_over(&gateway(answer(2, &[], true)), &SESSION, false), "may be this one");
        assert!(is_over(&gateway(answer(3, &[], true)), &SESSION, false), "an earlier life");
        assert!(!is_over(&gateway(answer(1, &[], false)), &SESSION, false), "an old image answers");
    }

    #[test]
    fn a_silent_gateway_is_waited_for() {
        assert!(!is_over(&gateway(None), &SESSION, false));
        assert!(is_over(&gateway(None), &SESSION, true));
        let gone = Gateway { member: false, ..gateway(None) };
        assert!(is_over(&gone, &SESSION, false), "no member any more");
    }

    #[test]
    fn a_lease_runs_from_the_first_silence_and_ends_with_an_answer() {
        let (mut silent, lease) = (BTreeMap::new(), Duration::from_secs(10));
        let mut dead_at = |seconds: u64, answer: Option<SessionsInUse>| {
            let now = Monotonic::default() + Duration::from_secs(seconds);
            !dead(&mut silent, &[gateway(answer)], now, lease).is_empty()
        };
        assert!(!dead_at(1, None));
        assert!(!dead_at(10, None));
        assert!(!dead_at(10, answer(2, &[], false)), "it lives");
        assert!(!dead_at(11, None));
        assert!(!dead_at(20, None), "the lease began anew");
        assert!(dead_at(21, None));
    }
}
