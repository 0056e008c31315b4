//! The load generator's workloads: put, get, stat, list, delete and mixed, at a size and a concurrency.
//!
//! Each worker is one client in a closed loop: it sends the next request when the last one is answered. A run has
//! two parts: what it needs is prepared untimed, then the timed part begins with all workers at once. Servers' CPU is
//! read around the timed part only.

use crate::client::{Call, Client, Payload, Trouble};
use crate::content::{Content, Verifier};
use crate::latency::Latencies;
use crate::process;
use anyhow::{Context, Result, bail};
use futures::future::join_all;
use http::Method;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Write new objects.
    Put,
    /// Read prepared objects whole.
    Get,
    /// HEAD prepared objects.
    Stat,
    /// List pages of up to 1,000 prepared keys.
    List,
    /// Delete prepared objects, each once.
    Delete,
    /// Of ten operations: six gets, two puts, one stat, one list.
    Mixed,
}

/// A run's settings.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What is done.
    pub mode: Mode,
    /// Bytes of each object.
    pub size: u64,
    /// Workers.
    pub concurrency: u64,
    /// The timed part ends after this many seconds …
    pub seconds: Option<f64>,
    /// … or after this many operations, whichever comes first.
    pub count: Option<u64>,
    /// Objects that are prepared for the modes that need some.
    pub objects: u64,
    /// Compare every byte read; without it bytes are counted.
    pub verify: bool,
    /// The bucket, created when missing.
    pub bucket: String,
    /// What the keys and the content are derived from.
    pub seed: u64,
    /// Server processes whose CPU time is measured.
    pub pids: Vec<u32>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The settings.
    pub plan: Plan,
    /// Seconds of the timed part.
    pub seconds: f64,
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations that did not.
    pub errors: u64,
    /// The first error's words.
    pub first_error: Option<String>,
    /// Object bytes that went over the wire.
    pub bytes: u64,
    /// Whether every byte read was compared.
    pub verified: bool,
    /// Operations a second.
    pub operations_per_second: f64,
    /// Object bytes a second, in GiB.
    pub gib_per_second: f64,
    /// Latency, 50 of 100.
    pub p50_ms: f64,
    /// Latency, 90 of 100.
    pub p90_ms: f64,
    /// Latency, 99 of 100.
    pub p99_ms: f64,
    /// The slowest operation.
    pub max_ms: f64,
    /// CPU seconds of the server processes; none where no process was named.
    pub server_cpu_seconds: Option<f64>,
    /// The same an operation, in microseconds.
    pub server_cpu_us_per_operation: Option<f64>,
    /// The same a GiB of object bytes.
    pub server_cpu_seconds_per_gib: Option<f64>,
}

/// What all workers share.
struct Run {
    client: Client,
    plan: Plan,
    started: Instant,
    /// Operations begun: its value names the operation.
    begun: AtomicU64,
    prefix: String,
}

/// One worker's result.
#[derive(Default)]
struct Tally {
    latencies: Latencies,
    errors: u64,
    first_error: Option<String>,
    bytes: u64,
}

/// Prepares and runs a plan.
pub async fn run(client: Client, plan: Plan) -> Result<Report> {
    if plan.seconds.is_none() && plan.count.is_none() {
        bail!("a run needs an end: give --seconds or --count");
    }
    client.create_bucket(&plan.bucket).await.context("creating the bucket of the run")?;
    // A fresh prefix a run, so that runs do not overwrite each other's objects.
    let prefix = format!("run-{}-{}", jiff::Timestamp::now().as_millisecond(), plan.seed);
    let mut run = Run { client, plan, started: Instant::now(), begun: AtomicU64::new(0), prefix };
    prepare(&run).await.context("preparing the objects that the run reads")?;
    run.started = Instant::now();
    let cpu_before = process::cpu_seconds(&run.plan.pids);
    let run = Arc::new(run);
    let tally = all_workers(&run).await?;
    let seconds = run.started.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(&run.plan.pids) - cpu_before;
    Ok(report(&run.plan, tally, seconds, cpu))
}

async fn all_workers(run: &Arc<Run>) -> Result<Tally> {
    let workers: Vec<_> =
        (0..run.plan.concurrency).map(|_| tokio::spawn(worker(run.clone()))).collect();
    let mut total = Tally::default();
    for worker in workers {
        let tally = worker.await.context("a worker panicked")?;
        total.latencies.absorb(tally.latencies);
        total.errors += tally.errors;
        total.first_error = total.first_error.or(tally.first_error);
        total.bytes += tally.bytes;
    }
    Ok(total)
}

async fn worker(run: Arc<Run>) -> Tally {
    let mut tally = Tally::default();
    while let Some(number) = run.next() {
        let began = Instant::now();
        match run.operate(number).await {
            Ok(bytes) => {
                tally.latencies.record(began.elapsed());
                tally.bytes += bytes;
            }
            Err(trouble) => {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| trouble.to_string());
                // A refusing server is not hammered: that would measure the refusal.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    tally
}

/// Writes the prepared objects, sixteen at a time: enough to keep group commit busy, few enough for one machine.
async fn prepare(run: &Run) -> Result<()> {
    if run.plan.mode == Mode::Put {
        return Ok(());
    }
    let next = AtomicU64::new(0);
    let writer = async || -> Result<(), Trouble> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= run.plan.objects {
                return Ok(());
            }
            run.put(&run.prepared_key(number)).await?;
        }
    };
    for done in join_all((0..16).map(|_| writer())).await {
        done?;
    }
    Ok(())
}

impl Run {
    /// The number of the next operation, or none when the run is over.
    fn next(&self) -> Option<u64> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let in_time =
            self.plan.seconds.is_none_or(|seconds| self.started.elapsed().as_secs_f64() < seconds);
        let in_count = self.plan.count.is_none_or(|count| number < count);
        let has_object = self.plan.mode != Mode::Delete || number < self.plan.objects;
        (in_time && in_count && has_object).then_some(number)
    }

    async fn operate(&self, number: u64) -> Result<u64, Trouble> {
        // A stride that is prime to any count of objects visits all of them, in an order that no cache foresees.
        let object = number.wrapping_mul(7_368_787) % self.plan.objects.max(1);
        match self.plan.mode {
            Mode::Put => self.put(&format!("{}/new/{number:010}", self.prefix)).await,
            Mode::Get => self.get(&self.prepared_key(object)).await,
            Mode::Stat => self.stat(&self.prepared_key(object)).await,
            Mode::List => self.list(object).await,
            Mode::Delete => self.delete(&self.prepared_key(number)).await,
            Mode::Mixed => match number % 10 {
                0 | 1 => self.put(&format!("{}/new/{number:010}", self.prefix)).await,
                2 => self.stat(&self.prepared_key(object)).await,
                3 => self.list(object).await,
                _ => self.get(&self.prepared_key(object)).await,
            },
        }
    }

    fn prepared_key(&self, number: u64) -> String {
        format!("{}/old/{number:010}", self.prefix)
    }

    async fn put(&self, key: &str) -> Result<u64, Trouble> {
        let content = Content::of_key(key, self.plan.seed, self.plan.size);
        let call =
            Call::new(Method::PUT, &self.plan.bucket, key).payload(Payload::Content(content));
        self.client.expect(call).await?;
        Ok(self.plan.size)
    }

    async fn get(&self, key: &str) -> Result<u64, Trouble> {
        let call = Call::new(Method::GET, &self.plan.bucket, key);
        if self.plan.verify {
            let content = Content::of_key(key, self.plan.seed, self.plan.size);
            self.client.verify(call, Verifier::whole(content)).await?;
            return Ok(self.plan.size);
        }
        let bytes = self.client.drain(call).await?;
        if bytes == self.plan.size {
            return Ok(bytes);
        }
        Err(Trouble::WrongBytes(format!("{bytes} bytes instead of {}", self.plan.size)))
    }

    async fn stat(&self, key: &str) -> Result<u64, Trouble> {
        self.client.expect(Call::new(Method::HEAD, &self.plan.bucket, key)).await?;
        Ok(0)
    }

    /// One page that starts at an object; it must begin behind that object.
    async fn list(&self, object: u64) -> Result<u64, Trouble> {
        let after = self.prepared_key(object);
        let prefix = format!("{}/old/", self.prefix);
        let page = self.client.list_page(&self.plan.bucket, &prefix, &after, 1000).await?;
        let expected = (object + 1 < self.plan.objects).then(|| self.prepared_key(object + 1));
        if page.first() == expected.as_ref() {
            return Ok(0);
        }
        Err(Trouble::WrongBytes(format!("the page after {after} begins with {:?}", page.first())))
    }

    async fn delete(&self, key: &str) -> Result<u64, Trouble> {
        self.client.expect(Call::new(Method::DELETE, &self.plan.bucket, key)).await?;
        Ok(0)
    }
}

fn report(plan: &Plan, mut tally: Tally, seconds: f64, cpu: f64) -> Report {
    let [p50_ms, p90_ms, p99_ms, max_ms] =
        tally.latencies.percentiles_ms([50.0, 90.0, 99.0, 100.0]);
    let operations = tally.latencies.count() as u64;
    let gib = tally.bytes as f64 / f64::from(1 << 30);
    let measured = !plan.pids.is_empty() && operations > 0;
    Report {
        plan: plan.clone(),
        seconds,
        operations,
        errors: tally.errors,
        first_error: tally.first_error,
        bytes: tally.bytes,
        verified: plan.verify && matches!(plan.mode, Mode::Get | Mode::Mixed),
        operations_per_second: operations as f64 / seconds,
        gib_per_second: gib / seconds,
        p50_ms,
        p90_ms,
        p99_ms,
        max_ms,
        server_cpu_seconds: measured.then_some(cpu),
        server_cpu_us_per_operation: measured.then(|| cpu * 1e6 / operations as f64),
        server_cpu_seconds_per_gib: (measured && gib > 0.0).then(|| cpu / gib),
    }
}
