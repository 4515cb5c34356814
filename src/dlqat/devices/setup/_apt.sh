# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts. Debian packages without root and without touching the system: apt works in a folder of
# its own, and the packages are unpacked, not installed.

SETUP="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
HOME_OF_DEVICES="${DLQAT_DEVICES:-${XDG_CACHE_HOME:-$HOME/.cache}/dlqat/devices}"
mkdir -p "$HOME_OF_DEVICES"

# begin ARCH STATUS: $state, a folder for apt, and ${apt[@]}, apt-get in it. STATUS lists what counts as installed.
begin() {
  command -v apt-get >/dev/null || { echo "error: this script unpacks Debian packages, and apt-get is missing" >&2; exit 1; }
  state="$(mktemp -d)"
  trap "rm -rf '$state'" EXIT  # also where it fails or is stopped: hundreds of MB
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  apt=(apt-get -qq -o "APT::Architecture=$1" -o "APT::Architectures::=$1" -o "Dir::State=$state"
    -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$2" -o "Dir::Cache=$state/cache"
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Debug::NoLocking=1 -o Acquire::Languages=none)
  "${apt[@]}" update
}

# unpack ARCH FOLDER STATUS PACKAGE...: the packages and all that they need and STATUS does not list as installed.
unpack() {
  local folder="$2" deb
  begin "$1" "$3"
  shift 3
  mkdir -p "$folder"
  "${apt[@]}" -y install --download-only "$@" >/dev/null
  for deb in "$state"/cache/archives/*.deb; do dpkg -x "$deb" "$folder"; done
  rm -rf "$state"
}

# unpack_of SUITE FOLDER PACKAGE: this package alone, of another suite of Debian, from where the system's own comes from.
unpack_of() {
  local site
  begin "$(dpkg --print-architecture)" /dev/null
  site="$("${apt[@]}" indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)"
  rm -rf "$state"/lists/*
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $1 main" >"$state/sources.list"
  apt+=(-o "Dir::Etc::SourceList=$state/sources.list" -o Dir::Etc::SourceParts=/dev/null)
  mkdir -p "$state/lists/partial" "$2"
  "${apt[@]}" update
  (cd "$state" && "${apt[@]}" download "$3")
  dpkg -x "$state/$3"_*.deb "$2"
  rm -rf "$state"
}

# build_arm64 SCRIPT ARGUMENT...: a script of ../runner with Debian's compiler for ARM64, fetched for this one build.
build_arm64() {
  local cross="$HOME_OF_DEVICES/cross.new" script="$SETUP/../runner/$1"
  shift
  rm -rf "$cross"
  unpack "$(dpkg --print-architecture)" "$cross" /var/lib/dpkg/status g++-aarch64-linux-gnu
  LD_LIBRARY_PATH="$(printf "%s:" "$cross"/usr/lib/*-linux-gnu)" bash "$script" "$@" \
    "$cross/usr/bin/aarch64-linux-gnu-g++" --sysroot="$cross"
  rm -rf "$cross"
}
