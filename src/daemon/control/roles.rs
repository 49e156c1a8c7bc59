//! Decides who may ask what: one pure function of caller, request and grants, evaluated on the decoded request by the
//! process that executes it (HARDENING S5). Never looks at a socket, a clock or a pool.

use crate::protocol::control::{Request, Scope};
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
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
    if principal.uid == 0 || principal.uid == own_uid {
        return true;
    }
    let is_for = |grant: &&RoleGrant| match grant.grantee {
        Grantee::Uid(uid) => uid == principal.uid,
        Grantee::Gid(gid) => gid == principal.gid,
    };
    let mut held = grants.iter().filter(is_for);
    if speaks_of_the_protocol(request) {
        return held.next().is_some();
    }
    held.any(|grant| {
        let reaches = match (request.scope(), &grant.pool) {
            (_, None) => true,
            (Scope::Pool(asked), Some(granted)) => asked == granted,
            (Scope::Daemon | Scope::EveryPool, Some(_)) => false,
        };
        reaches && grant.role >= request.role()
    })
}

const fn speaks_of_the_protocol(request: &Request) -> bool {
    match request {
        Request::GetInfo(_) | Request::GetInterfaceDescription(_) | Request::Ping(_) => true,
        Request::Status(_)
        | Request::List(_)
        | Request::Inspect(_)
        | Request::Start(_)
        | Request::Stop(_)
        | Request::Restart(_)
        | Request::Kill(_)
        | Request::Reset(_)
        | Request::Scale(_)
        | Request::Claim(_)
        | Request::Release(_)
        | Request::Warm(_)
        | Request::Pause(_)
        | Request::Attach(_)
        | Request::Watch(_)
        | Request::Send(_)
        | Request::Exec(_)
        | Request::Sessions(_)
        | Request::Logs(_)
        | Request::Events(_)
        | Request::Stats(_)
        | Request::Certificates(_)
        | Request::Reload(_)
        | Request::Upgrade(_)
        | Request::Shutdown(_)
        | Request::SetLog(_)
        | Request::Doctor(_)
        | Request::GetConfig(_)
        | Request::ListVolumes(_)
        | Request::CreateVolume(_)
        | Request::RepairVolume(_)
        | Request::HoldVolumes(_)
        | Request::RemoveVolume(_)
        | Request::ImageImport(_)
        | Request::ImageList(_)
        | Request::ImageInspect(_)
        | Request::ImageRemove(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::varlink::Call;
    use crate::spec::{PoolName, Role};

    /// Who must be asked for, by method, written down a second time: `p` any grant, `o` observe, `w` operate, `a` admin.
    const TABLE: [(&str, char); 40] = [
        ("GetInfo", 'p'),
        ("GetInterfaceDescription", 'p'),
        ("Ping", 'p'),
        ("Status", 'o'),
        ("List", 'o'),
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
        ("Pause", 'w'),
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
            ("List" | "Sessions", Object::Web | Object::Api) => serde_json::json!({ "pool": target }),
            ("List" | "Sessions", Object::OneOfWeb) => return None,
            ("Scale", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "count": 1 }),
            ("Scale", Object::OneOfWeb | Object::Every) => return None,
            ("Claim" | "Warm", Object::Web | Object::Api) => serde_json::json!({ "pool": target }),
            ("Pause", Object::Web | Object::Api) => serde_json::json!({ "pool": target, "paused": true }),
            ("Claim" | "Warm" | "Pause", Object::OneOfWeb | Object::Every) => return None,
            ("Exec", _) => serde_json::json!({ "target": target, "command": ["x"] }),
            ("Send", _) => serde_json::json!({ "target": target, "text": "x" }),
            (
                "Attach" | "Watch" | "Inspect" | "Start" | "Stop" | "Restart" | "Kill" | "Reset" | "Release" | "Stats"
                | "Certificates",
                _,
            ) => {
                serde_json::json!({ "target": target })
            }
            ("Logs", _) => serde_json::json!({ "worker": target }),
            (_, Object::Web | Object::OneOfWeb | Object::Api) => return None,
            ("GetInterfaceDescription", Object::Every) => serde_json::json!({ "interface": "a.b" }),
            ("ImageInspect" | "ImageRemove", Object::Every) => serde_json::json!({ "image": "alpine" }),
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
        let caller = Principal { uid: 1000, gid: 100, pid: 7 };
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
            12 * (20 + 14 * 4 + 2 * 3 + 4 * 2),
            "twenty of the daemon, fourteen of any target, two lists, four of a pool"
        );
    }

    #[test]
    fn the_strongest_grant_that_reaches_counts() {
        let caller = Principal { uid: 1000, gid: 100, pid: 7 };
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
    fn a_principal_is_named_for_people() {
        assert_eq!(Principal { uid: 0, gid: 0, pid: 123 }.to_string(), "uid 0 (pid 123)");
        assert_eq!(Principal { uid: 5, gid: 0, pid: 0 }.to_string(), "uid 5");
    }
}
