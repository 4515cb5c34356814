#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers.js for Node from npm, in $DLQAT_DEVICES/FOLDER: _transformers-js.sh VERSION FOLDER. Node 20 or newer must be
# there.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
version="$1" target="$HOME_OF_DEVICES/$2"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$version" ]; then exit 0; fi
command -v npm >/dev/null || { echo "error: npm is missing; install Node 20 or newer" >&2; exit 1; }
rm -rf "$target.new"
mkdir -p "$target.new"
cd "$target.new"
echo '{"private": true, "type": "module"}' >package.json
# The CPU library is inside the package; its install script would fetch the CUDA one from elsewhere.
npm install --silent --ignore-scripts --no-audit --no-fund --prefix . "@huggingface/transformers@$version"
echo "$version" >ready
rm -rf "$target"
mv "$target.new" "$target"
