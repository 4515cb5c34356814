# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts. Debian packages without root and without touching the system: apt works in a folder of
# its own, and the packages are unpacked, not installed.

SETUP="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
HOME_OF_DEVICES="${DLQAT_DEVICES:-${XDG_CACHE_HOME:-$HOME/.cache}/dlqat/devices}"
mkdir -p "$HOME_OF_DEVICES"

# unpack ARCH FOLDER STATUS PACKAGE...: the packages and all that they need and STATUS does not list as installed.
unpack() {
  local arch="$1" folder="$2" status="$3" state
  shift 3
  command -v apt-get >/dev/null || { echo "error: this script unpacks Debian packages, and apt-get is missing" >&2; exit 1; }
  state="$(mktemp -d)"
  trap "rm -rf '$state'" EXIT  # also where it fails or is stopped: hundreds of MB
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$folder"
  local options=(-o "APT::Architecture=$arch" -o "APT::Architectures::=$arch" -o "Dir::State=$state"
    -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$status" -o "Dir::Cache=$state/cache"
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Debug::NoLocking=1 -o Acquire::Languages=none)
  apt-get -qq "${options[@]}" update
  apt-get -qq -y "${options[@]}" install --download-only "$@" >/dev/null
  local deb
  for deb in "$state"/cache/archives/*.deb; do dpkg -x "$deb" "$folder"; done
  rm -rf "$state"
}
