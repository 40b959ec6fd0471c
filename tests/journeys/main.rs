//! Journeys: each file is one promise of the product, kept or broken in front of a user's eyes.

#![allow(clippy::print_stderr, reason = "figures for who reads a test's output")]

mod badinput;
mod changes;
mod cuts;
mod encryption;
mod exact;
mod group;
mod guest;
mod harness;
mod import;
mod kill9;
mod peers;
mod places;
mod powercut;
mod replicate;
mod s3;
mod seed;
mod soak;
mod together;
mod trouble;
mod upkeep;
mod wire;
