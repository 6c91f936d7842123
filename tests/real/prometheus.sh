#!/usr/bin/env bash
# Prometheus and promtool out of Debian's package, in FOLDER/usr/bin. Unpacked rather than installed: installing
# it would start a service. Needs apt, and root the first time.
#
#     tests/real/prometheus.sh FOLDER
set -euo pipefail

folder=$1
[[ -x $folder/usr/bin/promtool ]] && exit
echo "fetching Debian's prometheus package"
rm -rf "$folder" "$folder.deb"
mkdir -p "$folder.deb"
apt-get update -qq
# apt's own user could not write into a folder of root's.
(cd "$folder.deb" && apt-get -qq -o APT::Sandbox::User=root download prometheus)
dpkg -x "$folder.deb"/prometheus_*.deb "$folder.deb/unpacked"
mv "$folder.deb/unpacked" "$folder"
rm -r "$folder.deb"
