# SPDX-License-Identifier: Apache-2.0
# Sourced by scripts that take packages from npm, after _apt.sh. npm (with Node 20 or newer) must be there.

# npm_into FOLDER VERSION PACKAGE...: the packages in $HOME_OF_DEVICES/FOLDER, whole or not at all; nothing where VERSION is there.
# Their install scripts are not run: what they would fetch comes from elsewhere, and is not needed.
npm_into() {
  local target="$HOME_OF_DEVICES/$1" version="$2"
  shift 2
  if [ "$(cat "$target/ready" 2>/dev/null)" = "$version" ]; then exit 0; fi
  command -v npm >/dev/null || { echo "error: npm is missing; install Node 20 or newer" >&2; exit 1; }
  rm -rf "$target.new"
  mkdir -p "$target.new"
  cd "$target.new"
  echo '{"private": true, "type": "module"}' >package.json
  npm install --silent --ignore-scripts --no-audit --no-fund --prefix . "$@"
  echo "$version" >ready
  rm -rf "$target"
  mv "$target.new" "$target"
}
