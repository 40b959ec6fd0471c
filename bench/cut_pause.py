"""The measurement behind bench/cut_pause.sh.

A client times every write (tests/examples/time_writes.rs). For each cut: the slowest of the writes that
were in flight at it, and the longest time in which no write was answered. The
same is taken of the moments half way between two cuts: what the machine does to writes without a cut,
with more runnable threads than cores. The difference of the two is the cut's. What our export does to the same
writes without any protection is the last row. With several disks the
time without an answer is that of all of them together: it understates what one of them waits."""

import bisect, subprocess, sys, time
from collections import namedtuple

from lib import load, report
from lib.servers import Place

# The cut's moment lies within the pause; this much beyond it on both sides.
MARGIN_NS = 100_000
# How long the plain export is measured.
PLAIN_SECONDS = 20
Seen = namedtuple("Seen", "worst_us gap_us")


class Writes:
    """Writes by the time of their answer."""

    def __init__(self, text):
        pairs = (line.split() for line in text.splitlines())
        self.writes = sorted((int(at) + int(took), int(took)) for at, took in pairs)
        self.answers = [answer for answer, _ in self.writes]
        self.longest = max(took for _, took in self.writes)

    def around(self, moment, pause_us):
        """What writes saw that were in flight within `pause_us` of `moment`."""
        margin = MARGIN_NS + pause_us * 1000
        first = bisect.bisect_left(self.answers, moment - margin)
        last = bisect.bisect_right(self.answers, moment + margin + self.longest)
        took = [took for answer, took in self.writes[first:last] if answer - took <= moment + margin]
        # From the last answer before to the first one after.
        answers = self.answers[max(first - 1, 0):bisect.bisect_right(self.answers, moment + margin) + 1]
        gaps = [later - earlier for earlier, later in zip(answers, answers[1:])]
        return Seen(max(took) / 1000, max(gaps) / 1000) if took and gaps else None


def measure(args, work, disks, cuts, apart):
    """Cuts `apart` seconds apart under load; (moments and pauses of the cuts, cuts refused, the writes, the same
    of a plain export)."""
    place = Place(args, work)
    place.forget()
    paths = [f"{work}/disk{at}.raw" for at in range(disks)]
    for path in paths:
        subprocess.run(["fallocate", "-l", f"{1024 // disks}M", path], check=True)
    argv = lambda seconds: [args.writes, str(seconds), str(max(16 // disks, 1)), place.socket, *(f"disk{at}" for at in range(disks))]
    with place.plain(paths, export="disk0"):
        plain = Writes(subprocess.run(argv(PLAIN_SECONDS), stdout=subprocess.PIPE, text=True, check=True).stdout)
    with place.protect("manual", paths, export="disk0"):
        place.cut(wait=True)
        client = subprocess.Popen(argv(int(cuts * (apart + 0.1)) + 3), stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        made, refused = [], 0
        while len(made) < cuts and client.poll() is None:
            cut = place.try_cut()
            if cut:
                made.append((cut["at_unix_ns"], cut["pause_us"]))
            refused += cut is None
            time.sleep(apart)
        writes = Writes(client.communicate()[0])
        if client.returncode != 0:
            sys.exit("cut_pause: the client failed")
    return made, refused, writes, plain


def row(name, values):
    return (name, *(f"{value:,.0f}" for value in (load.median(values), load.percentile(values, 99), max(values))))


def judge(disks, limit_us, made, refused, writes, plain):
    between = [((a + b) // 2, pause) for (a, pause), (b, _) in zip(made, made[1:])]
    at_cuts = [seen for seen in (writes.around(*cut) for cut in made) if seen]
    without = [seen for seen in (writes.around(*moment) for moment in between) if seen]
    latencies = [took / 1000 for _, took in writes.writes]
    rows = [row("pause that the splitter reports", [pause for _, pause in made]),
            row("longest time without an answer, in a cut", [seen.gap_us for seen in at_cuts]),
            row("the same between cuts", [seen.gap_us for seen in without]),
            row("slowest write in flight in a cut", [seen.worst_us for seen in at_cuts]),
            row("the same between cuts", [seen.worst_us for seen in without]),
            row("all writes", latencies),
            row("all writes, plain export", [took / 1000 for _, took in plain.writes])]
    seconds = (writes.answers[-1] - writes.answers[0]) / 1e9
    p99 = lambda values: load.percentile(values, 99)
    worst, calm_worst = p99([seen.worst_us for seen in at_cuts]), p99([seen.worst_us for seen in without])
    silent, calm_silent = p99([seen.gap_us for seen in at_cuts]), p99([seen.gap_us for seen in without])
    reported = p99([pause for _, pause in made])
    under = lambda value: report.verdict(value < limit_us)
    return [f"{disks} disk(s), {len(made)} cuts ({refused} more gave way to a slow write), {len(latencies) / seconds:,.0f} writes/s:", "",
            *report.table(("us", "median", "99 %", "longest"), rows), "",
            f"99 % under {limit_us / 1000:.0f} ms: reported pause: {under(reported)}; no answer: {under(silent)} "
            f"(between cuts: {under(calm_silent)}); slowest write: {under(worst)} (between cuts: {under(calm_worst)}).", ""]


def main():
    args = report.arguments(__doc__)
    cuts, apart = report.setting("CUTS", 200), report.setting("APART", 0.25)
    lines = [f"{report.machine()}. 4 KiB random writes from 16 connections, one in flight on each; cuts {apart} s apart, shipped meanwhile.", ""]
    for disks, limit_us in ((1, 1000), (16, 5000)):
        with report.work() as work:
            lines += judge(disks, limit_us, *measure(args, work, disks, cuts, apart))
        report.say(f"cut_pause: {disks} disk(s)")
    report.publish(args, "cut_pause", lines)


main()
