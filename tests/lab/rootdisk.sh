#!/usr/bin/env bash
# rootdisk.sh OUT FS SIZE: a disk image OUT that `guest.sh boot` can boot from: a busybox system, some
# real files of this machine to copy around, and job.sh as its /job. FS is ext4 or xfs. Needs root
# (loop mount).
set -euo pipefail
out=${1:?usage: rootdisk.sh OUT FS SIZE} fs=${2:?} size=${3:?}
here=$(cd "$(dirname "$0")" && pwd)
mnt=$(mktemp -d)
trap 'umount "$mnt" 2>/dev/null || true; rmdir "$mnt" 2>/dev/null || true' EXIT

truncate -s "$size" "$out"
case $fs in
  ext4) mkfs.ext4 -q -F -L root "$out" ;;
  xfs) mkfs.xfs -q -f -L root "$out" ;;
  *) echo "rootdisk.sh: no file system $fs" >&2; exit 2 ;;
esac
mount -o loop,noatime "$out" "$mnt"
mkdir -p "$mnt"/{bin,sbin,usr/bin,usr/sbin,etc,proc,sys,dev,tmp,data,load,files}
cp "$(command -v busybox)" "$mnt/bin/busybox"
for applet in $(busybox --list | grep -vx busybox); do ln -sf /bin/busybox "$mnt/bin/$applet"; done
echo standin-guest >"$mnt/etc/hostname"
cp "$here/job.sh" "$mnt/job"
# Some 40 MiB of many small and some larger real files.
tar -C /usr/share -cf - perl python3 zoneinfo doc 2>/dev/null | head -c 40M | tar -C "$mnt/files" -xf - 2>/dev/null || true
[ "$(find "$mnt/files" -type f | wc -l)" -gt 100 ] || { echo "rootdisk.sh: no files found to copy" >&2; exit 1; }
umount "$mnt"
