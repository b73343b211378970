#!/bin/sh
# Debian's own judge of packages: deb_lintian.sh PACKAGES
set -eu
ls "$1"/*.deb >/dev/null 2>&1 || { echo "there are no packages"; exit 77; }
command -v lintian >/dev/null || { echo "lintian is not installed"; exit 77; }
# Whoever runs the tests has no address.
exec lintian --allow-root --fail-on error,warning --suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog "$1"/*.deb
