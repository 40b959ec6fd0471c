"""Three disk images through Standin and through backup programs, each as its users run it: first backup, next day,
a cloned machine, restore, full verification; seconds, CPU seconds, peak memory, stored bytes. One after the other,
with the images in the page cache, into directories of one disk. Standin's restore ends when the disk is durable; the
peers' end with it in the page cache, so a row says when theirs would be, too."""

import argparse, json, os, resource, shutil, subprocess, sys, tempfile, time
from collections import namedtuple

from lib.report import machine

Run = namedtuple("Run", "seconds cpu peak_mib")
IMAGES = ["day1", "day2", "clone"]
PASSWORD = "bench"


def run(argv, env={}):
    """Runs a command to its end: wall and CPU seconds and peak memory of it and its children."""
    # What an earlier step left in the page cache is not this one's.
    os.sync()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(argv, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{' '.join(argv)}: exit {process.returncode}\n{error.decode()[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def stored(path):
    """MiB of the files below a directory."""
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(path) for name in names) / (1 << 20)


class Standin:
    name = "standin"

    def __init__(self, program, place):
        self.program, self.place, self.env = program, f"{place}/{self.name}", {}
        self.target = f"dir:{self.place}"

    def init(self):
        pass

    def run(self, *args):
        return run([self.program, *args], self.env)

    def backup(self, image):
        # Day 2 is the same machine: one group. The clone is another one.
        group = "clone" if "clone" in image else "vm"
        link = f"{self.place}-links/{group}/disk.raw"
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if os.path.lexists(link):
            os.remove(link)
        os.symlink(image, link)
        return self.run("import", link, "--target", self.target, "--group", group)

    def restore(self, out):
        return self.run("restore", "vm@latest", "--target", self.target, "--output", f"{out}/disk.raw", "--sparse")

    def verify(self):
        return self.run("store", "scrub", self.target)

    def verify_points(self):
        return self.run("point", "verify", "--all", "--target", self.target)


class Sealed(Standin):
    """As restic and rustic do: nothing leaves the process in the clear."""
    name = "standin encrypted"

    def __init__(self, program, place):
        super().__init__(program, place)
        self.place = f"{place}/sealed"
        self.target, self.env = f"dir:{self.place}", {"STANDIN_KEY_FILE": f"{place}/key"}

    def init(self):
        self.run("store", "init", self.target, "--encrypt", "--no-recovery-key")


class Restic:
    name = "restic"

    def __init__(self, _, place):
        self.place = f"{place}/restic"
        self.env = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": self.place, "RESTIC_CACHE_DIR": f"{place}/restic-cache"}

    def init(self):
        run(["restic", "init", "--repository-version", "2"], self.env)

    def backup(self, image):
        return run(["restic", "backup", "--quiet", image], self.env)

    def restore(self, out):
        day2 = subprocess.run(["restic", "snapshots", "--json"], env={**os.environ, **self.env}, capture_output=True, check=True)
        found = next(s for s in json.loads(day2.stdout) if s["paths"][0].endswith("day2.raw"))
        return run(["restic", "restore", "--quiet", found["id"], "--target", out], self.env)

    def verify(self):
        return run(["restic", "check", "--quiet", "--read-data"], self.env)


class Rustic(Restic):
    name = "rustic"

    def __init__(self, _, place):
        self.place = f"{place}/rustic"
        self.env = {"RUSTIC_PASSWORD": PASSWORD, "RUSTIC_REPOSITORY": self.place, "RUSTIC_CACHE_DIR": f"{place}/rustic-cache",
                    "RUSTIC_NO_PROGRESS": "true", "RUSTIC_LOG_LEVEL": "warn"}
        self.snapshots = []

    def init(self):
        run(["rustic", "init"], self.env)

    def backup(self, image):
        return run(["rustic", "backup", image], self.env)

    def restore(self, out):
        shown = subprocess.run(["rustic", "snapshots", "--json"], env={**os.environ, **self.env}, capture_output=True, check=True)
        groups = json.loads(shown.stdout)
        snapshots = [s for group in groups for s in (group["snapshots"] if isinstance(group, dict) else group[1])]
        found = next(s for s in snapshots if s["paths"][0].endswith("day2.raw"))
        return run(["rustic", "restore", found["id"], out], self.env)

    def verify(self):
        return run(["rustic", "check", "--read-data"], self.env)


class Borg:
    name = "borg"

    def __init__(self, _, place):
        self.place = f"{place}/borg"
        self.env = {"BORG_REPO": self.place, "BORG_CACHE_DIR": f"{place}/borg-cache", "BORG_CONFIG_DIR": f"{place}/borg-config",
                    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def init(self):
        run(["borg", "init", "--encryption", "none"], self.env)

    def backup(self, image):
        name = os.path.basename(image).split(".")[0]
        return run(["borg", "create", f"::{name}", image], self.env)

    def restore(self, out):
        here = os.getcwd()
        os.chdir(out)
        try:
            return run(["borg", "extract", "--sparse", "::day2"], self.env)
        finally:
            os.chdir(here)

    def verify(self):
        return run(["borg", "check", "--verify-data"], self.env)


def warm(image):
    with open(image, "rb") as file:
        while file.read(1 << 22):
            pass


def measure(tool, images):
    tool.init()
    rows, before = {}, 0
    for name in IMAGES:
        image = f"{images}/{name}.raw"
        warm(image)
        rows[name] = tool.backup(image)
        now = stored(tool.place)
        rows[f"{name} MiB"], before = now - before, now
    rows["MiB"] = before
    with tempfile.TemporaryDirectory(dir=os.path.dirname(tool.place)) as out:
        rows["restore"], start = tool.restore(out), time.monotonic()
        restored = next(os.path.join(at, name) for at, _, names in os.walk(out) for name in names if name.endswith(".raw"))
        subprocess.run(["sync", restored], check=True)
        rows["durable"] = rows["restore"]._replace(seconds=rows["restore"].seconds + time.monotonic() - start)
        subprocess.run(["cmp", restored, f"{images}/day2.raw"], check=True)
    rows["verify"] = tool.verify()
    if hasattr(tool, "verify_points"):
        again = tool.verify_points()
        rows["points"] = f"{again.seconds:.1f} s ({again.cpu:.1f} CPU)"
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--standin", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--place", default=tempfile.gettempdir())
    args = parser.parse_args()
    missing = [tool for tool in ("restic", "rustic", "borg") if not shutil.which(tool)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (apt install restic borgbackup; cargo install rustic-rs --no-default-features)")
    all_rows = {}
    for tool in (Standin, Sealed, Restic, Rustic, Borg):
        with tempfile.TemporaryDirectory(prefix="dedup-", dir=args.place) as place:
            print(f"{tool.name} ...", file=sys.stderr, flush=True)
            all_rows[tool.name] = measure(tool(args.standin, place), args.images)
    print(machine())
    steps = [*IMAGES, "restore", "durable", "verify"]
    ours = [rows for name, rows in all_rows.items() if name.startswith("standin")]
    peers = [rows for name, rows in all_rows.items() if not name.startswith("standin")]
    print(f"\n| seconds (CPU; peak MiB) | {' | '.join(all_rows)} | best peer / standin, encrypted |\n|---|" + "---|" * (len(all_rows) + 1))
    for step in steps:
        cells = [f"{r[step].seconds:.1f} ({r[step].cpu:.1f}; {r[step].peak_mib:.0f})" for r in all_rows.values()]
        best = min(rows[step].seconds for rows in peers)
        print(f"| {step} | {' | '.join(cells)} | {' / '.join(f'{best / rows[step].seconds:.2f}' for rows in ours)} |")
    print(f"\nEach point by itself, whole (`point verify --all`): {', encrypted '.join(rows['points'] for rows in ours)}.\n")
    for step in [f"{name} MiB" for name in IMAGES] + ["MiB"]:
        cells = [f"{rows[step]:.0f}" for rows in all_rows.values()]
        best = min(rows[step] for rows in peers)
        print(f"| stored {step} | {' | '.join(cells)} | {' / '.join(f'{rows[step] / best:.2f}' for rows in ours)} of the best |")


main()
