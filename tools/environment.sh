#!/bin/sh
# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Brings .venv in the current directory into agreement with requirements.txt and pyproject.toml.
# Needs Python 3.11 and nothing else. Each stamp is written after the step it stands for, so an
# interrupted installation is done again, and a finished one costs a few milliseconds.
#
#   sh tools/environment.sh              creates or refreshes .venv
#   sh tools/environment.sh find-python  prints the Python 3.11 that would be used

set -eu

venv=.venv
locked_stamp=$venv/.locked
installed_stamp=$venv/.installed
# ensurepip is imported too: Debian ships a python3.11 without it, in which `-m venv` cannot work.
probe='import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2], sys.executable)'

candidates() {
  if [ -n "${PYTHON:-}" ]; then
    printf '%s\n' "$PYTHON"
    return
  fi
  for name in python3.11 python3 python; do
    command -v "$name" || :
  done
  for path in \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11*/bin/python \
    "$HOME"/.local/share/uv/python/cpython-3.11*/bin/python3.11 \
    "$HOME"/.local/bin/python3.11 /usr/bin/python3.11 /usr/local/bin/python3.11 \
    /opt/homebrew/bin/python3.11 /opt/python*/bin/python3.11; do
    if [ -x "$path" ]; then printf '%s\n' "$path"; fi
  done
}

find_python() {
  found=''
  all=$(candidates)
  # The here-document keeps the loop in this shell: `return` and `found` would not leave a pipe.
  while IFS= read -r candidate; do
    [ -n "$candidate" ] || continue
    answer=$("$candidate" -c "$probe" 2>/dev/null </dev/null) || answer=''
    case $answer in
      '3.11 '*)
        printf '%s\n' "${answer#3.11 }"
        return 0
        ;;
      '') found="$found, $candidate (unusable, or without venv)" ;;
      *) found="$found, $candidate (${answer%% *})" ;;
    esac
  done <<END
$all
END
  found=${found#, }
  echo "error: Python 3.11 with venv is needed; found: ${found:-no Python at all}." \
    "Install python3.11 and python3.11-venv, or name one: make PYTHON=/path/to/python3.11" >&2
  return 1
}

# The directory is part of the key: an environment that was moved has wrong paths inside.
key_of() {
  sum=$(cksum <"$1")
  printf '%s %s' "$sum" "$(pwd)"
}

is_fresh() {
  [ -f "$1" ] && [ "$(cat "$1")" = "$2" ] && [ -x "$venv/bin/python" ]
}

# pip tells its story to a log; of a failure the end is shown, where the reason stands.
pip_install() {
  "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off \
    --no-build-isolation --no-deps "$@" >>"$venv/install.log" 2>&1 || {
    tail -n 12 "$venv/install.log" >&2
    echo "error: the installation failed; all of it is in $(pwd)/$venv/install.log" >&2
    exit 1
  }
}

if [ "${1:-}" = find-python ]; then
  find_python
  exit
fi

lock_key=$(key_of requirements.txt)
if ! is_fresh "$locked_stamp" "$lock_key"; then
  python=$(find_python)
  echo "creating .venv with $python ..." >&2
  rm -rf "$venv"
  "$python" -m venv "$venv"
  count=$(grep -c '^[A-Za-z0-9].*==' requirements.txt || :)
  echo "installing $count packages from requirements.txt (about 2 minutes) ..." >&2
  # The build back end goes first: what is published as source is then built with the locked one,
  # and not with one that pip would fetch without a hash.
  awk '/^[A-Za-z0-9]/ { wanted = /^(setuptools|wheel)==/ } wanted' requirements.txt \
    >"$venv/build-requirements.txt"
  pip_install --require-hashes -r "$venv/build-requirements.txt"
  pip_install --require-hashes -r requirements.txt
  printf '%s' "$lock_key" >"$locked_stamp"
fi

project_key=$(key_of pyproject.toml)
if ! is_fresh "$installed_stamp" "$project_key"; then
  echo "installing the hetlora command ..." >&2
  pip_install -e .
  printf '%s' "$project_key" >"$installed_stamp"
  echo "environment ready: $(pwd)/$venv" >&2
fi
