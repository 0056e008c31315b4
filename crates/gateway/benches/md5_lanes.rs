//! What the MD5 of uploads costs: bodies at once, hashed together and each alone, in CPU seconds per GiB. In the third
//! column whoever brings the pieces has work of his own with each, as in a PUT: the cores are busy, and pieces come one
//! by one. That work is taken off again.
//!
//! `cargo bench -p ashlar-gateway --bench md5_lanes`

#![expect(clippy::print_stdout, reason = "a bench reports to its terminal")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the CPU time of its process")]

use ashlar_gateway::Md5Lanes;
use ashlar_host::Host;
use ashlar_md5::Stream;
use bytes::Bytes;

/// What hyper reads at once from a quick client.
const PIECE_BYTES: usize = 128 * 1024;
const ALL_BYTES: usize = 1 << 30;
const GIB: f64 = (1_u64 << 30) as f64;

/// User and system time of this process: fields 14 and 15 of its stat, in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux tells the CPU time");
    let (_, fields) = stat.rsplit_once(')').expect("the name ends in a parenthesis");
    let ticks = fields.split(' ').skip(12).take(2).map(|field| field.parse::<f64>());
    ticks.map(|ticks| ticks.expect("a number of ticks")).sum::<f64>() / 100.0
}

/// About what the rest of a PUT takes.
fn work(piece: &[u8]) {
    let mut stream = Stream::default();
    stream.update(piece);
    std::hint::black_box(stream.finish());
}

async fn send(lanes: Md5Lanes, piece: Bytes, pieces: usize, works: bool) -> Option<[u8; 16]> {
    let mut body = lanes.body((pieces * PIECE_BYTES) as u64).await;
    for _ in 0..pieces {
        if works {
            work(&piece);
        }
        body.update(&piece).await;
    }
    body.finish().await
}

async fn measure(host: &Host, lanes: &Md5Lanes, at_once: usize, works: bool) -> f64 {
    let piece = Bytes::from(vec![7; PIECE_BYTES]);
    let before = cpu_seconds();
    let mut bodies = Vec::new();
    for _ in 0..at_once {
        let (done, digest) = tokio::sync::oneshot::channel();
        let body = send(lanes.clone(), piece.clone(), ALL_BYTES / at_once / PIECE_BYTES, works);
        let task = async move {
            let _sent = done.send(body.await);
        };
        let _runs_on = host.tasks.spawn(ashlar_host::TaskKind::Request("body"), Box::pin(task));
        bodies.push(digest);
    }
    for digest in bodies {
        digest.await.ok().flatten().expect("the MD5 task lives");
    }
    (cpu_seconds() - before) / (ALL_BYTES as f64 / GIB)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    runtime.expect("the system starts threads").block_on(async {
        let host = Host::real();
        let (together, alone) = (Md5Lanes::new(&host), Md5Lanes::each_alone(&host));
        println!("{together:?}; CPU seconds per GiB");
        let piece = vec![7; PIECE_BYTES];
        let before = cpu_seconds();
        (0..ALL_BYTES / PIECE_BYTES).for_each(|_| work(&piece));
        let worked = (cpu_seconds() - before) / (ALL_BYTES as f64 / GIB);
        println!("bodies  alone  together  beside work of {worked:.2}");
        for at_once in [1, 2, 3, 4, 8, 16] {
            let alone = measure(&host, &alone, at_once, false).await;
            let beside = measure(&host, &together, at_once, true).await - worked;
            let together = measure(&host, &together, at_once, false).await;
            println!("{at_once:6}  {alone:5.2}  {together:8.2}  {beside:6.2}");
        }
    });
}
