#!/bin/sh
# Shows that the simulation catches bugs of the engine, or what it leaves the engine's own tests, and that the tests beside the
# source catch those of the daemon's requests: applies each patch of planted/ to a copy of the sources, one at a time, and
# expects red. Prints a line a bug and a total; fails if one escapes, never ends, or a patch no longer applies.
#
#   tests/simulation/planted.sh [NAME-PREFIX…]      only these
#
# HALSUP_SIMULATION_SEEDS   seeds a bug (default 600)
# HALSUP_PLANTED_SECONDS    how long the tests may take with one bug in (default 300, without what building takes)
# CARGO_TARGET_DIR          where the copies are built (default target/planted); kept between runs
# CARGO                     how cargo is called (default cargo)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
: "${HALSUP_SIMULATION_SEEDS:=600}"
: "${HALSUP_PLANTED_SECONDS:=300}"
: "${CARGO_TARGET_DIR:=$root/target/planted}"
: "${CARGO:=cargo}"
export HALSUP_SIMULATION_SEEDS CARGO_TARGET_DIR

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM

# Two fixed paths: cargo then sees the same packages each time and rebuilds only what has changed. One is the whole package. The
# other is the engine with what it may use, and the simulation: a bug a few seconds.
whole=$CARGO_TARGET_DIR/package
engine=$CARGO_TARGET_DIR/engine-alone
rm -rf "$whole" "$engine"
mkdir -p "$whole" "$engine/src" "$engine/tests"
tar -C "$root" --exclude=./target --exclude=./.git -cf - . | tar -C "$whole" -xf -
cp "$root/Cargo.lock" "$engine"
# Without the programs, what they are built with, and the lints.
awk '/^\[/ { skip = /^\[\[bin|^\[lints/ } !skip && !/^(build|default-run) =/' "$root/Cargo.toml" >"$engine/Cargo.toml"
cp -R "$root/src/spec" "$engine/src"
# What tests of the configuration read.
cp -R "$root/examples" "$engine"
cp -R "$root/tests/simulation" "$engine/tests"
printf '//! The engine alone.\npub mod engine;\npub mod spec;\n' >"$engine/src/lib.rs"

# renew PACKAGE ROOM: as it is without a bug.
renew() {
    rm -rf "$1/src/$2"
    cp -R "$root/src/$2" "$1/src/$2"
}

# test_of PACKAGE WHAT… [-- ARGUMENT…]: built without a limit, then run with one. A bug may also make the tests go on for ever,
# which is no answer: nobody who waits for them is told what is wrong. Unquoted: CARGO may be a command with arguments.
test_of() {
    (
        cd "$1" && shift
        $CARGO test --quiet --no-run "$@" && exec timeout --kill-after=5 "$HALSUP_PLANTED_SECONDS" $CARGO test --quiet "$@"
    ) >"$copy/log" 2>&1 && return
    status=$?
    # 124: its time was over; 137: and it had to be killed.
    case $status in 124 | 137) ended=no ;; esac
    return "$status"
}

simulation() { test_of "$engine" --test simulation; }

own_tests() { test_of "$1" --lib -- "$2::"; }

# Whether nobody minds. Of the daemon the simulation knows nothing.
passes() {
    if [ "$package" = "$whole" ]; then own_tests "$whole" daemon::requests; else simulation && own_tests "$engine" engine; fi
}

ended=yes
renew "$engine" engine
for package in "$engine" "$whole"; do
    if ! passes; then
        cat "$copy/log"
        echo "planted: red without any planted bug" >&2
        exit 1
    fi
done

caught=0 total=0
for patch in "$here"/planted/*.patch; do
    name=$(basename "$patch" .patch)
    if [ $# -gt 0 ]; then
        wanted=no
        for prefix in "$@"; do case $name in "$prefix"*) wanted=yes ;; esac; done
        [ "$wanted" = yes ] || continue
    fi
    total=$((total + 1))
    package=$engine room=engine
    if grep -q '^+++ b/src/daemon/' "$patch"; then package=$whole room=daemon/requests; fi
    renew "$package" "$room"
    if ! patch --quiet --directory="$package" --strip=1 <"$patch" >"$copy/log" 2>&1; then
        printf '%-40s does not apply\n' "$name"
        continue
    fi
    ended=yes
    if passes; then
        printf '%-40s ESCAPED\n' "$name"
    elif [ "$ended" = no ]; then
        printf '%-40s NEVER ENDS  not within %s s\n' "$name" "$HALSUP_PLANTED_SECONDS"
    elif grep -q '^error\(\[\|: could not compile\)' "$copy/log"; then
        printf '%-40s does not compile\n' "$name"
        sed -n 1,20p "$copy/log"
    else
        caught=$((caught + 1))
        why=$(sed -n 's/^seed \([0-9]*\): \(.*\)$/seed \1: \2/p; s/^.*panicked at \(src.*\):$/\1/p' "$copy/log" | head -n 1 | cut -c 1-110)
        printf '%-40s caught  %s\n' "$name" "$why"
    fi
done

printf 'caught %d of %d\n' "$caught" "$total"
[ "$caught" -eq "$total" ]
