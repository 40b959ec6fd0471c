#!/usr/bin/env bash
# images.sh OUT_DIR: makes OUT_DIR/{day1,day2,clone}.raw, 8 GiB raw ext4 "VM disks" (sparse): a
# machine's disk, the same disk a day later, and another machine with the same files laid out
# otherwise. From real files of this machine and a seeded application load, so the bytes differ a
# little from machine to machine. Needs root (loop mounts), 25 GiB, some minutes; nothing to do if
# all three are there.
set -euo pipefail
if [ -e "${1:?usage: images.sh OUT_DIR}/made" ]; then echo "images: ready in $1"; exit 0; fi
mkdir -p "$1"; I=$(cd "$1" && pwd); W=$(mktemp -d "${TMPDIR:-$I}/images.XXXXXX"); S=$W/stage; H=$(cd "$(dirname "$0")" && pwd)
mkdir -p $S/{usr,opt,root,var/lib/db,var/log,home/u}
# --- OS + tool files (real): /usr without the cloud sdk, the rust toolchain, the python in use
tar -C / --exclude=usr/lib/google-cloud-sdk --exclude="usr/lib/go-*" -cf - usr etc var/lib boot | tar -C $S -xf -
ST=$(rustc --print sysroot)
tar -C "$(dirname $ST)" --exclude='*/share/doc' -cf - "$(basename $ST)" | tar -C $S/opt -xf -
PY=$(python3 -c "import sys; print(sys.base_prefix)")
[ "$PY" = /usr ] || tar -C "$(dirname $PY)" -cf - "$(basename $PY)" | tar -C $S/root -xf -
# --- application data: a sqlite database (8 KiB pages), logs
python3 $H/appdata.py make $S/var/lib/db/app.sqlite $S/var/log/app.log 1
du -sm $S
truncate -s 8G $I/day1.raw
mke2fs -q -F -t ext4 -b 4096 -m 1 -L root -E lazy_itable_init=0,lazy_journal_init=0 -d $S $I/day1.raw
# --- day 2: same disk, a day of life on the mounted fs
cp --sparse=always $I/day1.raw $I/day2.raw
mkdir -p $W/mnt; mount -o loop,noatime $I/day2.raw $W/mnt
python3 $H/appdata.py day2 $W/mnt
sync; umount $W/mnt
# --- clone: same OS/tool files written in shuffled order on a fresh fs, own app data, own identity
truncate -s 8G $I/clone.raw
mkfs.ext4 -q -F -b 4096 -m 1 -L root2 -E lazy_itable_init=0,lazy_journal_init=0 $I/clone.raw
mount -o loop,noatime $I/clone.raw $W/mnt
( cd $S; find . -path ./var/lib/db -prune -o -path ./var/log -prune -o -type d -print0 ) > $W/dirs.0
( cd $S; find . -path ./var/lib/db -prune -o -path ./var/log -prune -o ! -type d -print0 ) | shuf -z --random-source=<(yes) > $W/files.0
tar -C $S --null --no-recursion -T $W/dirs.0 -cf - | tar -C $W/mnt -xf -
tar -C $S --null --no-recursion -T $W/files.0 -cf - | tar -C $W/mnt -xf -
mkdir -p $W/mnt/var/lib/db $W/mnt/var/log
python3 $H/appdata.py make $W/mnt/var/lib/db/app.sqlite $W/mnt/var/log/app.log 2
echo clone-vm > $W/mnt/etc/hostname; dd if=/dev/urandom of=$W/mnt/etc/machine-id bs=33 count=1 status=none
sync; umount $W/mnt; rm -rf $W
for f in day1 day2 clone; do fallocate -d $I/$f.raw; ls -ls $I/$f.raw; done
touch "$I/made"
