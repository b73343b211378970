#!/bin/sh
# Debian's own judge of packages: deb_lintian.sh PACKAGES
set -eu
ls "$1"/*.deb >/dev/null 2>&1 || { echo "there are no packages"; exit 77; }
command -v lintian >/dev/null || { echo "lintian is not installed"; exit 77; }
# There is no Debian bug that a changelog could close, and no address of whoever runs the tests.
exec lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs,bogus-mail-host "$1"/*.deb
