//! The `standin` command: parses, calls the agent, prints.
//!
//! ```text
//!  args (clap) -> commands -> agent -> printer -> stdout: data, stderr: talk
//!                                        |
//!                                        +--> exit code (exit.rs)
//! ```
//!
//! Rule: what a command does is in `agent`; here is only how it is asked for and how it looks.

mod args;
mod commands;
mod demo;
mod exit;
mod harmless;
mod listening;
mod logging;
mod printer;
mod progress;
mod signals;
mod units;

use clap::Parser;

use crate::args::{Args, Command};
use crate::printer::Printer;

fn main() -> std::process::ExitCode {
    let mut args = Args::parse();
    let chatty = matches!(
        args.command,
        Command::Protect(_) | Command::Serve(_) | Command::Target(_)
    );
    logging::start(args.verbose, chatty);
    let printer = Printer::new(args.json);
    if let Some(target) = args.command.target() {
        match args.secret.file() {
            Ok(secret) => *target = target.clone().opened_with(secret),
            Err(error) => return exit::code(Err(error.into()), &printer),
        }
    }
    args.shown.access().show();
    let done = match args.command {
        Command::Protect(args) => commands::protect(*args, &printer).map_err(Into::into),
        Command::Cut(args) => commands::cut(&args, &printer).map_err(Into::into),
        Command::Status(args) => commands::status(&args, &printer).map_err(Into::into),
        Command::Gaps(args) => commands::gaps(&args, &printer).map_err(Into::into),
        Command::Point(args) => commands::point(args, &printer).map_err(Into::into),
        Command::Store(args) => commands::store(args, &printer).map_err(Into::into),
        Command::Retention(args) => commands::retention(args, &printer).map_err(Into::into),
        Command::Import(args) => commands::import(args, &printer).map_err(Into::into),
        Command::Replicate(args) => commands::replicate(args, &printer).map_err(Into::into),
        Command::Restore(args) => commands::restore(args, &printer).map_err(Into::into),
        Command::Serve(args) => commands::serve(args, &printer).map_err(Into::into),
        Command::Target(args) => commands::target(args, &printer),
        Command::Vault(vault) => commands::vault(vault, &args.secret, &printer),
        Command::Token(args) => commands::token(args, &printer),
        Command::Demo(args) => demo::run(&args, &printer),
    };
    exit::code(done, &printer)
}
