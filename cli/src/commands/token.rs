//! `standin token create`, `list`, `revoke`.

use anyhow::Result;
use block::{Name, UnixNanos};
use dd_target::api::{CreatedToken, NewToken, RevokedToken, Token};
use dd_target::client::{Access, Remote};
use dd_target::server::LocalTokens;
use serde_json::json;

use crate::args::{TokenArgs, TokenCommand, TokensOf};
use crate::commands::world;
use crate::printer::{Printer, table};
use crate::units;

pub(crate) fn token(args: TokenArgs, printer: &Printer) -> Result<()> {
    match args.command {
        TokenCommand::Create {
            of,
            name,
            roles,
            vaults,
            groups,
            expires,
            certificate,
        } => {
            let now = world()?.clock.wall();
            let made = Tokens::open(&of)?.create(NewToken {
                name,
                roles,
                vaults: vaults.iter().map(Name::to_string).collect(),
                groups: groups.iter().map(Name::to_string).collect(),
                expires_unix_ns: expires.map(|until| until.at(now).0),
                certificate,
            })?;
            tell(&made, printer);
        }
        TokenCommand::List { of } => {
            let tokens = Tokens::open(&of)?.list()?;
            printer.answer(&json!({ "tokens": tokens }), || listed(&tokens));
        }
        TokenCommand::Revoke { id, of } => {
            let revoked = Tokens::open(&of)?.revoke(&id)?;
            if let Some(why) = &revoked.unwritten {
                printer.talk(&format!(
                    "the audit log does not say so, it could not be written: {why}"
                ));
            }
            let token = &revoked.token;
            printer.answer(&revoked, || {
                format!("token {} ({}) is revoked", token.id, token.name)
            });
        }
    }
    Ok(())
}

/// Where the tokens are.
enum Tokens {
    Here(LocalTokens),
    There(Remote),
}

impl Tokens {
    fn open(of: &TokensOf) -> Result<Self> {
        Ok(match (&of.state, &of.server) {
            (Some(state), _) => Self::Here(LocalTokens::open(state, &world()?.clock)?),
            (None, Some(server)) => Self::There(Remote::open(server, &Access::of_this_process())?),
            (None, None) => unreachable!("clap asks for one of them"),
        })
    }

    fn create(&self, new: NewToken) -> Result<CreatedToken> {
        Ok(match self {
            Self::Here(tokens) => tokens.create(new)?,
            Self::There(server) => server.create_token(&new)?,
        })
    }

    fn list(&self) -> Result<Vec<Token>> {
        Ok(match self {
            Self::Here(tokens) => tokens.list()?,
            Self::There(server) => server.tokens()?,
        })
    }

    fn revoke(&self, id: &str) -> Result<RevokedToken> {
        Ok(match self {
            Self::Here(tokens) => tokens.revoke(id)?,
            Self::There(server) => server.revoke_token(id)?,
        })
    }
}

/// The text of a token is data: it goes into a file.
fn tell(made: &CreatedToken, printer: &Printer) {
    match &made.text {
        Some(text) => {
            printer.talk("keep it in a file that only its user can read; it is not shown again");
            printer.answer(made, || text.clone());
        }
        None => printer.answer(made, || format!("token {}", made.token.id)),
    }
}

fn listed(tokens: &[Token]) -> String {
    let heading = ["ID", "NAME", "ROLES", "VAULTS", "GROUPS", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let names = |names: &[String]| match names.is_empty() {
        true => "all".to_owned(),
        false => names.join(","),
    };
    rows.extend(tokens.iter().map(|token| {
        let roles: Vec<_> = token.roles.iter().map(ToString::to_string).collect();
        let state = match (token.revoked_unix_ns, token.expires_unix_ns) {
            (Some(at), _) => format!("revoked {}", units::local_time(UnixNanos(at))),
            (None, Some(at)) => format!("until {}", units::local_time(UnixNanos(at))),
            (None, None) => "holds".to_owned(),
        };
        vec![
            token.id.clone(),
            token.name.clone(),
            roles.join(","),
            names(&token.vaults),
            names(&token.groups),
            state,
        ]
    }));
    table(&rows)
}
