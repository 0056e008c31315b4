//! What a simulation may rely on: machines end in the middle of anything, bytes come late or not at all, and the same
//! seed is the same run.

use ashlar_host::{
    CutStyle, DiskPace, Fabric, Host, Life, OpenMode, Passage, SimHost, TaskKind, Weather,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

struct Pair {
    fabric: Fabric,
    near: SimHost,
    far: SimHost,
}

fn pair() -> Pair {
    let fabric = Fabric::new(7, Weather::default());
    let near = SimHost::new(&fabric, address(1), 1);
    let far = SimHost::new(&fabric, address(2), 2);
    Pair { fabric, near, far }
}

/// Answers each byte with its double, for ever.
fn serve(host: &Host) {
    let network = Arc::clone(&host.network);
    let tasks = Arc::clone(&host.tasks);
    let serving = async move {
        let listener = network.listen("10.0.0.2:80").await.expect("the port is free");
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let answering = async move {
                while let Ok(byte) = stream.read_u8().await {
                    if stream.write_u8(2 * byte).await.is_err() {
                        return;
                    }
                }
            };
            drop(tasks.spawn(TaskKind::Request("double"), Box::pin(answering)));
        }
    };
    drop(host.tasks.spawn(TaskKind::Background("port"), Box::pin(serving)));
}

async fn ask(host: &Host, byte: u8) -> io::Result<u8> {
    let mut stream = host.network.connect("10.0.0.2:80").await?;
    stream.write_u8(byte).await?;
    stream.read_u8().await
}

async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_takes_the_time_of_the_network_and_a_partition_holds_it_until_it_heals() {
    let Pair { fabric, near, far } = pair();
    let ((far_host, _far), (near_host, _near)) = (far.boot(), near.boot());
    serve(&far_host);
    settle().await;
    let began = near_host.clock.now();
    assert_eq!(ask(&near_host, 21).await.expect("answered"), 42);
    let took = near_host.clock.now() - began;
    assert!(took >= Duration::from_millis(1) && took < Duration::from_millis(10), "{took:?}");
    fabric.set_passage(address(2), address(1), Passage::Held);
    let patience = Duration::from_secs(30);
    assert!(near_host.clock.timeout(patience, ask(&near_host, 1)).await.is_err(), "held one way");
    let healing = async {
        near_host.clock.sleep(Duration::from_secs(5)).await;
        fabric.heal();
    };
    let (answer, ()) = futures::join!(ask(&near_host, 4), healing);
    assert_eq!(answer.expect("answered after the partition"), 8);
    fabric.set_passage(address(1), address(2), Passage::Refused);
    let refused = ask(&near_host, 1).await.expect_err("refused");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_breaks_its_connections_and_one_without_power_says_nothing() {
    let Pair { near, far, .. } = pair();
    let (near_host, _near) = near.boot();
    let (far_host, life) = far.boot();
    serve(&far_host);
    settle().await;
    let mut stream = near_host.network.connect("10.0.0.2:80").await.expect("connects");
    far.kill(&life).await;
    assert!(stream.read_u8().await.is_err(), "broken");
    assert!(ask(&near_host, 1).await.is_err(), "and nobody listens");
    let (far_host, life) = far.boot();
    serve(&far_host);
    settle().await;
    let mut stream = near_host.network.connect("10.0.0.2:80").await.expect("connects");
    far.cut_power(&life, CutStyle::DropAll).await;
    let minute = Duration::from_secs(60);
    assert!(near_host.clock.timeout(minute, stream.read_u8()).await.is_err(), "it waits for ever");
    let (far_host, _life) = far.boot();
    serve(&far_host);
    settle().await;
    assert!(stream.read_u8().await.is_err(), "broken when the machine is back");
    assert_eq!(ask(&near_host, 3).await.expect("answered"), 6);
}

#[tokio::test(start_paused = true)]
async fn a_life_that_ends_drops_its_tasks_where_they_wait_and_a_paused_one_loses_time() {
    let Pair { near, .. } = pair();
    let (host, life) = near.boot();
    let ticks = Arc::new(AtomicU64::new(0));
    let (clock, counted) = (Arc::clone(&host.clock), Arc::clone(&ticks));
    let ticking = async move {
        assert!(Life::current().is_some(), "a task knows its life");
        loop {
            clock.sleep(Duration::from_secs(1)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    };
    drop(host.tasks.spawn(TaskKind::Background("tick"), Box::pin(ticking)));
    let wait = || tokio::time::sleep(Duration::from_millis(10_500));
    wait().await;
    assert_eq!(ticks.load(Ordering::Relaxed), 10);
    life.pause();
    wait().await;
    assert_eq!(ticks.load(Ordering::Relaxed), 10);
    life.resume();
    wait().await;
    let after = ticks.load(Ordering::Relaxed);
    assert!((20..22).contains(&after), "{after}");
    near.kill(&life).await;
    wait().await;
    assert_eq!(ticks.load(Ordering::Relaxed), after);
    assert_eq!(Arc::strong_count(&ticks), 1, "the task was dropped");
    assert!(Life::current().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_disk_takes_its_time_and_one_that_lies_loses_what_it_was_told_to_keep() {
    let Pair { near, .. } = pair();
    let (host, life) = near.boot();
    let slow = DiskPace { sync: Duration::from_secs(3), ..DiskPace::default() };
    near.conduct().set_pace(slow);
    host.disk.create_dir_all(Path::new("/wal")).expect("makes");
    let write = |host: &Host, path: &str| {
        let file = host.disk.open(Path::new(path), OpenMode::CreateNew).expect("opens");
        host.disk.sync_dir(Path::new("/wal")).expect("syncs the name");
        file.write_at(b"content", 0).and_then(|()| file.sync_data()).expect("is told: durable");
    };
    write(&host, "/wal/1");
    let began = host.clock.now();
    host.disk_time().await;
    assert_eq!((host.clock.now() - began).as_secs(), 3);
    near.conduct().lie_about(Some("wal"));
    write(&host, "/wal/2");
    assert_eq!(near.conduct().lies(), 1);
    near.cut_power(&life, CutStyle::DropAll).await;
    let (host, _life) = near.boot();
    let length = |path: &str| host.disk.read(Path::new(path)).expect("its name was synced").len();
    assert_eq!((length("/wal/1"), length("/wal/2")), (7, 0));
}
