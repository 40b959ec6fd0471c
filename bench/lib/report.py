"""Arguments that all measurements share, and the page they are written into."""

import argparse, os, sys, tempfile, time

PAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


def arguments(about):
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--target", required=True, help="cargo's target directory")
    parser.add_argument("--write", action="store_true", help="put the result into bench/README.md")
    args = parser.parse_args()
    release = f"{args.target}/release"
    args.standin, examples = os.environ.get("STANDIN_BINARY") or f"{release}/standin", f"{release}/examples"
    args.plain, args.memory, args.writes = f"{examples}/plain_export", f"{examples}/serve_memory", f"{examples}/time_writes"
    return args


def setting(name, fallback):
    """A number from the environment: how thorough this run shall be."""
    return type(fallback)(os.environ.get(name, fallback))


def machine():
    cpu = next(line.split(": ")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({cpu}), Linux {os.uname().release}"


def table(head, rows):
    line = lambda cells: f"| {' | '.join(str(cell) for cell in cells)} |"
    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def verdict(holds):
    return "pass" if holds else "**FAIL**"


def say(what):
    print(what, file=sys.stderr, flush=True)


def work(prefix="standin-bench-"):
    return tempfile.TemporaryDirectory(prefix=prefix)


def publish(args, name, lines):
    """Prints the result; with --write it replaces what stands between NAME's marks on the page."""
    text = "\n".join(lines)
    print(text)
    if not args.write:
        return
    page = open(PAGE).read()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if begin not in page:
        sys.exit(f"{PAGE} has no place for `{name}`")
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    open(PAGE, "w").write(f"{before}{begin}\n{text}\n\n{end}{after}")
