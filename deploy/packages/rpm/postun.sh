if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ "$1" != 0 ]; then systemctl try-restart tailwater.service; fi
fi
