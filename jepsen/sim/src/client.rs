//! A client: one operation after another through the gateways' S3 backend, each recorded as it was seen.
//!
//! A request runs as a task of its gateway's process: when that dies, the client sees a cut connection, which is an
//! unknown outcome for a write (C7).

use crate::content::{LENGTH_MIN, claimed, content_of};
use crate::machines::Door;
use crate::options::{Dice, Options};
use crate::record::{End, Recorder};
use crate::world::World;
use ashlar_check::{Action, Kind, Piece, Why};
use ashlar_s3::{Backend, Failure, Found, List, Place, PutObject, Upload, Written};
use ashlar_types::{
    BucketName, Description, Etag, ListEntry, ObjectKey, Page, Span, WriteCondition,
};
use bytes::Bytes;
use futures::StreamExt as _;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) const BUCKET: &str = "simulated";
/// Beyond every gap that the contract allows.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);
const PAGE_KEYS: u32 = 5;

/// The ETag of each value, as an answer told it.
#[derive(Clone, Default)]
pub(crate) struct Etags(Arc<Mutex<BTreeMap<u64, Etag>>>);

impl Etags {
    fn learn(&self, value: u64, etag: Etag) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(value, etag);
    }

    fn of(&self, value: u64) -> Option<Etag> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&value).copied()
    }

    fn value_of(&self, etag: &Etag) -> Option<u64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(_, known)| *known == etag).map(|(value, _)| *value)
    }
}

/// One client.
pub(crate) struct Client {
    number: u64,
    world: World,
    recorder: Recorder,
    etags: Etags,
    dice: Dice,
    /// The last value that it saw under a key.
    seen: BTreeMap<String, u64>,
}

/// What a request came to, for a client that may have lost its gateway.
enum Reply<T> {
    Answer(Result<T, Failure>),
    /// Cut, or no answer in time.
    Nothing,
    /// Nobody was asked.
    NoGateway,
}

impl Client {
    pub(crate) fn new(
        number: u64,
        world: &World,
        recorder: &Recorder,
        etags: &Etags,
        seed: u64,
    ) -> Self {
        let dice = Dice::new(seed ^ (number + 1) << 40);
        let (world, recorder, etags) = (world.clone(), recorder.clone(), etags.clone());
        Self { number, world, recorder, etags, dice, seen: BTreeMap::new() }
    }

    /// Works until it is told to end.
    pub(crate) async fn work(mut self, options: Options) {
        while !self.world.is_safety_over() {
            let key = format!("key-{:02}", self.dice.below(options.keys));
            let gateway = self.dice.index(options.gateways.into());
            match self.dice.below(100) {
                0..35 => drop(self.put(gateway, &key).await),
                35..65 => drop(self.get(gateway, &key).await),
                65..72 => self.create(gateway, &key).await,
                72..80 => self.swap(gateway, &key).await,
                80..88 => self.delete(gateway, &key).await,
                88..94 => self.slice(gateway, &key).await,
                _ => drop(self.list(gateway).await),
            }
            let pause = self.dice.millis(0, options.think_ms_max);
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks a gateway.
    async fn ask<T, F, W>(&self, gateway: usize, work: W) -> Reply<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        W: FnOnce(Arc<dyn Backend>) -> F,
    {
        let Some(Door { backend, life }) = self.world.door(gateway) else {
            return Reply::NoGateway;
        };
        let task = life.spawn(work(backend));
        let abort = task.abort_handle();
        match tokio::time::timeout(PATIENCE, task).await {
            Ok(Ok(answer)) => Reply::Answer(answer),
            Ok(Err(_dropped)) => Reply::Nothing,
            Err(_late) => {
                abort.abort();
                Reply::Nothing
            }
        }
    }

    fn length(&self) -> usize {
        let length = match self.dice.below(100) {
            0..60 => self.dice.between(8, 2_000),
            60..75 => self.dice.between(2_000, 8_300),
            75..92 => self.dice.between(8_300, 66_000),
            _ => self.dice.between(66_000, 400_000),
        };
        usize::try_from(length).unwrap_or(LENGTH_MIN)
    }

    fn gateway_number(gateway: usize) -> Option<u64> {
        Some(gateway as u64 + 1)
    }

    /// Writes the next value. `true`: acknowledged.
    pub(crate) async fn put(&mut self, gateway: usize, key: &str) -> bool {
        let length = self.length();
        let value = self.recorder.new_value(length);
        let bytes = Some(length as u64);
        let action = Action::Put { key: key.to_owned(), value, bytes, version: None };
        self.write(gateway, key, value, WriteCondition::Always, action).await
    }

    async fn create(&mut self, gateway: usize, key: &str) {
        let length = self.length();
        let value = self.recorder.new_value(length);
        let action = Action::Create { key: key.to_owned(), value, bytes: Some(length as u64) };
        self.write(gateway, key, value, WriteCondition::Absent, action).await;
    }

    async fn swap(&mut self, gateway: usize, key: &str) {
        let seen = self.seen.get(key).copied();
        let Some((expect, etag)) = seen.and_then(|value| Some((value, self.etags.of(value)?)))
        else {
            self.get(gateway, key).await;
            return;
        };
        let length = self.length();
        let value = self.recorder.new_value(length);
        let bytes = Some(length as u64);
        let action = Action::Swap { key: key.to_owned(), expect, value, bytes };
        self.write(gateway, key, value, WriteCondition::Matches(vec![etag]), action).await;
    }

    async fn write(
        &mut self,
        gateway: usize,
        key: &str,
        value: u64,
        condition: WriteCondition,
        action: Action,
    ) -> bool {
        let length = self.recorder.length(value).unwrap_or(LENGTH_MIN);
        let place = place(key);
        let put = PutObject { place, condition, description: Description::default(), token: None };
        let number = Self::gateway_number(gateway);
        let operation = self.recorder.invoke(self.number, number, &action);
        let reply = self.ask(gateway, move |backend| async move {
            let content = content_of(value, length);
            let pieces: Vec<Result<Bytes, Failure>> =
                content.chunks(32 << 10).map(|piece| Ok(content.slice_ref(piece))).collect();
            let body = Upload::copied(futures::stream::iter(pieces).boxed(), length as u64);
            backend.put(put, body).await
        });
        let reply = reply.await;
        if let Reply::Answer(Ok(Written { etag, .. })) = &reply {
            self.etags.learn(value, *etag);
            self.seen.insert(key.to_owned(), value);
        }
        let end = self.end_of_write(&reply);
        let is_done = matches!(&reply, Reply::Answer(Ok(_)));
        self.recorder.end(operation, self.number, number, action, end);
        is_done
    }

    async fn delete(&mut self, gateway: usize, key: &str) {
        let action = Action::Delete { key: key.to_owned(), version: None };
        let number = Self::gateway_number(gateway);
        let operation = self.recorder.invoke(self.number, number, &action);
        let place = place(key);
        let reply = self.ask(gateway, move |backend| async move {
            backend.delete(&place, WriteCondition::Always, None).await
        });
        let reply = reply.await;
        let end = self.end_of_write(&reply);
        self.recorder.end(operation, self.number, number, action, end);
    }

    fn end_of_write<T>(&self, reply: &Reply<T>) -> End {
        match reply {
            Reply::Answer(Ok(_)) => End::OK,
            Reply::Answer(Err(failure)) => self.end_of(failure),
            Reply::Nothing => End::UNKNOWN,
            Reply::NoGateway => End::failed(Why::Unavailable),
        }
    }

    fn end_of(&self, failure: &Failure) -> End {
        match failure {
            Failure::ConditionFailed => End::failed(Why::Condition),
            Failure::NoSuchKey => End::failed(Why::Missing),
            Failure::Overloaded | Failure::Unavailable(_) | Failure::NoSpace => {
                End::failed(Why::Unavailable)
            }
            Failure::Unknown(_) => End::UNKNOWN,
            // nothing that these clients do is answered so
            Failure::NoSuchBucket
            | Failure::NoSuchVersion
            | Failure::DeleteMarker { .. }
            | Failure::NoSuchUpload
            | Failure::BucketExists
            | Failure::BucketNotEmpty
            | Failure::BucketBusy
            | Failure::Changed
            | Failure::SpanOutside { .. }
            | Failure::NoSuchPart
            | Failure::Body(_)
            | Failure::Internal(_) => {
                self.recorder.find("C7", format!("client {} was told: {failure}", self.number));
                End::failed(Why::Refused)
            }
        }
    }

    /// Reads a whole object. `true`: it was answered, be it that there is none.
    pub(crate) async fn get(&mut self, gateway: usize, key: &str) -> bool {
        let action = Action::Get { key: key.to_owned(), value: None };
        let number = Self::gateway_number(gateway);
        let operation = self.recorder.invoke(self.number, number, &action);
        let (action, end) = match self.read(gateway, key, Span::All).await {
            Reply::Answer(Ok((etag, bytes))) => self.judge(key, &etag, &bytes),
            Reply::Answer(Err(Failure::NoSuchKey)) => {
                self.seen.remove(key);
                (action, End::OK)
            }
            Reply::Answer(Err(failure)) => (action, self.end_of_read(&failure)),
            Reply::Nothing => (action, End::UNKNOWN),
            Reply::NoGateway => (action, End::failed(Why::Unavailable)),
        };
        self.recorder.end(operation, self.number, number, action, end);
        end.kind == Kind::Ok
    }

    /// A read changes nothing: where it was broken off, it simply failed.
    fn end_of_read(&self, failure: &Failure) -> End {
        match failure {
            Failure::Internal(_) | Failure::Unknown(_) => End::failed(Why::Unavailable),
            other => self.end_of(other),
        }
    }

    async fn read(&self, gateway: usize, key: &str, span: Span) -> Reply<(Etag, Bytes)> {
        let place = place(key);
        self.ask(gateway, move |backend| async move {
            // that versions are kept changes nothing of what a key has now
            let found = backend.get(&place, None, span).await.map_err(|failure| match failure {
                Failure::DeleteMarker { .. } => Failure::NoSuchKey,
                other => other,
            });
            let Found { record, mut content, .. } = found?;
            let mut bytes = Vec::new();
            while let Some(piece) = content.next().await {
                bytes.extend_from_slice(&piece?);
            }
            Ok((record.etag, Bytes::from(bytes)))
        })
        .await
    }

    /// What a whole body shows.
    fn judge(&mut self, key: &str, etag: &Etag, bytes: &Bytes) -> (Action, End) {
        let value = claimed(bytes).filter(|&value| self.is_content(value, bytes));
        let Some(value) = value else {
            let all = bytes.len();
            let what = format!("{key}: {all} bytes came that are those of no write");
            self.recorder.find("C5", what);
            return (Action::Get { key: key.to_owned(), value: None }, End::failed(Why::Refused));
        };
        if let Some(known) = self.etags.of(value).filter(|known| known != etag) {
            let what = format!("{key}: value {value} came with {etag:?}, it was {known:?}");
            self.recorder.find("C1", what);
        }
        self.etags.learn(value, *etag);
        self.seen.insert(key.to_owned(), value);
        (Action::Get { key: key.to_owned(), value: Some(value) }, End::OK)
    }

    fn is_content(&self, value: u64, bytes: &Bytes) -> bool {
        let length = self.recorder.length(value);
        length.is_some_and(|length| content_of(value, length) == *bytes)
    }

    /// Reads a range of an object of which it has seen a value.
    async fn slice(&mut self, gateway: usize, key: &str) {
        let length = self.seen.get(key).and_then(|&value| self.recorder.length(value));
        let Some(length) = length else {
            self.get(gateway, key).await;
            return;
        };
        let from = self.dice.below(length as u64);
        let wanted = self.dice.between(1, length as u64 - from);
        let asked =
            |tag, pieces| Action::Slice { key: key.to_owned(), from, length: wanted, tag, pieces };
        let number = Self::gateway_number(gateway);
        let operation = self.recorder.invoke(self.number, number, &asked(None, Vec::new()));
        let span = Span::Between { first: from, last: from + wanted - 1 };
        let (action, end) = match self.read(gateway, key, span).await {
            Reply::Answer(Ok((etag, bytes))) => {
                let tag = self.etags.value_of(&etag);
                let pieces = self.pieces(tag, from, &bytes);
                (asked(tag, pieces), End::OK)
            }
            Reply::Answer(Err(Failure::NoSuchKey)) => (asked(None, Vec::new()), End::OK),
            // a shorter object is there by now
            Reply::Answer(Err(Failure::SpanOutside { .. })) => {
                (asked(None, Vec::new()), End::failed(Why::Refused))
            }
            Reply::Answer(Err(failure)) => (asked(None, Vec::new()), self.end_of_read(&failure)),
            Reply::Nothing => (asked(None, Vec::new()), End::UNKNOWN),
            Reply::NoGateway => (asked(None, Vec::new()), End::failed(Why::Unavailable)),
        };
        self.recorder.end(operation, self.number, number, action, end);
    }

    /// Whose bytes a range has: those of the value that its ETag names, else of any that has them there.
    fn pieces(&self, tag: Option<u64>, from: u64, bytes: &Bytes) -> Vec<Piece> {
        let at = usize::try_from(from).unwrap_or(usize::MAX);
        let has = |value: u64| {
            let length = self.recorder.length(value).unwrap_or(0);
            let content = content_of(value, length);
            content.get(at..at.saturating_add(bytes.len())) == Some(&bytes[..])
        };
        let newest = self.recorder.values();
        let value = tag.into_iter().chain((1..=newest).rev()).find(|&value| has(value));
        vec![Piece { at: from, length: bytes.len() as u64, value }]
    }

    /// Lists the bucket to its end; the keys, where all pages came.
    pub(crate) async fn list(&self, gateway: usize) -> Option<Vec<String>> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.page(gateway, &after).await?;
            let (keys, more) = page;
            all.extend(keys);
            if !more {
                return Some(all);
            }
            after.clone_from(all.last()?);
        }
    }

    async fn page(&self, gateway: usize, after: &str) -> Option<(Vec<String>, bool)> {
        let asked = |keys, more| Action::List {
            prefix: String::new(),
            after: after.to_owned(),
            keys,
            more,
        };
        let number = Self::gateway_number(gateway);
        let operation = self.recorder.invoke(self.number, number, &asked(Vec::new(), false));
        let list = List {
            bucket: bucket(),
            prefix: String::new(),
            delimiter: None,
            after: after.as_bytes().to_vec(),
            limit: PAGE_KEYS,
        };
        let reply = self.ask(gateway, move |backend| async move { backend.list(list).await }).await;
        let (page, action, end) = match reply {
            Reply::Answer(Ok(Page { entries, more })) => {
                let keys: Vec<String> = entries.iter().map(name_of).collect();
                (Some((keys.clone(), more)), asked(keys, more), End::OK)
            }
            Reply::Answer(Err(failure)) => {
                (None, asked(Vec::new(), false), self.end_of_read(&failure))
            }
            Reply::Nothing => (None, asked(Vec::new(), false), End::UNKNOWN),
            Reply::NoGateway => (None, asked(Vec::new(), false), End::failed(Why::Unavailable)),
        };
        self.recorder.end(operation, self.number, number, action, end);
        page
    }
}

fn name_of(entry: &ListEntry) -> String {
    match entry {
        ListEntry::Key { key, .. } | ListEntry::CommonPrefix(key) => {
            String::from_utf8_lossy(key).into_owned()
        }
    }
}

pub(crate) fn bucket() -> BucketName {
    BucketName::parse(BUCKET).expect("a constant that is a name")
}

fn place(key: &str) -> Place {
    Place { bucket: bucket(), key: ObjectKey::parse(key).expect("a short key") }
}
