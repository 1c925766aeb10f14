#!/usr/bin/env bash
# Lint the Debian package of a bundle: lint_deb.sh BUNDLE. Needs Debian; installs lintian if it is missing (as root).
set -euo pipefail
BUNDLE=$1
TAGS=(
    dir-or-file-in-opt            # StackFlow looks for models in /opt/m5stack
    unknown-section               # llm-module is StackFlow's own section
    no-copyright-file             # the licence is that of the checkpoint, which the bundle's manifest names
    bogus-mail-host               # unless DEBEMAIL and DEBFULLNAME name the maintainer
    package-has-long-file-name    # StackFlow's scheme, with the bundle's name
    no-changelog                  # a bundle has no history
)
command -v lintian >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends lintian >/dev/null
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
axzoo package "$BUNDLE" --for stackflow --output "$folder"
lintian --allow-root --fail-on error,warning --suppress-tags "$(IFS=,; echo "${TAGS[*]}")" "$folder"/*.deb
