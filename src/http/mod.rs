//! stub
use crate::{clock::Clock, config, error::Result, metrics::Metrics, worker::Fleet};
pub struct App;
impl App {
    pub fn new(_f: Fleet, _m: Metrics, _c: Clock, _h: &config::Http) -> Result<App> {
        Ok(App)
    }
}
pub async fn serve(
    _l: tokio::net::TcpListener,
    _a: App,
    stop: tokio_util::sync::CancellationToken,
) -> Result<()> {
    stop.cancelled().await;
    Ok(())
}
