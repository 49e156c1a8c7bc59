//! X
pub(super) fn checks(_i: &crate::spec::InstanceName) -> Vec<crate::protocol::control::Check> {
    vec![]
}
