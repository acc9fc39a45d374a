//! stub
#[derive(Debug, clap::Args)]
pub struct Part {}
pub async fn run(_once: bool, _part: Part) -> crate::error::Result<u8> {
    Ok(0)
}
