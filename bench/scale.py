"""The measurement behind bench/scale.sh.

Memory is measured where it is limited: the process runs in a cgroup of 512 MiB, which holds what it maps and
what it caches as well. What it cannot give back (*anon*) is said apart.

The disks are sparse files, and a tenth of each is *made dirty*, not filled: write-zeroes of 64 MiB
every 640 MiB. Data for it would be 6.4 TiB. To the splitter it is the same count of dirty granules,
spread over the whole disk; no diff data is written, and none of it would stay in the process."""

import os, time

import nbd

from lib import load, report
from lib.limit import Limit
from lib.servers import MIB, Place

PIECE = 64 * MIB
TIB = 1 << 40
GIB = 1 << 30
MEMORY_MAX_MIB, RESTART_MAX_S, FLAT = 512, 2.0, 0.85


def sparse(path, size):
    with open(path, "wb") as disk:
        disk.truncate(size)


def make_dirty(socket, export, size, percent, skip=0):
    """Write-zeroes over `percent` percent of the disk beyond `skip`; the bytes."""
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.connect_unix(socket)
    marked = 0
    if percent:
        apart = PIECE * 100 // percent
        for at in range(skip, size - PIECE + 1, apart):
            handle.zero(PIECE, at)
            marked += PIECE
    handle.shutdown()
    return marked


def crowd(args, work, count, size):
    """Memory and restart of `count` disks in one process; rows."""
    place = Place(args, work)
    place.forget()
    paths = [f"{work}/disk{at}.raw" for at in range(count)]
    for path in paths:
        sparse(path, size)
    last = f"disk{count - 1}"
    server = place.protect("manual", paths, export=last, serving=600)
    with Limit(MEMORY_MAX_MIB) as limit:
        server.argv = limit.around(server.argv)
        with server:
            return crowd_rows(place, server, limit, count, size)


def crowd_rows(place, server, limit, count, size):
    seed_s = timed(lambda: place.cut(wait=True))
    report.say(f"scale: seed complete after {seed_s:.1f} s")
    marked = []
    dirty_s = timed(lambda: marked.extend(make_dirty(place.socket, f"disk{at}", size, 10) for at in range(count)))
    status, dirty = place.status(), limit.figures()
    report.say(f"scale: {sum(marked) / GIB:,.0f} GiB marked in {dirty_s:.0f} s")
    server.kill()
    restart_s = timed(server.start)
    cut_s = timed(lambda: place.cut(wait=True))
    after = limit.figures()
    next_s = timed(lambda: place.cut(wait=True))
    split = lambda found: f"{found['peak']:,.0f} MiB / anon {found['anon']:,.0f}, file {found['file']:,.0f} (of which not written back {found['dirty']:,.0f}) MiB"
    fits = report.verdict(after["peak"] <= MEMORY_MAX_MIB)
    return [
        ("dirty granules", f"{status['dirty_bytes'] // 4096:,} of {count * size // 4096:,} ({status['dirty_bytes'] / (count * size):.1%})", "", ""),
        ("memory when dirty: peak / split at that moment", split(dirty), f"<= {MEMORY_MAX_MIB} MiB", report.verdict(dirty["peak"] <= MEMORY_MAX_MIB)),
        ("the same after restart, cut and ship of it all", split(after), f"<= {MEMORY_MAX_MIB} MiB", fits),
        ("kill -9, then until the last disk is served", f"{restart_s:.2f} s", f"< {RESTART_MAX_S:.0f} s", report.verdict(restart_s < RESTART_MAX_S)),
        ("seed of the empty disks / marking", f"{seed_s:.1f} / {dirty_s:.1f} s", "", ""),
        ("cut and ship of it all / of nothing after that", f"{cut_s:.1f} / {next_s:.1f} s", "", ""),
    ]


def timed(do):
    began = time.monotonic()
    do()
    return time.monotonic() - began


def write_cost(args, work, size, percents, runtime):
    """IOPS and server CPU of depth 1 writes over the first GiB, at each dirty percentage in turn."""
    place = Place(args, work)
    place.forget()
    sparse(place.disk, size)
    os.posix_fallocate(os.open(place.disk, os.O_RDWR), 0, GIB)
    found = {}
    with place.protect("manual") as server:
        place.cut(wait=True)
        # Warm: files allocated, regions in the intent log.
        load.run(place.socket, "--rw=write --bs=1m --iodepth=8", 1)
        for percent in percents:
            # A diff of its own for each, so that none finds granules that an earlier one allocated.
            place.cut(wait=True)
            make_dirty(place.socket, "disk", size, percent, skip=GIB)
            before = server.cpu_seconds()
            run = load.run(place.socket, "--rw=randwrite --bs=4k --iodepth=1", runtime)
            found[size, percent] = (run.iops, (server.cpu_seconds() - before) / max(run.count, 1) * 1e6)
    return found


def costs(args, rounds, runtime, sizes):
    """Rows by disk size, columns by dirty percentage; and how flat it is."""
    percents, rounds_found = (0, 1, 10), []
    for at in range(rounds):
        found = {}
        for size in sizes:
            with report.work() as work:
                found.update(write_cost(args, work, size, percents, runtime))
        rounds_found.append(found)
        report.say(f"scale: round {at + 1} of {rounds}")
    middle = {key: [load.median([found[key][part] for found in rounds_found]) for part in (0, 1)] for key in rounds_found[0]}
    rows = [(f"{size // GIB:,} GiB", *(f"{middle[size, percent][0]:,.0f} / {middle[size, percent][1]:.1f}" for percent in percents)) for size in sizes]
    cpu = [each[1] for each in middle.values()]
    return report.table(("disk", *(f"{percent} % dirty" for percent in percents)), rows), min(cpu) / max(cpu)


def main():
    args = report.arguments(__doc__)
    count, size = report.setting("DISKS", 64), int(report.setting("TIB", 1.0) * TIB) // PIECE * PIECE
    rounds, runtime = report.setting("ROUNDS", 3), report.setting("RUNTIME", 4)
    parts = os.environ.get("PARTS", "crowd cost").split()
    lines = [f"{report.machine()}. Disks are sparse files; made dirty by write-zeroes of 64 MiB every 640 MiB.", ""]
    if "crowd" in parts:
        with report.work() as work:
            lines += [f"{count} disks of {size / TIB:g} TiB, in a memory cgroup of {MEMORY_MAX_MIB} MiB:", "", *report.table(("", "found", "must be", ""), crowd(args, work, count, size)), ""]
    if "cost" in parts:
        sizes = [one for one in (GIB * 2, GIB * 32, size) if one <= size]
        table, flat = costs(args, rounds, runtime, sizes)
        lines += [f"4 KiB random writes at depth 1 over the first GiB, median of {rounds} round(s) of {runtime} s: writes/s / server CPU in us per write.", "",
                  *table, "", f"Least CPU per write / most: {flat:.2f}; flat (>= {FLAT}): {report.verdict(flat >= FLAT)}."]
    report.publish(args, "scale", lines)


main()
