# $1 is 0 when the package is removed, and not replaced by another version.
if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then systemctl disable --now tailwater.service; fi
