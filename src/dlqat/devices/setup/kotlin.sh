#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Debian's Kotlin 1.3 and Android's JSON classes, unpacked into $DLQAT_DEVICES/kotlin (300 MB), for tests/test_app_android.py.
# Java 17 must be there. It compiles apps/android against stand-ins; it does not build an app.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/kotlin"
if [ -f "$target/usr/share/java/kotlin-compiler-1.3.31.jar" ]; then exit 0; fi
rm -rf "$target.new"
unpack "$(dpkg --print-architecture)" "$target.new" /var/lib/dpkg/status kotlin libandroid-json-java
rm -rf "$target"
mv "$target.new" "$target"
