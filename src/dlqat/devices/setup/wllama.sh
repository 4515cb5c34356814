#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# wllama (llama.cpp for browsers) from npm, in $DLQAT_DEVICES/wllama. Version 2: from 3 on its API takes text only.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
source "$SETUP/_npm.sh"
npm_into wllama 2.4.0 @wllama/wllama@2.4.0
