#!/bin/sh
# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Runs the quick tests under Debian's Bazel, without a network. Third-party packages come from the
# locked environment, .venv unless VENV names another.
#
#   sh tools/bazel.sh                      bazel test //...
#   sh tools/bazel.sh //tests/privacy/...  a part; options of `bazel test` may follow
#   sh tools/bazel.sh installed            says what is missing, if anything is

set -eu

packages='bazel-bootstrap bazel-platforms bazel-skylib bazel-rules-java bazel-rules-proto'
venv=${VENV:-.venv}

missing=''
for package in $packages; do
  # Not what dpkg says: a package may be half removed, or unpacked by other means.
  case $package in
    bazel-bootstrap) found=/usr/bin/bazel ;;
    bazel-rules-*) found=/usr/share/bazel/rules/${package##*-} ;;
    *) found=/usr/share/bazel/tools/${package##*-} ;;
  esac
  [ -e "$found" ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "error: Debian's Bazel is not complete: apt-get install$missing" >&2
  exit 1
fi
[ "${1:-}" != installed ] || exit 0

# The locked packages without the project itself, which .venv holds in editable form: what a test
# does not declare must not be found there. A .pth file of an environment adds to the path, and the
# .pth files of the directory that it adds are not read.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
isolated=$(cd "$venv" && pwd)/bazel
if [ ! -f "$isolated/ready" ]; then
  rm -rf "$isolated"
  "$venv/bin/python" -m venv --without-pip "$isolated"
  own=$("$isolated/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$site" >"$own/locked.pth"
  : >"$isolated/ready"
fi

# The one directory that tests share, as under `make test`: without it each would copy TFF's worker.
cache=${XDG_CACHE_HOME:-$HOME/.cache}
mkdir -p "$cache/hetlora_tff"
path=$isolated/bin:/usr/bin:/bin

[ $# -gt 0 ] || set -- //...
exec /usr/bin/bazel test --action_env=PATH="$path" --test_env=PATH="$path" \
  --test_env=XDG_CACHE_HOME="$cache" --sandbox_writable_path="$cache/hetlora_tff" "$@"
