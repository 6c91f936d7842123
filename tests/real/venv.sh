#!/usr/bin/env bash
# Makes FOLDER a Python environment with the packages of REQUIREMENTS, again only when the pins have
# changed.
#
#     tests/real/venv.sh FOLDER REQUIREMENTS
set -euo pipefail

folder=$1 requirements=$2
cmp -s "$requirements" "$folder/installed.txt" && exit
echo "installing Python packages"
rm -rf "$folder"
if ! python3 -c 'import ensurepip' 2>/dev/null; then
    # Debian keeps it apart from python3.
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
cp "$requirements" "$folder/installed.txt"
