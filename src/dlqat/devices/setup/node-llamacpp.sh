#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# node-llama-cpp (llama.cpp for Node) from npm, in $DLQAT_DEVICES/node-llamacpp, with its binaries for this CPU. Those for
# GPUs (hundreds of MB) are its optional packages, and are left out.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
source "$SETUP/_npm.sh"
case "$(uname -sm)" in
  "Linux x86_64") binaries=linux-x64 ;;
  "Linux aarch64") binaries=linux-arm64 ;;
  *) echo "error: node-llama-cpp is set up on Linux with x86-64 or ARM64 only; this is $(uname -sm)" >&2; exit 1 ;;
esac
npm_into node-llamacpp 3.22.1 --omit=optional node-llama-cpp@3.22.1 "@node-llama-cpp/$binaries@3.22.1"
