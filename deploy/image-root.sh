#!/bin/sh
# Lays out the image: ROOT gets the program, the libraries it is linked to where it looks for them, and how names are looked up.
#   image-root.sh PROGRAM ROOT
# Certificate authorities are compiled in and accounts are numbers: nothing else is needed.
set -eu
program=$1 root=$2

install -D -m 755 "$program" "$root/usr/bin/pointsman"
libraries=$(ldd "$program" | sed -n 's/^[^/]*\(\/[^ ]*\) (0x.*/\1/p')
[ -n "$libraries" ] || { echo "image-root.sh: ldd names no library of $program" >&2; exit 1; }
for library in $libraries; do
    install -D -m 755 "$library" "$root$library"
done
# Without it libc asks DNS first and believes its no: what /etc/hosts says would not be read.
mkdir -p "$root/etc"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
