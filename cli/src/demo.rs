//! `standin demo`: the whole story on real data, every claim checked against a model that shares no
//! code with what it checks.
//!
//! ```text
//!   guest (two connections) --NBD--> standin protect (a child) --> store in a directory
//!      |                                   ^ kill -9
//!      +--> ledger: what was acknowledged when --compare, byte for byte--> restored points
//! ```

mod guest;
mod image;
mod ledger;
mod nbd;
mod place;
mod rng;
mod server;
mod story;
mod tale;

use anyhow::Result;

use crate::args::Demo;
use crate::printer::Printer;

/// Tells the story; an error if any claim does not hold.
pub(crate) fn run(args: &Demo, printer: &Printer) -> Result<()> {
    let tale = story::tell(args, printer)?;
    printer.answer(&tale, || tale.summary());
    Ok(())
}
