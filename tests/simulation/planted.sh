#!/bin/sh
# Shows that the simulation and the engine's own tests catch bugs: applies each patch of planted/ to a copy of the sources,
# one at a time, and expects red. Prints a line a bug and a total; fails if one escapes or a patch no longer applies.
#
#   tests/simulation/planted.sh [NAME-PREFIX…]      only these
#
# HALSUP_SIMULATION_SEEDS   seeds a bug (default 600)
# CARGO_TARGET_DIR          where the copies are built (default target/planted); kept between runs
# CARGO                     how cargo is called (default cargo)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
: "${HALSUP_SIMULATION_SEEDS:=600}"
: "${CARGO_TARGET_DIR:=$root/target/planted}"
: "${CARGO:=cargo}"
export HALSUP_SIMULATION_SEEDS CARGO_TARGET_DIR

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM

# One fixed path for the copy: cargo then sees the same package each time and rebuilds only the library and the test.
package=$CARGO_TARGET_DIR/package
rm -rf "$package"
mkdir -p "$package"
tar -C "$root" --exclude=./target --exclude=./.git -cf - . | tar -C "$package" -xf -

fresh() {
    rm -rf "$package/src/engine"
    cp -R "$root/src/engine" "$package/src/engine"
}

run() {
    # Unquoted: CARGO may be a command with arguments.
    (cd "$package" && $CARGO test --quiet --test simulation) >"$copy/log" 2>&1
}

fresh
if ! run; then
    cat "$copy/log"
    echo "planted: red without any planted bug" >&2
    exit 1
fi

caught=0 total=0
for patch in "$here"/planted/*.patch; do
    name=$(basename "$patch" .patch)
    if [ $# -gt 0 ]; then
        wanted=no
        for prefix in "$@"; do case $name in "$prefix"*) wanted=yes ;; esac; done
        [ "$wanted" = yes ] || continue
    fi
    total=$((total + 1))
    fresh
    if ! patch --quiet --directory="$package" --strip=1 <"$patch" >"$copy/log" 2>&1; then
        printf '%-40s does not apply\n' "$name"
        continue
    fi
    if run; then
        printf '%-40s ESCAPED\n' "$name"
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
