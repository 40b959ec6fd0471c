//! The seed of a run: given by the environment to replay, else fresh.

/// The value of `STANDIN_SEED` if it is a number, else `fallback`. Prints it: a failing test's
/// captured output then says how to replay it.
#[must_use]
#[expect(
    clippy::print_stderr,
    reason = "the seed must reach whoever sees the test fail"
)]
pub fn seed_from_env(fallback: u64) -> u64 {
    let seed = std::env::var("STANDIN_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(fallback);
    eprintln!("replay with STANDIN_SEED={seed}");
    seed
}
