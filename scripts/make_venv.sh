#!/bin/sh
# Make the virtual environment DIR with pip in it: make_venv.sh PYTHON DIR
# Debian and Ubuntu ship python3 without ensurepip. Then: install python3-venv (root), or unpack pip from Debian's own
# package without installing it (anyone), or say the one line that helps.
set -eu
python=$1
dir=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "halfmap needs Python 3.11 or newer, $python is $("$python" -V 2>&1); try: make install PYTHON=python3.12" >&2
    exit 1
}
if "$python" -c 'from ensurepip import version' 2>/dev/null; then
    exec "$python" -m venv "$dir"
fi
version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "python3 has no ensurepip here: installing python3-venv" >&2
    { apt-get install -y -q "python$version-venv" || { apt-get update -q && apt-get install -y -q "python$version-venv"; }; } >&2 || true
    "$python" -c 'from ensurepip import version' 2>/dev/null && exec "$python" -m venv "$dir"
fi
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
if (cd "$unpacked" && apt-get download -q python3-pip-whl && dpkg-deb -x ./*.deb .) >&2 2>&1; then
    wheel=$(echo "$unpacked"/usr/share/python-wheels/pip-*.whl)
    "$python" -m venv --without-pip "$dir" && "$dir/bin/python" "$wheel/pip" -q install --no-index "$wheel" && exit 0
    rm -rf "$dir"  # half made
fi
echo "this python3 cannot make a virtual environment; run: sudo apt-get install python$version-venv    and make install again" >&2
exit 1
