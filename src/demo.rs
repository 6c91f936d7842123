//! demo
/// Options of `tailwater demo`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// End after so many seconds
    #[arg(long)]
    pub seconds: Option<u64>,
}
/// Runs the demo.
pub async fn run(_options: Options) -> bool {
    true
}
