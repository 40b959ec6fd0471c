"""The measurement behind bench/cost.sh. Each server is started, measured and stopped before the next
one, round after round, so that a noisy minute of the machine hits all of them alike; a cell is the
median of its rounds, and a ratio is the median of the rounds' ratios."""

import os, re

from lib import load, report
from lib.servers import Place

PROTECTED, CUTTING, PLAIN = "**protected, no cuts**", "**protected, cut every 1 s, shipping**", "our plain export"
NULL, MEMORY, QEMU, NBDKIT = "nbdkit null", "our export over memory", "qemu-nbd", "nbdkit file"
QUORUM, MIRROR, FLEECING = "QEMU quorum", "QEMU mirror, write-blocking", "QEMU copy-before-write"

# Servers by their column. `True`: started for each cell anew, since its cost falls as it runs.
SERVERS = {
    PROTECTED: (lambda place: place.protect("manual"), False),
    CUTTING: (lambda place: place.protect("1s"), False),
    PLAIN: (Place.plain, False),
    MEMORY: (Place.memory, False),
    NULL: (lambda place: place.nbdkit("null", "1G"), False),
    QEMU: (Place.qemu_nbd, False),
    NBDKIT: (lambda place: place.nbdkit("file", place.disk), False),
    QUORUM: (Place.quorum, False),
    MIRROR: (Place.mirror, False),
    FLEECING: (Place.fleecing, True),
}

FLUSH = "a flush per 16 writes"
SMALL = [(f"4 KiB {name}, depth {depth}{flush}", f"{rw} --bs=4k --iodepth={depth}{sync}")
         for name, rw in (("random write", "--rw=randwrite"), ("mixed 70/30", "--rw=randrw --rwmixread=70"))
         for depth in (1, 32)
         for flush, sync in (("", ""), (f", {FLUSH}", " --fsync=16"))]
LARGE = [("1 MiB sequential write, depth 8", "--rw=write --bs=1m --iodepth=8"),
         (f"1 MiB sequential write, depth 8, {FLUSH}", "--rw=write --bs=1m --iodepth=8 --fsync=16"),
         ("1 MiB sequential read, depth 8", "--rw=read --bs=1m --iodepth=8")]


def measure(place, names, cases, runtime, found):
    """One round: every server, every case."""
    place.fresh()
    for name in names:
        make, anew = SERVERS[name]
        for group in ([case] for case in cases) if anew else (cases,):
            place.forget()
            os.sync()
            with make(place) as server:
                if "protected" in name:
                    place.cut(wait=True)
                for case, arguments in group:
                    before = server.cpu_seconds()
                    run = load.run(place.socket, arguments, runtime)
                    cpu = (server.cpu_seconds() - before) / max(run.count, 1) * 1e6
                    found.setdefault((name, case), []).append((run, cpu))
        report.say(f"cost: {name}")


def cell(case, runs):
    p99, cpu = load.median([run.p99_us for run, _ in runs]), load.median([cpu for _, cpu in runs])
    if "MiB" in case:
        speed = f"{load.median([run.mbs for run, _ in runs]):,.0f} MB/s"
    else:
        speed = f"{load.median([run.iops for run, _ in runs]):,.0f}"
    return f"{speed} / {p99:,.0f} / {cpu:,.0f}"


# What must be shown: name, our column, those it is compared with (the best of them counts), least
# ratio, goal. The least ratio of qemu-nbd and nbdkit depends on the depth.
CLAIMS = [
    ("protected / plain", PROTECTED, (PLAIN,), lambda case: 0.9, None),
    ("with cuts and ship / plain", CUTTING, (PLAIN,), lambda case: 0.8, None),
    ("plain / better of qemu-nbd and nbdkit", PLAIN, (QEMU, NBDKIT), lambda case: 1.2 if "depth 32" in case else 1.0, None),
    ("protected / quorum", PROTECTED, (QUORUM,), lambda case: 1.0, 1.5),
    ("protected / mirror", PROTECTED, (MIRROR,), lambda case: 1.0, 1.5),
    ("protected / copy-before-write", PROTECTED, (FLEECING,), lambda case: 1.0, 3.0),
]


def ratio(found, ours, others, case):
    """Speed against the best of the others, and 99th percentile against the least of theirs."""
    others = [name for name in others if (name, case) in found]
    if not others or (ours, case) not in found:
        return None
    rounds = range(len(found[ours, case]))
    speed, wait = [], []
    for at in rounds:
        mine, theirs = found[ours, case][at][0], [found[name, case][at][0] for name in others]
        speed.append(mine.mbs / max(run.mbs for run in theirs))
        wait.append(mine.p99_us / max(min(run.p99_us for run in theirs), 0.001))
    return load.median(speed), load.median(wait)


def judge(found, cases):
    rows = []
    for claim, ours, others, least, goal in CLAIMS:
        for case, _ in cases:
            both = ratio(found, ours, others, case)
            if both is None:
                continue
            speed, wait = both
            reached = "" if goal is None else f"{goal} {'reached' if speed >= goal else 'missed'}"
            rows.append((claim, case, f"{speed:.2f}", f"{wait:.2f}", f">= {least(case)}",
                         report.verdict(speed >= least(case)), reached))
    return report.table(("ratio", "load", "throughput", "99th percentile", "must be", "", "goal"), rows)


def main():
    args = report.arguments(__doc__)
    rounds, runtime = report.setting("ROUNDS", 3), report.setting("RUNTIME", 4)
    direct = os.environ.get("CACHE") == "none"
    names = [name for name in SERVERS if re.search(os.environ.get("SERVERS", "."), name)]
    if direct:
        # nbdkit's file plugin has no way past the page cache; who serves no file has none to pass.
        names = [name for name in names if name not in (NBDKIT, NULL, MEMORY)]
    cases = [case for case in SMALL + LARGE if re.search(os.environ.get("CASES", "."), case[0])]
    found = {}
    with report.work() as work:
        place = Place(args, work)
        for at in range(rounds):
            # Another one goes first each round: the first meets a disk that was only just written.
            first = at * len(names) // rounds
            measure(place, names[first:] + names[:first], cases, runtime, found)
            report.say(f"cost: round {at + 1} of {rounds}")
    rows = [(case, *(cell(case, found[name, case]) for name in names)) for case, _ in cases]
    where = "past the page cache (`--direct`; QEMU's `cache=none`)" if direct else "in the page cache"
    report.publish(args, "cost-direct" if direct else "cost", [
        f"{report.machine()}; median of {rounds} round(s) of {runtime} s each. fio's nbd engine, Unix socket, 1 GiB disk {where}.",
        "", "Requests (or MB) a second / 99th percentile in us / server CPU in us per request.", "",
        *report.table(("", *names), rows), "", "Ratios, each against the best of what it is compared with, in the same round:", "",
        *judge(found, cases)])


main()
