//! Clients that record: each call becomes an invocation and an end in a history.
//!
//! A value is a seed; the object that holds it is the content of that seed, whose first word is the seed: so a read
//! names the write that it saw, and every other byte is compared (C5).

use anyhow::{Context, Result, bail};
use ashlar_check::{Action, Event, History, Kind, check};
use ashlar_load::{Call, Client, Content, Outcome, Payload, Trouble, Verifier};
use http::{Method, StatusCode};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The bucket of all recorded clients.
pub(crate) const BUCKET: &str = "kill";
/// Sizes of values, by the value modulo their number: inline, three copies, one stripe, several stripes.
const SIZES: [u64; 5] = [100, 5_000, 50_000, 400_000, 2_500_000];
/// Beyond every gap that the contract allows under these faults.
const DEADLINE: Duration = Duration::from_secs(20);

/// A client and the history of what it did. Clones record into the same history.
#[derive(Clone)]
pub(crate) struct Recorder {
    client: Client,
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    operations: AtomicU64,
    values: AtomicU64,
    events: Mutex<Vec<Event>>,
    /// Reads whose bytes are of no write at all.
    torn: Mutex<Vec<String>>,
}

impl Recorder {
    /// Begins a history and creates its bucket.
    pub(crate) async fn begin(client: Client) -> Result<Self> {
        client.create_bucket(BUCKET).await.context("creating the bucket")?;
        let shared = Shared {
            began: Instant::now(),
            operations: AtomicU64::new(0),
            values: AtomicU64::new(1),
            events: Mutex::default(),
            torn: Mutex::default(),
        };
        Ok(Self { client, shared: Arc::new(shared) })
    }

    /// Writes the next value; says how it ended. Sizes come by turns.
    pub(crate) async fn put(&self, key: &str) -> Outcome {
        let turn = self.shared.operations.load(Ordering::Relaxed) % SIZES.len() as u64;
        self.put_of_size(key, turn).await
    }

    /// Writes the next value in the smallest size.
    pub(crate) async fn put_small(&self, key: &str) -> Outcome {
        self.put_of_size(key, 0).await
    }

    /// Writes the next value in the largest size, which is kept at full width.
    pub(crate) async fn put_large(&self, key: &str) -> Outcome {
        self.put_of_size(key, SIZES.len() as u64 - 1).await
    }

    async fn put_of_size(&self, key: &str, turn: u64) -> Outcome {
        let value = self.next_value(turn);
        let content = content_of(value);
        let call =
            Call::new(Method::PUT, BUCKET, key).payload(Payload::Content(content)).within(DEADLINE);
        self.write(Action::Put { key: key.into(), value }, call).await
    }

    /// Writes the next value if there is no object, through one gateway.
    pub(crate) async fn create(&self, key: &str, gateway: usize) -> Outcome {
        let value = self.next_value(0);
        let call = Call::new(Method::PUT, BUCKET, key)
            .header("if-none-match", "*")
            .payload(Payload::Content(content_of(value)))
            .through(gateway)
            .within(DEADLINE);
        self.write(Action::Create { key: key.into(), value }, call).await
    }

    /// Removes an object.
    pub(crate) async fn delete(&self, key: &str) -> Outcome {
        let call = Call::new(Method::DELETE, BUCKET, key).within(DEADLINE);
        self.write(Action::Delete { key: key.into() }, call).await
    }

    /// Reads an object whole; an error where there was no usable answer.
    pub(crate) async fn get(&self, key: &str) -> Result<(), Trouble> {
        let action = |value| Action::Get { key: key.into(), value };
        let operation = self.invoke(action(None));
        let answer = self.client.send(Call::new(Method::GET, BUCKET, key).within(DEADLINE)).await;
        let seen = match answer {
            Ok(answer) if answer.status == StatusCode::OK => value_in(&answer.body).map(Some),
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => Ok(None),
            Ok(answer) => Err(Trouble::Status(
                answer.status,
                String::from_utf8_lossy(&answer.body).into_owned(),
            )),
            Err(trouble) => Err(trouble),
        };
        if let Err(Trouble::WrongBytes(why)) = &seen {
            self.shared.torn.lock().expect("no holder panics").push(format!("{key}: {why}"));
        }
        match seen {
            Ok(value) => self.end(operation, Kind::Ok, action(value)),
            Err(_) => self.end(operation, Kind::Info, action(None)),
        }
        seen.map(|_| ())
    }

    /// Lists all keys below a prefix, in one page: workloads keep below 1,000 keys.
    pub(crate) async fn list(&self, prefix: &str) -> Result<(), Trouble> {
        let action = |keys| Action::List { prefix: prefix.into(), keys };
        let operation = self.invoke(action(Vec::new()));
        let page = self.client.list_page(BUCKET, prefix, "", 1000).await;
        match page {
            Ok(keys) => self.end(operation, Kind::Ok, action(keys)),
            Err(trouble) => {
                self.end(operation, Kind::Info, action(Vec::new()));
                return Err(trouble);
            }
        }
        Ok(())
    }

    /// Judges everything recorded so far; the history is kept beside the logs.
    pub(crate) fn judge(&self, dir: &Path) -> Result<usize> {
        let history =
            History { events: self.shared.events.lock().expect("no holder panics").clone() };
        std::fs::write(dir.join("history.jsonl"), history.to_lines())?;
        let mut violations = self.shared.torn.lock().expect("no holder panics").clone();
        violations.extend(check(&history));
        match violations.as_slice() {
            [] => Ok(history.events.len() / 2),
            [first, rest @ ..] => {
                bail!("the contract is broken: {first} (and {} more)", rest.len())
            }
        }
    }

    async fn write(&self, action: Action, call: Call<'_>) -> Outcome {
        let operation = self.invoke(action.clone());
        let outcome = match self.client.send(call).await {
            Ok(answer) => answer.outcome(),
            Err(trouble) => trouble.outcome(),
        };
        let kind = match outcome {
            Outcome::Applied => Kind::Ok,
            Outcome::NotApplied => Kind::Fail,
            Outcome::Unknown => Kind::Info,
        };
        self.end(operation, kind, action);
        outcome
    }

    /// A value that was never used, of the size of this turn.
    fn next_value(&self, turn: u64) -> u64 {
        self.shared.values.fetch_add(1, Ordering::Relaxed) * SIZES.len() as u64 + turn
    }

    fn invoke(&self, action: Action) -> u64 {
        let operation = self.shared.operations.fetch_add(1, Ordering::Relaxed);
        self.end(operation, Kind::Invoke, action);
        operation
    }

    fn end(&self, operation: u64, kind: Kind, action: Action) {
        let at_us = u64::try_from(self.shared.began.elapsed().as_micros())
            .expect("a run is shorter than an age");
        self.shared.events.lock().expect("no holder panics").push(Event {
            at_us,
            operation,
            kind,
            action,
        });
    }
}

fn content_of(value: u64) -> Content {
    let turn = usize::try_from(value % SIZES.len() as u64).expect("below the number of sizes");
    Content::new(value, SIZES[turn])
}

fn value_in(body: &[u8]) -> Result<u64, Trouble> {
    let head = body
        .first_chunk::<8>()
        .ok_or_else(|| Trouble::WrongBytes(format!("only {} bytes", body.len())))?;
    let value = u64::from_le_bytes(*head);
    let mut verifier = Verifier::whole(content_of(value));
    verifier.take(body).and_then(|()| verifier.finish()).map_err(Trouble::WrongBytes)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_its_value_and_a_mix_of_two_is_noticed() {
        let (one, two) = (content_of(6).bytes(), content_of(11).bytes());
        assert_eq!(one.len(), 5_000);
        assert_eq!(value_in(&one).unwrap(), 6);
        let mix = [&one[..2_000], &two[2_000..]].concat();
        assert!(matches!(value_in(&mix), Err(Trouble::WrongBytes(_))));
        assert!(matches!(value_in(&one[..4]), Err(Trouble::WrongBytes(_))));
    }
}
