//! What a test needs of the machine: a missing need skips the test aloud, or fails it where `HALSUP_TEST_REQUIRE` names it.

/// Something that not every machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// Effective uid 0.
    Root,
    /// A mounted cgroup v2 hierarchy.
    Cgroup2,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Cgroup2 => "cgroup2",
        }
    }

    fn met(self) -> bool {
        match self {
            Self::Root => rustix::process::geteuid().is_root(),
            Self::Cgroup2 => {
                super::mountinfo::read().is_ok_and(|mounts| mounts.iter().any(|m| m.fs_type == super::cgroup::FS_TYPE))
            }
        }
    }
}

/// Whether every need is met; the caller returns at once if not.
pub(crate) fn met(needs: &[Need]) -> bool {
    let required = std::env::var("HALSUP_TEST_REQUIRE").unwrap_or_default();
    needs.iter().all(|need| {
        let met = need.met();
        if !met {
            // Past libtest, which swallows what passing tests print.
            std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: needs {}\n", need.name()).as_bytes())
                .unwrap();
            assert!(
                !required.split([',', ' ']).any(|name| name == need.name()),
                "HALSUP_TEST_REQUIRE asks for {}, which this machine lacks",
                need.name()
            );
        }
        met
    })
}
