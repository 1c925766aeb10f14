#!/usr/bin/env bash
# Print the path of a Chromium for the tests of the chat page. If there is none, install Debian's with apt, as root.
set -euo pipefail

fail() {
    echo "chromium: $*" >&2
    exit 1
}

if ! command -v chromium >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "not installed, and installing it needs root on Debian"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 || fail "apt-get update failed: is there a network?"
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 chromium >&2 ||
        fail "apt-get cannot install it"
fi
command -v chromium
