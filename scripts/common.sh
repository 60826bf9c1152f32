# shellcheck shell=bash
# What the commands behind the Makefile share; sourced, not run.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT
export PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="$ROOT/tests"

if [ -z "${AISTACK_CACHE:-}" ]; then
  if [ "$(id -u)" -eq 0 ]; then
    AISTACK_CACHE=/var/cache/aistack
  else
    AISTACK_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/aistack
  fi
fi
export AISTACK_CACHE

# What a guest is made with.
# shellcheck disable=SC2034
GUEST_PACKAGES=(mmdebstrap debian-archive-keyring systemd-container kmod python3 python3-pip)

say() { printf '%s\n' "$*"; }

# die WHAT [NEXT]: one clear message, exit code 2.
die() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  [ "$#" -lt 2 ] || printf '  next: %s\n' "$2" >&2
  exit 2
}

need_root() {
  [ "$(id -u)" -eq 0 ] || die "this boots a guest with namespaces and mounts of its own and needs root" "run it again with sudo"
}

missing_packages() { # PACKAGE… -> those that are not installed
  local package
  for package in "$@"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] \
      || printf '%s\n' "$package"
  done
}

# Install Debian packages that are not there yet, and say so.
need_packages() {
  command -v dpkg-query >/dev/null || die "this is no Debian: there is no dpkg" "install by hand: $*"
  local missing log
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || die "not installed: ${missing[*]}" "sudo apt-get install ${missing[*]}"
  say "installing on this machine (apt-get): ${missing[*]}"
  mkdir -p "$AISTACK_CACHE/logs"
  log=$AISTACK_CACHE/logs/apt.log
  # A source of someone else's that cannot be reached is no reason to stop: what counts is the installation.
  apt-get update >"$log" 2>&1 || say "apt-get update complained (see $log); going on"
  if ! DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
    tail -n 15 "$log" >&2
    die "apt-get could not install ${missing[*]}" "read $log; is there a network? then: apt-get install ${missing[*]}"
  fi
}

need_python() {
  command -v python3 >/dev/null || die "there is no python3" "apt-get install python3"
  python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || die "python3 is $(python3 -V 2>&1), 3.11 or newer is needed" "use Debian 12 or newer"
}

# make_environment NAME REQUIREMENTS WHAT: print the folder of a virtual environment, made once for each set of requirements.
make_environment() {
  local key folder name=$1 requirements=$2
  key=$({ cat "$requirements" && python3 -V && echo 1; } | sha256sum | cut -c 1-16)
  folder=$AISTACK_CACHE/$name-$key
  mkdir -p "$AISTACK_CACHE/locks"
  (
    flock 9
    if [ ! -e "$folder/complete" ]; then
      say "making the Python environment $3 in $folder" >&2
      rm -rf "$AISTACK_CACHE/$name"-*
      if ! { python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet \
        --disable-pip-version-check --require-hashes --requirement "$requirements"; } >&2; then
        die "cannot install the Python packages $3" "is there a network? they are named in $requirements"
      fi
      touch "$folder/complete"
    fi
  ) 9>"$AISTACK_CACHE/locks/$name"
  printf '%s\n' "$folder"
}

# Print the folder of what the tests run in.
test_environment() { make_environment venv "$ROOT/scripts/requirements.txt" "of the tests"; }

# Print the Python that has the real aider, which needs one older than 3.13; nothing where python3 is newer.
aider_python() {
  local folder
  python3 -I -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || return 0
  folder=$(make_environment aider-venv "$ROOT/images/aider-wrapper/requirements.txt" "with the real aider (700 MB)")
  printf '%s\n' "$folder/bin/python"
}
