"""The measurement behind bench/rpo.sh. The age of a point counts from its cut until it was read off the
target by `point list`, asked several times a second: the time that asking takes is in it."""

import os, subprocess, sys, time

from lib import load, report
from lib.servers import MIB, Place, standin

RATE = 2000
# Not a divisor of the second between cuts: samples that keep step with them would never see the oldest.
APART_S = 0.17
AGE_MAX_S, RATIO_MAX = 3.0, 0.1


class LoopDisk:
    """A file system of its own at `path`, on a loop device whose writes are counted."""

    def __init__(self, path, size_mib=4096):
        self.path, self.image, self.size_mib = path, f"{path}.image", size_mib

    def __enter__(self):
        os.makedirs(self.path)
        with open(self.image, "wb") as image:
            image.truncate(self.size_mib * MIB)
        call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        self.device = call("losetup", "--find", "--show", self.image).strip()
        call("mount", self.device, self.path)
        return self

    def __exit__(self, *_):
        call("umount", self.path)
        call("losetup", "--detach", self.device)

    def written(self):
        """Bytes that reached the device since it was attached."""
        fields = open(f"/sys/block/{os.path.basename(self.device)}/stat").read().split()
        return int(fields[6]) * 512

    def used(self):
        state = os.statvfs(self.path)
        return (state.f_blocks - state.f_bfree) * state.f_frsize


def call(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def newest(args, place):
    """When the newest point on the target was cut."""
    points = standin(args.standin, "point", "list", "--target", f"dir:{place.target}", "--group", "bench")["points"]
    return max(point["at_unix_ns"] for point in points)


def watch(args, place, disk, writer):
    """Samples until the writer ends: (age in seconds, seconds that asking took, bytes of diffs)."""
    samples, empty = [], disk.used()
    while writer.poll() is None:
        began = time.monotonic()
        cut_at = newest(args, place)
        age = time.time() - cut_at / 1e9
        asking = time.monotonic() - began
        samples.append((age, asking, disk.used() - empty))
        time.sleep(max(APART_S - asking, 0))
    return samples


def measure(args, work, seconds):
    place = Place(args, work)
    with LoopDisk(place.diffs) as disk:
        place.fresh()
        with place.protect("1s"):
            place.cut(wait=True)
            os.sync()
            before = disk.written()
            argv = load.command(place.socket, "--rw=randwrite --bs=4k --iodepth=4", seconds, rate=RATE)
            writer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=open(f"{work}/fio.json", "w"))
            samples = watch(args, place, disk, writer)
            written = disk.written() - before
            if writer.returncode != 0:
                sys.exit("rpo: fio failed")
            generations = place.status()["generation"]
        text = open(f"{work}/fio.json").read()
    return samples, written, load.parse(text).count, generations


def main():
    args = report.arguments(__doc__)
    seconds = int(60 * report.setting("MINUTES", 10.0))
    with report.work() as work:
        samples, written, count, generations = measure(args, work, seconds)
    ages, asking, diffs = zip(*samples)
    guest, half = count * 4096, len(diffs) // 2
    ratio = written / guest
    first, second = max(diffs[:half]), max(diffs[half:])
    rows = [
        ("age of the newest restorable point, longest", f"{max(ages):.2f} s", f"<= {AGE_MAX_S:.0f} s", report.verdict(max(ages) <= AGE_MAX_S)),
        ("... median / 99 %", f"{load.median(ages):.2f} / {load.percentile(ages, 99):.2f} s", "", ""),
        ("asking the target, median / longest", f"{load.median(asking):.3f} / {max(asking):.3f} s", "", ""),
        ("diffs and maps at most, first / second half", f"{first / MIB:,.1f} / {second / MIB:,.1f} MiB", "second <= 2 x first", report.verdict(second <= 2 * first)),
        ("written to the diffs' device / written by the guest", f"{written / MIB:,.1f} / {guest / MIB:,.1f} MiB = {ratio:.3f}", f"< {RATIO_MAX}", report.verdict(ratio < RATIO_MAX)),
        ("writes/s", f"{count / seconds:,.0f}", f">= {RATE * 0.98:,.0f}", report.verdict(count / seconds >= RATE * 0.98)),
    ]
    report.publish(args, "rpo", [
        f"{report.machine()}. `--every 1s`, {RATE:,} random 4 KiB writes/s for {seconds} s, {len(samples)} samples, {generations} generations; diffs on ext4 on a loop device.",
        "", *report.table(("", "found", "must be", ""), rows)])


main()
