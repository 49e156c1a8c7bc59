//! What is told of tokens, as described.

use super::*;

pub(super) fn hold_tokens(replies: &mut Replies<'_>) {
    let info = TokenInfo {
        name: "ci".into(),
        role: "operate".into(),
        pool: Some("web".into()),
        created: "2026-01-01T00:00:00Z".into(),
        expires: Some("2027-01-01T00:00:00Z".into()),
        expired: false,
    };
    let who = IdentifyReply {
        name: Some("ci".into()),
        role: "operate".into(),
        pool: Some("web".into()),
        started: Some("t".into()),
    };
    replies.hold("Identify", &who);
    replies.hold("CreateToken", &CreateTokenReply { token: "halsup_00".into(), info: info.clone() });
    replies.hold("ListTokens", &ListTokensReply { tokens: vec![info] });
    replies.hold("RevokeToken", &Empty {});
}
