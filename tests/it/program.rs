//! The program itself, without a daemon.

use crate::place;

#[test]
fn the_program_under_test_is_there_and_can_be_run() {
    let output = place::halsup(&["--version"]);
    assert_eq!(output.status, 0, "{output:?}");
}

#[test]
fn an_unknown_verb_is_a_usage_error_in_one_sentence() {
    let output = place::halsup(&["no-such-verb"]);
    assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{output:?}");
    assert!(output.stderr.contains("no-such-verb"), "{output:?}");
}
