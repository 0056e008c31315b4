//! Clients that record: each call becomes an invocation and an end in a history.
//!
//! A value is a seed; the object that holds it is the content of that seed, whose first word is the seed: so a read
//! names the write that it saw, and every other byte is compared (C5). Bytes that are not those of one value enter the
//! history as they came, piece by piece, for the checker to judge.

use crate::pieces::{self, SIZES, content_of, size_of};
use anyhow::{Context, Result, bail};
use ashlar_check::{Action, Event, Fault, History, Kind, Piece, Report, Verdict, Why, judge};
use ashlar_load::{Answer, Call, Client, Outcome, Payload, Trouble};
use bytes::Bytes;
use http::{Method, StatusCode};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The bucket of all recorded clients.
pub const BUCKET: &str = "jepsen";
/// Beyond every gap that the contract allows under these faults.
const DEADLINE: Duration = Duration::from_secs(20);
/// Keys of one page: few, so that most lists need several.
const PAGE_KEYS: u32 = 16;
/// The length that a read of everything asks for: longer than any value.
const WHOLE: u64 = 1 << 50;
/// What an ETag names that is not that of the bytes, and of no other value either.
const NO_VALUE: u64 = 0;
/// The smallest part that may be followed by another one.
const PART_BYTES: u64 = 5 << 20;

/// A client and the history of what it did. Clones are one client; `another` is a new one of the same history.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    number: u64,
    turn: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    clients: AtomicU64,
    operations: AtomicU64,
    values: AtomicU64,
    told: Mutex<Told>,
}

/// What has been recorded, and what is known besides.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    /// The values that may be in each object.
    written: HashMap<String, Vec<u64>>,
    /// The ETag of each value, as far as an answer told it.
    etags: HashMap<u64, String>,
}

/// The bytes that a read asked for.
#[derive(Clone, Copy)]
struct Asked {
    from: u64,
    length: u64,
}

/// A fault that has struck and not healed yet.
pub struct Strike {
    recorder: Recorder,
    operation: u64,
    fault: Fault,
}

/// The end of an operation.
#[derive(Clone, Copy)]
struct End {
    kind: Kind,
    why: Option<Why>,
}

impl Recorder {
    /// Begins a history and creates its bucket.
    pub async fn begin(client: Client) -> Result<Self> {
        client.create_bucket(BUCKET).await.context("creating the bucket")?;
        let shared = Shared {
            began: Instant::now(),
            clients: AtomicU64::new(1),
            operations: AtomicU64::new(0),
            values: AtomicU64::new(1),
            told: Mutex::default(),
        };
        Ok(Self { client, number: 0, turn: Arc::default(), shared: Arc::new(shared) })
    }

    /// Another client that records into the same history.
    pub fn another(&self) -> Self {
        let number = self.shared.clients.fetch_add(1, Ordering::Relaxed);
        let turn = usize::try_from(number).unwrap_or_default();
        Self { number, turn: Arc::new(AtomicUsize::new(turn)), ..self.clone() }
    }

    /// Says what the history is to show; without it, it only shows what happens to be in it.
    pub fn plan(&self, faults: &[&str], operations: u64) {
        let faults = faults.iter().map(|&fault| fault.to_owned()).collect();
        let action = Action::Plan { faults, operations };
        let operation = self.invoke(action.clone(), None);
        self.end(operation, None, action, End::ok());
    }

    /// A fault is about to strike.
    pub fn strike(&self, fault: &str, target: &str, under_load: bool) -> Strike {
        let fault =
            Fault { fault: fault.into(), target: target.into(), under_load, ..Fault::default() };
        let operation = self.invoke(Action::Fault(fault.clone()), None);
        Strike { recorder: self.clone(), operation, fault }
    }

    /// Writes the next value; says how it ended. Sizes come by turns.
    pub async fn put(&self, key: &str) -> Outcome {
        let turn = self.shared.operations.load(Ordering::Relaxed) % SIZES.len() as u64;
        self.put_of_size(key, turn).await
    }

    /// Writes the next value in the smallest size.
    pub async fn put_small(&self, key: &str) -> Outcome {
        self.put_of_size(key, 0).await
    }

    /// Writes the next value in the largest size of a single put, which is kept at full width.
    pub async fn put_large(&self, key: &str) -> Outcome {
        self.put_of_size(key, SIZES.len() as u64 - 1).await
    }

    async fn put_of_size(&self, key: &str, turn: u64) -> Outcome {
        let value = self.next_value(key, turn);
        let bytes = Some(size_of(value));
        let call = Call::new(Method::PUT, BUCKET, key)
            .payload(Payload::Content(content_of(value)))
            .within(DEADLINE);
        self.write(Action::Put { key: key.into(), value, bytes, version: None }, call, None).await
    }

    /// Writes the next value if there is no object, through one gateway.
    pub async fn create(&self, key: &str, gateway: Option<usize>) -> Outcome {
        let value = self.next_value(key, 0);
        let bytes = Some(size_of(value));
        let call = Call::new(Method::PUT, BUCKET, key)
            .header("if-none-match", "*")
            .payload(Payload::Content(content_of(value)))
            .within(DEADLINE);
        self.write(Action::Create { key: key.into(), value, bytes }, call, gateway).await
    }

    /// Reads an object and replaces it if it is still the same; not applied where there is nothing to replace.
    pub async fn swap(&self, key: &str) -> Outcome {
        let Ok(Some(expect)) = self.get(key).await else { return Outcome::NotApplied };
        let Some(etag) = self.told(|told| told.etags.get(&expect).cloned()) else {
            return Outcome::NotApplied;
        };
        let value = self.next_value(key, 1);
        let bytes = Some(size_of(value));
        let call = Call::new(Method::PUT, BUCKET, key)
            .header("if-match", etag)
            .payload(Payload::Content(content_of(value)))
            .within(DEADLINE);
        let action = Action::Swap { key: key.into(), expect, value, bytes };
        self.write(action, call, None).await
    }

    /// Removes an object.
    pub async fn delete(&self, key: &str) -> Outcome {
        let call = Call::new(Method::DELETE, BUCKET, key).within(DEADLINE);
        self.write(Action::Delete { key: key.into(), version: None }, call, None).await
    }

    /// Reads an object whole: its value, or that there is none; an error where there was no usable answer.
    pub async fn get(&self, key: &str) -> Result<Option<u64>, Trouble> {
        let gateway = self.next_gateway();
        let asked = || Action::Get { key: key.into(), value: None };
        let operation = self.invoke(asked(), Some(gateway));
        let call = Call::new(Method::GET, BUCKET, key).through(gateway).within(DEADLINE);
        let answer = match usable(self.client.send(call).await) {
            Ok(answer) => answer,
            Err(trouble) => {
                self.end(operation, Some(gateway), asked(), End::unknown());
                return Err(trouble);
            }
        };
        let Some(answer) = answer else {
            self.end(operation, Some(gateway), asked(), End::ok());
            return Ok(None);
        };
        let known = pieces::whole(&answer.body).filter(|value| self.learn(*value, &answer));
        if let Some(value) = known {
            let action = Action::Get { key: key.into(), value: Some(value) };
            self.end(operation, Some(gateway), action, End::ok());
            return Ok(Some(value));
        }
        self.end(operation, Some(gateway), asked(), End::unknown());
        let torn = self.slice_of(key, 0, WHOLE, &answer);
        let operation = self.invoke(torn.clone(), Some(gateway));
        self.end(operation, Some(gateway), torn, End::ok());
        let why = "its bytes and its ETag are not those of one write";
        Err(Trouble::WrongBytes(format!("{key}: {why}")))
    }

    /// Reads a range of an object. One that begins behind the object's end says nothing.
    pub async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<(), Trouble> {
        let gateway = self.next_gateway();
        let tag = None;
        let asked = || Action::Slice { key: key.into(), from, length, tag, pieces: Vec::new() };
        let operation = self.invoke(asked(), Some(gateway));
        let call = Call::new(Method::GET, BUCKET, key)
            .header("range", format!("bytes={from}-{}", from + length - 1))
            .through(gateway)
            .within(DEADLINE);
        let (action, end, done) = match usable(self.client.send(call).await) {
            Ok(None) => (asked(), End::ok(), Ok(())),
            Ok(Some(answer)) if answer.status == StatusCode::RANGE_NOT_SATISFIABLE => {
                (asked(), End::refused(Why::Refused), Ok(()))
            }
            Ok(Some(answer)) => (self.slice_of(key, from, length, &answer), End::ok(), Ok(())),
            Err(trouble) => (asked(), End::unknown(), Err(trouble)),
        };
        self.end(operation, Some(gateway), action, end);
        done
    }

    /// Lists all keys below a prefix, page by page; each page is an operation of its own.
    pub async fn list(&self, prefix: &str) -> Result<(), Trouble> {
        let mut after = String::new();
        while let Some(last) = self.list_page(prefix, &after).await? {
            after = last;
        }
        Ok(())
    }

    /// One page; its last key, if there is more behind it.
    async fn list_page(&self, prefix: &str, after: &str) -> Result<Option<String>, Trouble> {
        let gateway = self.next_gateway();
        let action =
            |keys, more| Action::List { prefix: prefix.into(), after: after.into(), keys, more };
        let operation = self.invoke(action(Vec::new(), false), Some(gateway));
        let max = PAGE_KEYS.to_string();
        let mut call = Call::new(Method::GET, BUCKET, "")
            .query("list-type", "2")
            .query("prefix", prefix)
            .query("max-keys", &max)
            .through(gateway)
            .within(DEADLINE);
        if !after.is_empty() {
            call = call.query("start-after", after);
        }
        match self.client.expect(call).await {
            Ok(answer) => {
                let xml = String::from_utf8_lossy(&answer.body);
                let keys: Vec<String> = elements(&xml, "Key").map(str::to_owned).collect();
                let more = elements(&xml, "IsTruncated").next() == Some("true");
                let last = keys.last().filter(|_| more).cloned();
                self.end(operation, Some(gateway), action(keys, more), End::ok());
                Ok(last)
            }
            Err(trouble) => {
                self.end(operation, Some(gateway), action(Vec::new(), false), End::unknown());
                Err(trouble)
            }
        }
    }

    /// Writes the next value in two parts, and says twice that it is complete: the second answer must be the first.
    pub async fn put_in_parts(&self, key: &str) -> Outcome {
        let value = self.next_value(key, SIZES.len() as u64);
        let begin = || Action::Begin { key: key.into(), upload: value };
        let call = Call::new(Method::POST, BUCKET, key).query("uploads", "").within(DEADLINE);
        let Some(answer) = self.acknowledged(begin(), call).await else {
            return Outcome::NotApplied;
        };
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let Some(id) = elements(&body, "UploadId").next() else { return Outcome::NotApplied };
        let mut named = String::new();
        for number in [1, 2] {
            let Some(etag) = self.put_part(key, value, number, id).await else {
                self.abort(key, value, id).await;
                return Outcome::NotApplied;
            };
            named += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        let first = self.complete(key, value, id, &named).await;
        let second = self.complete(key, value, id, &named).await;
        if first == Outcome::Unknown { second } else { first }
    }

    async fn put_part(&self, key: &str, value: u64, number: u32, id: &str) -> Option<String> {
        let content = content_of(value);
        let from = u64::from(number - 1) * PART_BYTES;
        let bytes = content.slice(from, usize::try_from(PART_BYTES).ok()?);
        let number_text = number.to_string();
        let call = Call::new(Method::PUT, BUCKET, key)
            .query("partNumber", &number_text)
            .query("uploadId", id)
            .payload(Payload::Bytes(bytes))
            .within(DEADLINE);
        let action = Action::Part { key: key.into(), upload: value, number };
        self.acknowledged(action, call).await?.header("etag").map(str::to_owned)
    }

    async fn abort(&self, key: &str, value: u64, id: &str) {
        let call = Call::new(Method::DELETE, BUCKET, key).query("uploadId", id).within(DEADLINE);
        self.write(Action::Abort { key: key.into(), upload: value }, call, None).await;
    }

    async fn complete(&self, key: &str, value: u64, id: &str, named: &str) -> Outcome {
        let body = format!("<CompleteMultipartUpload>{named}</CompleteMultipartUpload>");
        let call = Call::new(Method::POST, BUCKET, key)
            .query("uploadId", id)
            .payload(Payload::Bytes(Bytes::from(body)))
            .within(DEADLINE);
        let action = |answer| Action::Complete {
            key: key.into(),
            upload: value,
            parts: vec![1, 2],
            value,
            bytes: Some(size_of(value)),
            answer,
        };
        let (operation, gateway, answer) = self.send(action(None), call, None).await;
        let (outcome, end) = end_of_write(&answer);
        let etag = answer.ok().and_then(|answer| {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            elements(&body, "ETag").next().map(|etag| etag.replace("&quot;", "\""))
        });
        // S3 may say 200 and fail in the body: only an ETag is a success.
        if outcome == Outcome::Applied && etag.is_none() {
            self.end(operation, Some(gateway), action(None), End::unknown());
            return Outcome::Unknown;
        }
        let answer = etag.filter(|_| outcome == Outcome::Applied);
        self.end(operation, Some(gateway), action(answer), end);
        outcome
    }

    /// Judges everything recorded so far; the history and the report are kept beside the logs. Inconclusive fails.
    pub fn judge(&self, dir: &Path) -> Result<u64> {
        let (_, report) = self.report(dir)?;
        if report.verdict != Verdict::Pass {
            bail!("{report}");
        }
        Ok(report.operations)
    }

    /// As `judge`, whatever the verdict: the history and what it comes to.
    pub fn report(&self, dir: &Path) -> Result<(History, Report)> {
        let history = self.told(|told| History { events: told.events.clone() });
        std::fs::write(dir.join("history.jsonl"), history.to_lines())?;
        let report = judge(&history);
        std::fs::write(dir.join("verdict.json"), report.to_json())?;
        Ok((history, report))
    }

    /// Sends a call that must be acknowledged to be of use.
    async fn acknowledged(&self, action: Action, call: Call<'_>) -> Option<Answer> {
        let (operation, gateway, answer) = self.send(action.clone(), call, None).await;
        let (outcome, end) = end_of_write(&answer);
        self.end(operation, Some(gateway), action, end);
        answer.ok().filter(|_| outcome == Outcome::Applied)
    }

    async fn write(&self, action: Action, call: Call<'_>, gateway: Option<usize>) -> Outcome {
        let (operation, gateway, answer) = self.send(action.clone(), call, gateway).await;
        let (outcome, end) = end_of_write(&answer);
        if let (Outcome::Applied, Ok(answer), Some(value)) = (outcome, &answer, action.written()) {
            let _first = self.learn(value, answer);
        }
        self.end(operation, Some(gateway), action, end);
        outcome
    }

    async fn send(
        &self,
        action: Action,
        call: Call<'_>,
        gateway: Option<usize>,
    ) -> (u64, usize, Result<Answer, Trouble>) {
        let gateway = gateway.unwrap_or_else(|| self.next_gateway());
        let operation = self.invoke(action, Some(gateway));
        (operation, gateway, self.client.send(call.through(gateway)).await)
    }

    /// What a range showed.
    fn slice_of(&self, key: &str, from: u64, length: u64, answer: &Answer) -> Action {
        let etag = answer.header("etag").unwrap_or_default();
        self.told(|told| told.slice(key, Asked { from, length }, etag, &answer.body))
    }

    /// Keeps the ETag under which a value was written or read; false where it was another one before.
    fn learn(&self, value: u64, answer: &Answer) -> bool {
        let Some(etag) = answer.header("etag") else { return false };
        self.told(|told| told.etags.entry(value).or_insert_with(|| etag.to_owned()) == etag)
    }

    /// A value that was never used, of the size of this turn.
    fn next_value(&self, key: &str, turn: u64) -> u64 {
        let value = pieces::value(self.shared.values.fetch_add(1, Ordering::Relaxed), turn);
        self.told(|told| told.written.entry(key.to_owned()).or_default().push(value));
        value
    }

    fn next_gateway(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.client.gateways()
    }

    fn invoke(&self, action: Action, gateway: Option<usize>) -> u64 {
        let operation = self.shared.operations.fetch_add(1, Ordering::Relaxed);
        self.end(operation, gateway, action, End { kind: Kind::Invoke, why: None });
        operation
    }

    fn end(&self, operation: u64, gateway: Option<usize>, action: Action, end: End) {
        let (at_us, client) = (self.now_us(), self.number);
        let gateway = gateway.and_then(|gateway| u64::try_from(gateway).ok());
        let End { kind, why } = end;
        let event = Event { at_us, operation, kind, client, gateway, why, action };
        self.told(|told| told.events.push(event));
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.shared.began.elapsed().as_micros())
            .expect("a run is shorter than an age")
    }

    fn told<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.shared.told.lock().expect("no holder panics"))
    }
}

impl Told {
    /// A slice as the checker takes it: whose bytes came, and which value the ETag names.
    fn slice(&self, key: &str, asked: Asked, etag: &str, body: &[u8]) -> Action {
        let mut candidates = self.written.get(key).cloned().unwrap_or_default();
        let is_named = |value: &&u64| self.etags.get(*value).is_some_and(|known| known == etag);
        let named = candidates.iter().find(is_named).copied();
        // The newest is the likeliest, the one that the ETag names the most.
        candidates.extend(named);
        candidates.reverse();
        let Asked { from, length } = asked;
        let pieces: Vec<Piece> = pieces::of(body, from, &candidates);
        let owner = pieces.first().and_then(|piece| piece.value);
        let is_known = owner.is_some_and(|owner| self.etags.contains_key(&owner));
        let tag = named.or_else(|| is_known.then_some(NO_VALUE));
        Action::Slice { key: key.into(), from, length, tag, pieces }
    }
}

impl Strike {
    /// It bites now; what shows it is seen later.
    pub fn bites(&mut self) {
        self.fault.bit_at_us = Some(self.recorder.now_us());
    }

    /// It has been seen to bite: now, if it was not said before when.
    pub fn bit(&mut self, evidence: impl Into<String>) {
        self.fault.bit_at_us.get_or_insert_with(|| self.recorder.now_us());
        self.fault.evidence = evidence.into();
    }

    /// It is over.
    pub fn healed(self) {
        self.recorder.end(self.operation, None, Action::Fault(self.fault), End::ok());
    }
}

impl End {
    fn ok() -> Self {
        Self { kind: Kind::Ok, why: None }
    }

    fn unknown() -> Self {
        Self { kind: Kind::Info, why: None }
    }

    fn refused(why: Why) -> Self {
        Self { kind: Kind::Fail, why: Some(why) }
    }
}

/// How a write ended (C7), and why where it was refused.
fn end_of_write(answer: &Result<Answer, Trouble>) -> (Outcome, End) {
    let (outcome, why) = match answer {
        Ok(answer) => (answer.outcome(), why_refused(answer.status)),
        Err(trouble) => (trouble.outcome(), Why::Unavailable),
    };
    let end = match outcome {
        Outcome::Applied => End::ok(),
        Outcome::NotApplied => End::refused(why),
        Outcome::Unknown => End::unknown(),
    };
    (outcome, end)
}

fn why_refused(status: StatusCode) -> Why {
    match status {
        StatusCode::PRECONDITION_FAILED => Why::Condition,
        StatusCode::NOT_FOUND => Why::Missing,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE => Why::Unavailable,
        _ => Why::Refused,
    }
}

/// An answer to a read that says something about the object: none where there is none.
fn usable(answer: Result<Answer, Trouble>) -> Result<Option<Answer>, Trouble> {
    let answer = answer?;
    match answer.status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            Ok(Some(answer))
        }
        StatusCode::NOT_FOUND => Ok(None),
        status => Err(Trouble::Status(status, String::from_utf8_lossy(&answer.body).into_owned())),
    }
}

/// The texts of all elements of a name. Nothing that is asked for here contains an entity but ETags.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let starts = xml.match_indices(&open).map(|(at, open)| at + open.len()).collect::<Vec<_>>();
    starts.into_iter().filter_map(move |at| xml[at..].split_once(&close).map(|(text, _)| text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_in_the_order_of_the_answer() {
        let xml = "<A><Key>b</Key></A><Key>a/1</Key><IsTruncated>true</IsTruncated>";
        assert_eq!(elements(xml, "Key").collect::<Vec<_>>(), ["b", "a/1"]);
        assert_eq!(elements(xml, "IsTruncated").next(), Some("true"));
        assert_eq!(elements(xml, "ETag").next(), None);
    }

    /// A read as the checker judges it, of an object that was written twice.
    fn verdict_on(asked: Asked, etag: &str, body: &[u8]) -> Verdict {
        let values = [pieces::value(1, 1), pieces::value(2, 1)];
        let mut told = Told::default();
        told.written.insert("k".into(), values.to_vec());
        told.etags = HashMap::from([(values[0], "one".into()), (values[1], "two".into())]);
        let put = |value| Action::Put {
            key: "k".into(),
            value,
            bytes: Some(size_of(value)),
            version: None,
        };
        let actions = [put(values[0]), put(values[1]), told.slice("k", asked, etag, body)];
        let event = |at_us, operation, kind, action| {
            let (client, gateway, why) = (0, None, None);
            Event { at_us, operation, kind, client, gateway, why, action }
        };
        let events = (1..).zip(actions).flat_map(|(number, action)| {
            [
                event(10 * number, number, Kind::Invoke, action.clone()),
                event(10 * number + 5, number, Kind::Ok, action),
            ]
        });
        judge(&History { events: events.collect() }).verdict
    }

    #[test]
    fn c5_a_mixed_a_cut_and_a_wrongly_named_body_fail() {
        let old = content_of(pieces::value(1, 1)).bytes();
        let new = content_of(pieces::value(2, 1)).bytes();
        let whole = Asked { from: 0, length: WHOLE };
        assert_eq!(verdict_on(whole, "two", &new), Verdict::Pass);
        assert_eq!(verdict_on(whole, "one", &old), Verdict::Fail, "stale");
        assert_eq!(verdict_on(whole, "one", &new), Verdict::Fail, "under another's ETag");
        assert_eq!(verdict_on(whole, "three", &new), Verdict::Fail, "under nobody's ETag");
        assert_eq!(verdict_on(whole, "two", &new[..4_000]), Verdict::Fail, "cut");
        let mixed = [&old[..2_000], &new[2_000..]].concat();
        assert_eq!(verdict_on(whole, "two", &mixed), Verdict::Fail, "mixed");
        let range = Asked { from: 64, length: 1_000 };
        assert_eq!(verdict_on(range, "two", &new[64..1_064]), Verdict::Pass);
        assert_eq!(verdict_on(range, "two", &new[64..1_000]), Verdict::Fail, "cut");
        assert_eq!(verdict_on(range, "two", &new[72..1_072]), Verdict::Fail, "moved");
    }

    #[test]
    fn c7_ends_are_what_the_client_knows() {
        let ended = |status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            let (headers, body) = (http::HeaderMap::new(), Bytes::new());
            let (_, end) = end_of_write(&Ok(Answer { status, headers, body }));
            (end.kind, end.why)
        };
        assert_eq!(ended(200), (Kind::Ok, None));
        assert_eq!(ended(412), (Kind::Fail, Some(Why::Condition)));
        assert_eq!(ended(404), (Kind::Fail, Some(Why::Missing)));
        assert_eq!(ended(503), (Kind::Fail, Some(Why::Unavailable)));
        assert_eq!(ended(400), (Kind::Fail, Some(Why::Refused)));
        assert_eq!(ended(500), (Kind::Info, None));
        let (_, cut) = end_of_write(&Err(Trouble::Cut("reset".into())));
        assert_eq!(cut.kind, Kind::Info);
        let (_, refused) = end_of_write(&Err(Trouble::Refused("no listener".into())));
        assert_eq!((refused.kind, refused.why), (Kind::Fail, Some(Why::Unavailable)));
    }
}
