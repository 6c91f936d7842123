if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers tailwater.conf
elif ! getent passwd tailwater >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir /var/lib/tailwater \
        --shell /usr/sbin/nologin tailwater
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
