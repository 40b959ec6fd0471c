//! Whether the server lives, and whether it takes work.

use axum::extract::State;

use crate::server::Shared;
use crate::server::refusal::{Answer, Refusal};

pub(crate) async fn alive() -> &'static str {
    "alive\n"
}

pub(crate) async fn ready(State(shared): State<Shared>) -> Answer<&'static str> {
    match shared.is_ending() {
        true => Err(Refusal::ending()),
        false => Ok("ready\n"),
    }
}
