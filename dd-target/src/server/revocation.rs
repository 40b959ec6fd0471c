//! A token is taken back, whatever else fails: a full disk must not keep a thief in.
//!
//! Rule: everything else is written down before it is done. This is written down if it can be, and who asks is told if not.

use block::UnixNanos;
use tracing::warn;

use crate::api::RevokedToken;
use crate::problem::chain;
use crate::server::audit::{Audit, Entry};
use crate::server::tokens::{TokenError, Tokens, is_id};

/// Takes back the token `id`; `entry` makes lines of the audit log.
pub(crate) fn revoke(
    (tokens, audit): (&Tokens, &Audit),
    id: &str,
    now: UnixNanos,
    entry: impl Fn(String) -> Entry,
) -> Result<RevokedToken, TokenError> {
    if !is_id(id) {
        let sentence = "a token is named by its id: the 12 hexadecimal digits after `standin-`";
        return Err(TokenError::Invalid(sentence));
    }
    let written = audit.write(entry(format!("{id} is to be revoked")));
    let token = tokens.revoke(id, now)?;
    // There may be room since: see the state directory's headroom.
    let written = written.or_else(|_| audit.write(entry(format!("{id} was revoked"))));
    let unwritten = written.err().map(|error| {
        warn!(token = id, %error, "a token was revoked, and the audit log could not be written");
        chain(&error)
    });
    Ok(RevokedToken { token, unwritten })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use block::SystemClock;

    use crate::api::{NewToken, Role};
    use crate::server::LocalTokens;

    fn new() -> NewToken {
        NewToken {
            name: "stolen".into(),
            roles: vec![Role::Restore],
            ..NewToken::default()
        }
    }

    /// Where the log could not be written no token could be revoked: its thief read on.
    #[test]
    fn a_token_is_revoked_whether_or_not_it_can_be_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let tokens = LocalTokens::open(&state, &(Arc::new(SystemClock::new()) as _)).unwrap();
        let stolen = tokens.create(new()).unwrap().token.id;
        let log = state.join("audit.log");
        fs::remove_file(&log).unwrap();
        fs::create_dir(&log).unwrap();
        let revoked = tokens.revoke(&stolen).unwrap();
        assert!(revoked.token.revoked_unix_ns.is_some());
        assert!(revoked.unwritten.is_some());
        assert!(tokens.create(new()).is_err(), "nothing else is done");
        fs::remove_dir(&log).unwrap();
        assert_eq!(tokens.revoke(&stolen).unwrap().unwritten, None);
    }

    #[test]
    fn a_whole_token_is_no_id_and_is_not_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let tokens = LocalTokens::open(&state, &(Arc::new(SystemClock::new()) as _)).unwrap();
        let text = tokens.create(new()).unwrap().text.unwrap();
        let error = tokens.revoke(&text).unwrap_err();
        assert!(error.to_string().contains("12 hexadecimal"), "{error}");
        let log = fs::read_to_string(state.join("audit.log")).unwrap();
        assert!(!log.contains("revoked"), "{log}");
    }
}
