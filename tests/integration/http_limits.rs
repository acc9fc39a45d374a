//! The bounds of the HTTP interface, each against a real peer that means it ill.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::station::{CONNECTIONS_MAX, Station, exchange};

/// What an answer may take where nothing has to be waited for.
const AT_ONCE: Duration = Duration::from_secs(2);

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const SNAPSHOTS: &str = "GET /snapshots HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(text.as_bytes()).await.expect("writes");
    stream
}

/// What comes until the other side closes or cuts off, and how long that took.
async fn until_closed(stream: &mut TcpStream) -> (String, Duration) {
    let began = Instant::now();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    // Closed or reset, it is over.
    let _ = tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it is ended");
    (String::from_utf8_lossy(&answer).into(), began.elapsed())
}

/// Sends one byte after another, for as long as they are taken.
async fn trickle(mut stream: TcpStream, byte: &str, pause: Duration) -> (String, Duration) {
    let began = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        while writer.write_all(byte.as_bytes()).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    };
    let mut answer = Vec::new();
    let reading = async {
        // Closed or reset, it is over.
        let _ = reader.read_to_end(&mut answer).await;
    };
    tokio::select! {
        () = reading => {}
        () = async { writing.await; tokio::time::sleep(Duration::from_secs(60)).await } => panic!("never closed"),
    }
    (String::from_utf8_lossy(&answer).into(), began.elapsed())
}

fn has(metrics: &str, line: &str) -> bool {
    metrics.lines().any(|found| found == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_trickles_in_is_cut_off() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let stream = send(address, "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
    let (answer, took) = trickle(stream, "a", Duration::from_millis(100)).await;
    assert!((4..9).contains(&took.as_secs()), "{took:?}");
    assert!(!answer.contains(" 200 "), "{answer}");
    let metrics = station.get("/metrics").await.body;
    assert!(has(&metrics, r#"lifeboat_http_refused_total{reason="slow-head"} 1"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_in_is_given_up() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let head = "POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
        Content-Length: 1000\r\nConnection: close\r\n\r\n";
    let (answer, took) = trickle(send(address, head).await, " ", Duration::from_millis(200)).await;
    assert!((9..15).contains(&took.as_secs()), "{took:?}");
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("the body did not arrive in time"),
        "{answer}"
    );
    let metrics = station.get("/metrics").await.body;
    assert!(has(&metrics, r#"lifeboat_http_refused_total{reason="timeout"} 1"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_refused_by_what_it_announces() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let head = "POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
        Content-Length: 16385\r\nConnection: close\r\n\r\n";
    let began = Instant::now();
    let answer = exchange(address, head).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(began.elapsed() < AT_ONCE, "nothing of it was waited for");
    let metrics = station.get("/metrics").await.body;
    assert!(has(&metrics, r#"lifeboat_http_refused_total{reason="too-large"} 1"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let mut stream = send(address, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let (answer, took) = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!((4..9).contains(&took.as_secs()), "{took:?}");
    assert!(has(&station.get("/metrics").await.body, "lifeboat_http_connections 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_its_answers_is_cut_off() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let mut stream = socket.connect(address).await.expect("connects");
    // Some 20 MB of answers: more than the system keeps for a reader that is slow.
    let many = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2_000);
    let began = Instant::now();
    let writing = async {
        let _ = stream.write_all(many.as_bytes()).await;
        loop {
            let metrics = station.get("/metrics").await.body;
            if has(&metrics, r#"lifeboat_http_refused_total{reason="slow-reader"} 1"#) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), writing).await.expect("it is cut off");
    assert!(began.elapsed() > Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_every_connection_hangs_probes_are_answered_and_others_told_so() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        crowd.push(send(address, "GET /health HTTP/1.1\r\nHost: loc").await);
    }
    let began = Instant::now();
    for path in ["/health", "/metrics"] {
        let answer = exchange(address, &HEALTH.replace("/health", path)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let refused = exchange(address, SNAPSHOTS).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    for part in ["retry-after: 10", r#""kind":"crowded""#, "http.connections_max"] {
        assert!(refused.contains(part), "no {part}: {refused}");
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let metrics = station.get("/metrics").await.body;
    for line in [
        "lifeboat_http_connections 64",
        "lifeboat_http_connections_max 64",
        r#"lifeboat_http_refused_total{reason="crowded"} 1"#,
    ] {
        assert!(has(&metrics, line), "{line}: {metrics}");
    }
    for mut stream in crowd {
        let _ = until_closed(&mut stream).await;
    }
    let answer = exchange(address, SNAPSHOTS).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "the crowd was shown out: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_no_place_at_all_waits_and_is_answered() {
    let station = Station::new().await;
    let (address, _serving) = station.serve(&CancellationToken::new()).await;
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 40 {
        crowd.push(send(address, "GET /health HTTP/1.1\r\nHost: loc").await);
    }
    let began = Instant::now();
    let answer = exchange(address, HEALTH).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!((1..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    drop(crowd);
}
