//! The harness of the journeys: Standin as its users meet it, from outside.
//!
//! ```text
//! journeys/*.rs --> Bench (temp dir, disks, target) --> Protect (the real process) <-- nbd::Client
//!                                                          |                             |
//!                                    points read back <----+       Ledger: every write, when it was
//!                                    compared with the Ledger <----issued and when acknowledged
//! ```
//!
//! Rule: nothing here links the product's engine; what a journey believes about a point it learnt
//! through the command line, the NBD socket or a restored file.

pub mod bench;
pub mod faults;
pub mod guest;
pub mod image;
pub mod ledger;
pub mod load;
pub mod loop_device;
pub mod nbd;
pub mod process;
pub mod protect;
pub mod s3;
pub mod served;
pub mod soak;
pub mod spell;
pub mod standin;
pub mod story;
pub mod time;

pub use bench::Bench;
pub use ledger::{Ledger, Window};
pub use load::{Load, Shape};
pub use protect::Protect;
