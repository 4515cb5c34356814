#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# wllama (llama.cpp for browsers) from npm, in $DLQAT_DEVICES/wllama. npm must be there. Version 2: from 3 on its API takes text only.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/wllama"
version="2.4.0"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$version" ]; then exit 0; fi
command -v npm >/dev/null || { echo "error: npm is missing; install Node 20 or newer" >&2; exit 1; }
rm -rf "$target.new"
mkdir -p "$target.new"
cd "$target.new"
echo '{"private": true, "type": "module"}' >package.json
npm install --silent --ignore-scripts --no-audit --no-fund --prefix . "@wllama/wllama@$version"
echo "$version" >ready
rm -rf "$target"
mv "$target.new" "$target"
