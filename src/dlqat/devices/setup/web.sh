#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# onnxruntime for the web and for Node from npm, in $DLQAT_DEVICES/npm. Node 20 or newer must be there.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/npm"
version="${ONNXRUNTIME_WEB:-1.30.0}"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$version" ]; then exit 0; fi
command -v npm >/dev/null || { echo "error: npm is missing; install Node 20 or newer" >&2; exit 1; }
rm -rf "$target.new"
mkdir -p "$target.new"
cd "$target.new"
npm install --silent --ignore-scripts --no-audit --no-fund --prefix . \
  "onnxruntime-web@$version" "onnxruntime-node@$version"
echo "$version" >ready
rm -rf "$target"
mv "$target.new" "$target"
