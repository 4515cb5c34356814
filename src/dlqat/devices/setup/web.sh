#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# onnxruntime for the web and for Node from npm, in $DLQAT_DEVICES/npm.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
source "$SETUP/_npm.sh"
version="${ONNXRUNTIME_WEB:-1.30.0}"
npm_into npm "$version" "onnxruntime-web@$version" "onnxruntime-node@$version"
