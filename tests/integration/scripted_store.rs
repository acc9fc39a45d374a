//! Every fault of a store or of the way to it, at every request of a daemon's life in turn.

use std::time::{Duration, Instant};

use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::storage::Patience;

use crate::scripted_store_scene::Scene;
use crate::support::s3_server::impatience;

#[tokio::test]
async fn calm() {
    for _ in 0..3 {
    let began = Instant::now();
    let mut scene = Scene::start(impatience()).await;
    scene.live().await.expect("calm");
    let log = scene.server.log();
    println!("{} {:?}", log.len(), began.elapsed());
    scene.check().await;
    println!("{} {:?}", scene.server.log().len(), began.elapsed());
    for line in log { println!("{line}"); }
    }
}
