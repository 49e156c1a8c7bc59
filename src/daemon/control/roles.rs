//! Decides who may ask what: one pure function of caller, request and grants, evaluated on the decoded request by the
//! process that executes it (HARDENING S5). Never looks at a socket, a clock or a pool.

use crate::protocol::control::{Object, Request};
use crate::spec::{Grantee, RoleGrant};

/// Who is at the other end, as the kernel says it (SO_PEERCRED), at the time of its `connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) struct Principal {
    /// Effective uid.
    pub(in crate::daemon) uid: u32,
    /// Effective gid.
    pub(in crate::daemon) gid: u32,
    /// Its pid; 0 from a pid namespace that is not visible here. For people: never decides.
    pub(in crate::daemon) pid: i32,
    /// Who stands behind the gateway, if it is that; then the others are no user's of this host.
    pub(in crate::daemon) web: Option<Web>,
}

/// Somebody who came by HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Web {
    /// Without a token.
    Nobody,
    /// With a token, by its number.
    Token(u32),
}

/// The uid of everybody who comes by HTTP: no user's. What they own is the gateway's callers'.
pub(in crate::daemon) const WEB_UID: u32 = u32::MAX;

impl Principal {
    /// Somebody who came by HTTP.
    pub(in crate::daemon) const fn of_web(web: Web) -> Self {
        Self { uid: WEB_UID, gid: WEB_UID, pid: 0, web: Some(web) }
    }
}

/// Who owns nothing, and is no user.
pub(super) const NOBODY_UID: u32 = u32::MAX - 1;

impl Principal {
    /// Whose things are not hidden from them: somebody without a token sees nothing that others had done by HTTP.
    pub(in crate::daemon) fn viewer(self) -> u32 {
        if self.web == Some(Web::Nobody) { NOBODY_UID } else { self.uid }
    }
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.web {
            Some(Web::Nobody) => return f.write_str("the web"),
            Some(Web::Token(number)) => return write!(f, "the web (token {number})"),
            None => {}
        }
        match self.pid {
            0 => write!(f, "uid {}", self.uid),
            pid => write!(f, "uid {} (pid {pid})", self.uid),
        }
    }
}

/// Whether `principal` may ask `request`. Root and the daemon's own user may ask everything; who has no grant, nothing.
///
/// What speaks of the protocol alone (`GetInfo`, `GetInterfaceDescription`, `Ping`) is open to any grant, on whatever pool.
pub(super) fn allows(principal: Principal, own_uid: u32, request: &Request, grants: &[RoleGrant]) -> bool {
    if principal.web.is_none() && (principal.uid == 0 || principal.uid == own_uid) {
        return true;
    }
    let is_for = |grant: &&RoleGrant| match grant.grantee {
        Grantee::Uid(uid) => uid == principal.uid,
        Grantee::Gid(gid) => gid == principal.gid,
    };
    let mut held = grants.iter().filter(is_for);
    let object = request.object();
    if object == Object::Protocol {
        return held.next().is_some();
    }
    held.any(|grant| {
        let reaches = grant.pool.as_ref().is_none_or(|granted| object.pool() == Some(granted));
        reaches && grant.role >= request.role()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::varlink::Call;
    use crate::spec::{PoolName, Role};

    /// Who must be asked for, by method, written down a second time: `p` any grant, `o` observe, `w` operate, `a` admin.
    const TABLE: [(&str, char); 66] = [
        ("GetInfo", 'p'),
        ("GetInterfaceDescription", 'p'),
        ("Ping", 'p'),
        ("Status", 'o'),
        ("List", 'o'),
        ("WaitPool", 'o'),
        ("Inspect", 'o'),
        ("Start", 'w'),
        ("Stop", 'w'),
        ("Restart", 'w'),
        ("Kill", 'w'),
        ("Reset", 'w'),
        ("Scale", 'w'),
        ("Claim", 'w'),
        ("Release", 'w'),
        ("Warm", 'w'),
        ("Tune", 'w'),
        ("Pause", 'w'),
        ("Execute", 'w'),
        ("SendChunk", 'p'),
        ("Lease", 'w'),
        ("EndLease", 'p'),
        ("OpenSession", 'w'),
        ("CloseSession", 'w'),
        ("ListSessions", 'o'),
        ("RequestStatus", 'o'),
        ("PoolStats", 'o'),
        ("ResetBreakers", 'w'),
        ("ServeTools", 'w'),
        ("ReplyTool", 'w'),
        ("Logs", 'o'),
        ("Attach", 'w'),
        ("Watch", 'o'),
        ("Send", 'w'),
        ("Exec", 'w'),
        ("Sessions", 'o'),
        ("Events", 'o'),
        ("Stats", 'o'),
        ("Certificates", 'o'),
        ("Reload", 'a'),
        ("Upgrade", 'a'),
        ("Shutdown", 'a'),
        ("SetLog", 'a'),
        ("Drain", 'a'),
        ("Identify", 'p'),
        ("CreateToken", 'a'),
        ("ListTokens", 'a'),
        ("RevokeToken", 'a'),
        ("Doctor", 'o'),
        ("GetConfig", 'a'),
        ("ListVolumes", 'o'),
        ("CreateVolume", 'w'),
        ("RepairVolume", 'a'),
        ("HoldVolumes", 'a'),
        ("RemoveVolume", 'a'),
        ("ImageImport", 'a'),
        ("ImageList", 'o'),
        ("ImageInspect", 'o'),
        ("ImageRemove", 'a'),
        ("RunTask", 'w'),
        ("ListTasks", 'o'),
        ("InspectTask", 'o'),
        ("CancelTask", 'w'),
        ("FollowTask", 'o'),
        ("TaskStatus", 'o'),
        ("SwitchExecutor", 'w'),
    ];

    /// What a request is about.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Object {
        Web,
        OneOfWeb,
        Api,
        Every,
    }

    /// The request `method` about `object`; `None` where it cannot be about that.
    fn request(interface: &str, method: &str, object: Object) -> Option<Request> {
        let target = match object {
            Object::Web => "web",
            Object::OneOfWeb => "web.3",
            Object::Api => "api",
            Object::Every => "all",
        };
        let parameters = match (method, object) {
            ("List" | "Sessions" | "ListSessions" | "PoolStats" | "WaitPool" | "Events", Object::Web | Object::Api) => {
                serde_json::json!({ "pool": target })
            }
            ("RequestStatus", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "request": "x" }),
            ("RequestStatus", Object::Every) => serde_json::json!({ "request": "x" }),
            (
                "List" | "Sessions" | "ListSessions" | "RequestStatus" | "PoolStats" | "WaitPool" | "Events",
                Object::OneOfWeb,
            ) => {
                return None;
            }
            ("Scale", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "count": 1 }),
            ("Scale", Object::OneOfWeb | Object::Every) => return None,
            ("Claim" | "Warm" | "Tune" | "OpenSession" | "Lease", Object::Web | Object::Api) => {
                serde_json::json!({ "pool": target })
            }
            ("Execute", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "command": "x" }),
            ("CloseSession", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "session": "x" }),
            ("ServeTools", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "tools": ["x"] }),
            ("ReplyTool", Object::Web | Object::Api) => {
                serde_json::json!({ "pool": target, "call": "0".repeat(32) })
            }
            (
                "OpenSession" | "Execute" | "Lease" | "CloseSession" | "ServeTools" | "ReplyTool",
                Object::OneOfWeb | Object::Every,
            ) => return None,
            ("Pause", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "paused": true }),
            ("Claim" | "Warm" | "Tune" | "Pause", Object::OneOfWeb | Object::Every) => return None,
            ("Exec", _) => serde_json::json!({ "target": target, "command": ["x"] }),
            ("Send", _) => serde_json::json!({ "target": target, "text": "x" }),
            (
                "Attach" | "Watch" | "Inspect" | "Start" | "Stop" | "Restart" | "Kill" | "Reset" | "Release" | "Stats"
                | "Certificates" | "ResetBreakers",
                _,
            ) => {
                serde_json::json!({ "target": target })
            }
            ("Logs", _) => serde_json::json!({ "worker": target }),
            (_, Object::Web | Object::OneOfWeb | Object::Api) => return None,
            ("GetInterfaceDescription", Object::Every) => serde_json::json!({ "interface": "a.b" }),
            ("ImageInspect" | "ImageRemove", Object::Every) => serde_json::json!({ "image": "alpine" }),
            ("CreateToken", Object::Every) => serde_json::json!({ "name": "ci", "role": "observe" }),
            ("RevokeToken", Object::Every) => serde_json::json!({ "name": "ci" }),
            ("RunTask", Object::Every) => serde_json::json!({ "prompt": "x" }),
            ("InspectTask" | "CancelTask" | "FollowTask", Object::Every) => serde_json::json!({ "task": "x" }),
            ("SwitchExecutor", Object::Every) => serde_json::json!({ "executor": "stub" }),
            ("EndLease", Object::Every) => serde_json::json!({ "lease": "0".repeat(32), "outcome": "done" }),
            ("Drain", Object::Every) => serde_json::json!({ "draining": true, "pools": [] }),
            ("SetLog", Object::Every) => serde_json::json!({ "filter": "info" }),
            ("HoldVolumes", Object::Every) => serde_json::json!({ "names": [] }),
            ("CreateVolume" | "RepairVolume" | "RemoveVolume", Object::Every) => serde_json::json!({ "name": "data" }),
            (_, Object::Every) => serde_json::json!({}),
        };
        let call =
            serde_json::json!({ "method": format!("{interface}.{method}"), "parameters": parameters, "more": true });
        Some(Request::decode(Call::decode(call.to_string().as_bytes()).unwrap()).unwrap())
    }

    #[test]
    fn every_role_every_verb_every_object() {
        let web = PoolName::parse("web").unwrap();
        let caller = Principal { uid: 1000, gid: 100, pid: 7, web: None };
        let mut seen = 0;
        for (interface, method) in Request::METHODS {
            let (_, needed) = TABLE.iter().find(|(name, _)| name == method).expect("a row for each method");
            for object in [Object::Web, Object::OneOfWeb, Object::Api, Object::Every] {
                let Some(request) = request(interface, method, object) else { continue };
                for role in [Role::Observe, Role::Operate, Role::Admin] {
                    let enough = match needed {
                        'o' => true,
                        'w' => role != Role::Observe,
                        'a' => role == Role::Admin,
                        _ => true,
                    };
                    for grantee in [Grantee::Uid(1000), Grantee::Gid(100)] {
                        let everywhere = RoleGrant { grantee: grantee.clone(), role, pool: None };
                        let on_web = RoleGrant { grantee, role, pool: Some(web.clone()) };
                        let about_web = matches!(object, Object::Web | Object::OneOfWeb);
                        let said = |grant: RoleGrant| allows(caller, 999, &request, &[grant]);
                        assert_eq!(said(everywhere), enough, "{method} {object:?} {role:?}");
                        assert_eq!(said(on_web), *needed == 'p' || enough && about_web, "{method} {object:?} {role:?}");
                        seen += 2;
                    }
                }
                for stranger in [Grantee::Uid(1001), Grantee::Gid(101), Grantee::Uid(100), Grantee::Gid(1000)] {
                    let grant = RoleGrant { grantee: stranger, role: Role::Admin, pool: None };
                    assert!(!allows(caller, 999, &request, &[grant]), "{method}: a grant of somebody else");
                }
                assert!(!allows(caller, 999, &request, &[]), "{method}: nobody without a grant");
                assert!(allows(caller, 1000, &request, &[]), "{method}: the daemon's own user");
                assert!(allows(Principal { uid: 0, ..caller }, 999, &request, &[]), "{method}: root");
            }
        }
        assert_eq!(
            seen,
            12 * (33 + 15 * 4 + 7 * 3 + 11 * 2),
            "thirty-three of the daemon, fifteen of any target, seven lists, eleven of a pool"
        );
    }

    #[test]
    fn the_strongest_grant_that_reaches_counts() {
        let caller = Principal { uid: 1000, gid: 100, pid: 7, web: None };
        let pool = |name: &str| Some(PoolName::parse(name).unwrap());
        let grants = [
            RoleGrant { grantee: Grantee::Gid(100), role: Role::Observe, pool: None },
            RoleGrant { grantee: Grantee::Uid(1000), role: Role::Operate, pool: pool("api") },
            RoleGrant { grantee: Grantee::Uid(1000), role: Role::Admin, pool: pool("web") },
        ];
        let may = |method, object| allows(caller, 999, &request("io.halsup.Control", method, object).unwrap(), &grants);
        assert!(may("Status", Object::Every) && may("List", Object::Every) && may("Stop", Object::Api));
        assert!(!may("Stop", Object::Every), "an order for all pools needs a grant for all");
        assert!(!may("Reload", Object::Every), "admin of one pool is not admin of the daemon");
    }

    #[test]
    fn what_was_done_by_http_is_shown_to_who_has_a_token() {
        assert_eq!(Principal::of_web(Web::Token(3)).viewer(), WEB_UID);
        assert_ne!(Principal::of_web(Web::Nobody).viewer(), WEB_UID);
        assert_eq!(Principal { uid: 5, gid: 0, pid: 0, web: None }.viewer(), 5);
    }

    #[test]
    fn a_principal_is_named_for_people() {
        assert_eq!(Principal { uid: 0, gid: 0, pid: 123, web: None }.to_string(), "uid 0 (pid 123)");
        assert_eq!(Principal { uid: 5, gid: 0, pid: 0, web: None }.to_string(), "uid 5");
    }
}
