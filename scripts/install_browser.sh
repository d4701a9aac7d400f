#!/bin/sh
# Make sure that there is a chromium for the tests of the pages: install_browser.sh
# On Debian and Ubuntu root installs the system's own; elsewhere one word, and the tests skip.
set -eu
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium for the tests of the pages" >&2
    { apt-get install -y -q --no-install-recommends chromium || { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; }; } >/dev/null 2>&1 && exit 0
fi
echo "no chromium here: the tests of the pages in a browser will skip" >&2
