#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A Chromium for the browser devices, unpacked into $DLQAT_DEVICES/chromium (about 500 MB).
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/chromium"
if [ -x "$target/usr/lib/chromium/chromium" ]; then exit 0; fi
rm -rf "$target.new"
unpack "$(dpkg --print-architecture)" "$target.new" /var/lib/dpkg/status chromium fonts-dejavu-core
rm -rf "$target"
mv "$target.new" "$target"
