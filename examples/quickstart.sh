#!/bin/sh
# Builds halsup, starts three web servers as a pool, and shows them. Needs root and Rust; on Debian it installs the
# packages gcc, libc6-dev and python3 where they are missing.
#
#   examples/quickstart.sh [CONFIG]      (default examples/web.toml)
#
# The daemon stays in the background. `halsup daemon stop` ends it and its workers.
set -eu

say() { printf 'quickstart: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

case ${1-} in
-h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
esac
[ $# -le 1 ] || die "expected at most one configuration"
[ "$(id -u)" = 0 ] || die "root is needed: halsup makes cgroups and namespaces (try: sudo $0${1+ $*})"
# Relative to the caller, before the directory is left.
case ${1-} in
"") config=examples/web.toml ;;
/*) config=$1 ;;
*) config=$PWD/$1 ;;
esac
cd "$(dirname "$0")/.."
[ -f "$config" ] || die "there is no configuration $config"

# sudo hides where rustup puts cargo: root's home, the caller's, or that of the Rust images.
caller_home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:${caller_home:-/root}/.cargo/bin:/usr/local/cargo/bin
export PATH
command -v cargo >/dev/null || die "no cargo: install Rust by https://rustup.rs"

missing=
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v python3 >/dev/null || missing="$missing python3"
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || die "missing, by Debian's names:$missing"
    say "installing$missing from Debian"
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi

say "building: about a minute the first time"
cargo build --release --locked --quiet
target=${CARGO_TARGET_DIR:-target}
case $target in
/*) ;;
*) target=$PWD/$target ;;
esac
halsup=$target/release/halsup

"$halsup" --config "$config" daemon start
# The daemon runs; this waits for the workers, and says why some do not start.
outcome=0
"$halsup" --config "$config" start all || outcome=$?
"$halsup" --config "$config" status
"$halsup" --config "$config" ps
say "end it with: $halsup --config $config daemon stop"
exit "$outcome"
