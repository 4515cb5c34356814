#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Another version of a runtime, in $DLQAT_DEVICES/releases/PACKAGE-VERSION: _release.sh PACKAGE VERSION [REQUIREMENT...]. Its wheel alone:
# all that it needs is already installed beside dlqat, and a worker finds this folder first.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
package="$1" version="$2"
shift 2
target="$HOME_OF_DEVICES/releases/$package-$version"
if [ -f "$target/ready" ]; then exit 0; fi
rm -rf "$target.new"
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --target "$target.new" "$package==$version" "$@"
touch "$target.new/ready"
rm -rf "$target"
mv "$target.new" "$target"
