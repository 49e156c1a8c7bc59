#!/bin/sh
# Installs ChromaDB from PyPI into a virtual environment: examples/full.toml runs it as a service.
#
#   examples/install-chromadb.sh [DIRECTORY]     (default /opt/chromadb)
#
# As root on Debian it installs python3-venv where that is missing. What is already installed is left as it is, and an
# installation that broke off is taken up again. CHROMADB_VERSION names another version, PYTHON another interpreter.
set -eu

say() { printf 'install-chromadb: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

[ $# -le 1 ] || die "expected at most one directory"
place=${1:-/opt/chromadb}
version=${CHROMADB_VERSION:-1.5.9}
case $place in
-h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
/*) ;;
*) place=$PWD/$place ;;
esac

# The one that Debian owns comes first: a worker sees /usr, while an interpreter in somebody's home may be hidden from it.
find_python() {
    for python in ${PYTHON:+"$PYTHON"} /usr/bin/python3 python3; do
        command -v "$python" && return
    done
    return 1
}

# A python3 without ensurepip makes environments that have no pip.
can_make_environments() {
    python=$(find_python) && "$python" -c 'import ensurepip, venv' 2>/dev/null
}

installed_version() {
    [ -x "$place/bin/chroma" ] &&
        "$place/bin/python" -c 'import importlib.metadata as m; print(m.version("chromadb"))' 2>/dev/null
}

if [ "$(installed_version || true)" = "$version" ]; then
    say "chromadb $version is already in $place"
    exit 0
fi

if ! can_make_environments; then
    [ "$(id -u)" = 0 ] || die "python3-venv is missing; as root: apt-get install python3-venv"
    command -v apt-get >/dev/null || die "python3 with its venv module is missing; install it first"
    say "installing python3-venv from Debian"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv ca-certificates >/dev/null
    can_make_environments || die "python3 still has no venv module"
fi
python=$(find_python)

mkdir -p "$place" 2>/dev/null || die "cannot make $place; name a directory of your own, or run this as root"
if ! [ -x "$place/bin/pip" ]; then
    say "making a virtual environment in $place with $python"
    "$python" -m venv "$place"
fi
say "installing chromadb $version from PyPI: about 100 packages and 500 MiB on disk, some minutes"
"$place/bin/pip" install --quiet --disable-pip-version-check --no-input "chromadb==$version" ||
    die "pip failed; run this again to go on"
[ "$(installed_version || true)" = "$version" ] || die "pip reported success, but $place/bin/chroma is missing"
say "chromadb $version is in $place"
