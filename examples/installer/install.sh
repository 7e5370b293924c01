#!/bin/sh
# install.sh [--uninstall]: puts greeter into PREFIX/bin and its settings into SYSCONF.
#
# Run by root it also gives greeter a name in SYSCONF/hosts and a system user. Running it again
# changes nothing, and keeps settings that were edited.
set -eu

PREFIX=${PREFIX:-/usr/local}
SYSCONF=${SYSCONF:-/etc}
HERE=$(cd "$(dirname "$0")" && pwd)
HOST='127.0.0.1 greeter.internal'

has_user() {
    grep -q '^greeter:' /etc/passwd
}

# Install standard input as $2 with mode $1, unless it is there already.
put() {
    new=$(mktemp "$2.XXXXXX")
    cat > "$new"
    chmod "$1" "$new"
    if cmp -s "$new" "$2"; then
        rm "$new"
    else
        mv "$new" "$2"
    fi
}

install_files() {
    mkdir -p "$PREFIX/bin" "$SYSCONF"
    sed "s|@SYSCONF@|$SYSCONF|" "$HERE/greeter" | put 755 "$PREFIX/bin/greeter"
    if [ ! -e "$SYSCONF/greeter.conf" ]; then
        echo 'GREETING="Hello, world"' | put 644 "$SYSCONF/greeter.conf"
    fi
}

install_system() {
    if ! grep -qxF "$HOST" "$SYSCONF/hosts"; then
        echo "$HOST" >> "$SYSCONF/hosts"
    fi
    if has_user; then
        return
    fi
    if command -v useradd > /dev/null; then
        useradd --system --user-group --no-create-home --shell /bin/false greeter
    else
        echo 'greeter:x:499:499::/nonexistent:/bin/false' >> /etc/passwd
        echo 'greeter:x:499:' >> /etc/group
    fi
}

uninstall_files() {
    rm -f "$PREFIX/bin/greeter" "$SYSCONF/greeter.conf"
}

uninstall_system() {
    sed -i "/^$HOST\$/d" "$SYSCONF/hosts"
    if ! has_user; then
        return
    fi
    if command -v userdel > /dev/null; then
        userdel greeter
    else
        sed -i '/^greeter:/d' /etc/passwd /etc/group
    fi
}

case ${1:-} in
    '') action=install ;;
    --uninstall) action=uninstall ;;
    *) echo "usage: $0 [--uninstall]" >&2; exit 2 ;;
esac

"${action}_files"
if [ "$(id -u)" = 0 ]; then
    "${action}_system"
else
    echo "not root: no name in $SYSCONF/hosts, no system user"
fi
