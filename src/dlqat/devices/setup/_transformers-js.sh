#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers.js for Node from npm, in $DLQAT_DEVICES/FOLDER: _transformers-js.sh VERSION FOLDER.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
source "$SETUP/_npm.sh"
npm_into "$2" "$1" "@huggingface/transformers@$1"
