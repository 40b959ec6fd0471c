#!/usr/bin/env bash
# Fuzzes the HTTP API of `standin target serve` with schemathesis, on the page that the server gives of itself
# (/v1/openapi.json), over TLS on the loopback. A test fails on a server error (5xx), on an answer that is not as the page says,
# on a panic in the server's log, and if the server is dead or does not answer after it.
# Takes python3 with venv, curl and jq; the first run installs schemathesis (from PyPI) for this user, later runs need no network.
#
#   schemathesis.sh [ROLE...]    with a token of each of these roles in turn: all (four roles in one token; the default), ship,
#                                restore, retention, admin, none (no token)
#
# EXAMPLES=N bounds the random requests of each call; 50, about a minute for each token, without it. SEED=N repeats a run: the same
# requests, but for names that a server makes up. STANDIN_BINARY=PATH tests another build than target/debug/standin.
set -euo pipefail
cd "$(dirname "$0")/.."
standin=$(realpath "${STANDIN_BINARY:-${CARGO_TARGET_DIR:-target}/debug/standin}")
[ -x "$standin" ] || { echo "schemathesis: there is no $standin; build it (cargo build -p cli), or set STANDIN_BINARY" >&2; exit 1; }
examples=${EXAMPLES:-50}
seed=${SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
[ $# -gt 0 ] || set -- all
for role; do
  case $role in
    all | ship | restore | retention | admin | none) ;;
    *) echo "schemathesis: there is no role $role" >&2; exit 1 ;;
  esac
done

# Another version draws other requests from the same seed, and has other checks: it is pinned, and part of the path.
version=4.32.5
venv=${XDG_CACHE_HOME:-$HOME/.cache}/standin-schemathesis/$version
if [ ! -e "$venv/ready" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
  touch "$venv/ready"
fi

place=$(mktemp -d "${TMPDIR:-/var/tmp}/standin-schemathesis.XXXXXX")
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  [ -z "$server" ] || wait "$server" 2>/dev/null || true
  rm -rf "$place"
}
trap finish EXIT
trap 'exit 1' INT TERM
cd "$place"

# What the page cannot say: what exists here, and what goes together. It stands beside what the page says of bodies.
cat > hooks.py <<'PYTHON'
"""Bodies, queries and names of things that exist: without them nearly every request ends at the first check."""
import base64
import hashlib
import json
import os
import struct

import requests
import schemathesis
from hypothesis import strategies as st

URL, TOKEN, CA = (os.environ[name] for name in ("URL", "SHIP_TOKEN", "STANDIN_CA"))
KNOWN = json.load(open("known.json"))

TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
U32 = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
U64 = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}


def array(items, length=None):
    limits = {} if length is None else {"minItems": length, "maxItems": length}
    return {"type": "array", "items": items, **limits}


def few(items):
    return {**array(items), "minItems": 1}


def either(*schemas):
    return {"anyOf": list(schemas)}


def maybe(schema):
    return either(schema, {"type": "null"})


def some(*names):
    """What exists. What does not is drawn as well: half of all requests break the rules of the page in one place."""
    return {"enum": list(names)}


def record(required, **optional):
    fields = {"properties": {**required, **optional}, "additionalProperties": False}
    return {"type": "object", "required": list(required), **fields}


def chore(what, required, **optional):
    return record({"do": {"const": what}, **required}, **optional)


NAME = {"type": "string", "pattern": r"^[a-z0-9][a-zA-Z0-9._-]{0,63}\Z"}
# Nothing is removed from the vault "still": its objects are there to be read.
VAULT, STILL, GROUP = some("v", "w"), some("still"), some("g", "h")
POINT, IMAGE = some("g@1", "g@2", "g@3", "g@latest"), some(*KNOWN["images"])
LINEAGE = {"type": "string", "pattern": r"^[0-9a-f]{32}\Z"}
# Before a request is sent these become drafts of this moment: one draft would be complete after the first request.
OPEN, COMPLETE = "an-open-draft", "a-complete-draft"
DRAFT = some(OPEN, COMPLETE)
ROLE = {"enum": ["ship", "restore", "retention", "admin"]}
RULES = record({name: U32 for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")})
# A chore at a byte a second is not done today; nobody could tell it from a server that hangs.
RATE = maybe({"type": "integer", "minimum": 1 << 20, "maximum": 2**64 - 1})
SEED_DISK = record({"name": NAME, "cursor_granule": {**U64, "maximum": 300}, "image": IMAGE, "draft": some(COMPLETE)})
DISK, OPEN_DISK = ({**array(TEXT, 2), "prefixItems": [NAME, {"const": draft}]} for draft in (COMPLETE, OPEN))
SPAN = {**array(U64, 2), "prefixItems": [{**U64, "maximum": 127}, {**U64, "minimum": 128, "maximum": 256}]}


def slot(number):
    """One way to open a store, of a key, as docs/formats/keys.md has it."""
    return struct.pack("<IBH", number, 2, 0) + bytes(8 + 16 + 12 + 48)


KEYS, WAY = (base64.b64encode(it).decode() for it in (bytes(16) + struct.pack("<II", 2, 1) + slot(1), slot(2)))

LIST, OBJECTS, OBJECT = "/v1/vaults/{vault}/list", "/v1/vaults/{vault}/objects/", "/v1/vaults/{vault}/objects/{name}"

BODIES = {
    ("post", "/v1/vaults"): record({"name": NAME}, quota_bytes=maybe(U64), keys=either(some(KEYS), maybe(TEXT))),
    ("post", "/v1/vaults/{vault}/keys"): record({"key": either(some(WAY), TEXT)}),
    # Small quotas would keep every later request from getting anywhere.
    ("put", "/v1/vaults/{vault}/quota"): record({"quota_bytes": maybe({**U64, "minimum": 1 << 40})}),
    ("post", "/v1/vaults/{vault}/chores"): {"oneOf": [
        chore("remove", {"points": array(POINT), "delay_s": U64}),
        chore("bring-back", {"point": POINT}),
        chore("drop-seed", {"group": GROUP}),
        chore("hold", {"point": POINT}, reason=maybe(TEXT)),
        chore("lock", {"point": POINT, "until_unix_ns": U64}),
        chore("apply", {"rules": RULES, "delay_s": U64}, group=maybe(GROUP)),
        chore("collect", {"dry_run": FLAG, "quarantine_s": U64, "compact_below": {"type": "number"}}, rate=RATE),
        chore("scrub", {"deep": FLAG, "heal": FLAG}, rate=RATE),
    ]},
    ("post", "/v1/tokens"): record(
        {"name": TEXT, "roles": array(ROLE)},
        vaults=array(VAULT), groups=array(GROUP), expires_unix_ns=maybe(U64), certificate=maybe(TEXT),
    ),
    ("post", "/v1/vaults/{vault}/drafts"): {"oneOf": [
        record({"empty": either(U64, {"type": "integer", "minimum": 0, "maximum": 2**61, "multipleOf": 512})}),
        record({"image": IMAGE}),
    ]},
    ("post", "/v1/vaults/{vault}/drafts/{draft}/zero"): either(
        record({"ranges": array(SPAN)}), record({"ranges": array(array(U64, 2))}),
    ),
    ("post", "/v1/vaults/{vault}/points"): record({
        "group": GROUP, "lineage": LINEAGE, "generation": U64, "at_unix_ns": either({"const": KNOWN["now"]}, {**U64, "maximum": KNOWN["now"]}),
        "labels": {"type": "object", "additionalProperties": TEXT}, "application": FLAG, "disks": either(few(DISK), few(OPEN_DISK)),
    }),
    ("put", "/v1/vaults/{vault}/seeds/{group}"): record({"lineage": LINEAGE, "generation": U64, "disks": few(SEED_DISK)}),
}
# These stand alone: see the comments on RATE, and on small quotas.
OURS = ("/v1/vaults/{vault}/chores", "/v1/vaults/{vault}/quota")
BYTES = ("/v1/vaults/{vault}/drafts/{draft}/ask", "/v1/vaults/{vault}/drafts/{draft}/regions")
PARTS = {"vault": VAULT, "group": GROUP, "draft": DRAFT, "token": some(KNOWN["token"])}
BINARY = {"type": "string", "format": "binary"}
RANGE = {"type": "string", "pattern": r"^bytes=[0-9]{1,2}-[0-9]{3,6}\Z"}
BESIDE = {
    "/v1/audit": [("query", "after", False, U64)],
    LIST: [("query", "folder", True, some("catalog", "keys", *KNOWN["folders"]))],
    "/v1/vaults/{vault}/drafts": [("query", "ship", False, LINEAGE), ("query", "number", False, U64)],
    "/v1/vaults/{vault}/drafts/{draft}/finish": [("query", "root", False, {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"})],
    "/v1/vaults/{vault}/groups/{group}/points": [("query", "lineage", False, LINEAGE)],
}


def beside(path):
    return [("header", "Range", True, RANGE)] if path.startswith(OBJECTS) else BESIDE.get(path, [])


def in_path(path):
    names = KNOWN["catalog"] if "/objects/catalog/" in path else ["x-0000000000000001.copy"]
    parts = {**PARTS, "name": some(*names)}
    if path.startswith(OBJECTS) or path == LIST:
        parts["vault"] = STILL
    if path.endswith("/keys"):
        parts["vault"] = some("v", "sealed")
    return parts


def parameter(place, name, required, schema):
    return {"in": place, "name": name, "required": required, "schema": schema}


def without_pairs(page):
    """This version takes what the page says of pairs in answers for a mistake of the page: it makes an older dialect of it."""
    for one in page.values() if isinstance(page, dict) else page:
        if isinstance(one, (dict, list)):
            without_pairs(one)
    if isinstance(page, dict):
        page.pop("prefixItems", None)


@schemathesis.hook
def before_load_schema(context, raw_schema):
    paths = raw_schema["paths"]
    without_pairs(raw_schema)
    # A parameter of OpenAPI has no slashes in it: they are escaped, and the server knows no escaped name of an object.
    if OBJECT in paths:
        apart = paths[OBJECTS + "{kind}/{number}/{name}"] = paths.pop(OBJECT)
        others = [one for one in apart["get"]["parameters"] if one["name"] != "name"]
        known = zip(*(name.split("/") for name in KNOWN["objects"]))
        named = zip(("kind", "number", "name"), known)
        apart["get"]["parameters"] = others + [parameter("path", name, True, some(*sorted(set(of)))) for name, of in named]
    for path, calls in paths.items():
        for method, call in calls.items():
            given = call.setdefault("parameters", [])
            for place, name, required, schema in beside(path):
                if name not in (one["name"] for one in given):
                    given.append(parameter(place, name, required, schema))
            schemas = {name: schema for _, name, _, schema in beside(path)} | in_path(path)
            for one in given:
                # What the page says of a shape is kept.
                if one["schema"] in (TEXT, {"type": "integer"}):
                    one["schema"] = schemas[one["name"]]
            ours = BINARY if path in BYTES else BODIES.get((method, path))
            if ours is None:
                continue
            body = call.setdefault("requestBody", {"required": True, "content": {}})
            media = "application/octet-stream" if path in BYTES else "application/json"
            theirs = body["content"].setdefault(media, {"schema": ours})
            if path in OURS:
                theirs["schema"] = ours
            elif theirs["schema"] != ours:
                theirs["schema"] = either(theirs["schema"], ours)


def little(value, length):
    return value.to_bytes(length, "little")


def entry(granule, fingerprint):
    return little(granule, 8) + fingerprint


def frame(encoding, entries, stored):
    return bytes([encoding, len(entries), 0, 0]) + little(len(stored), 4) + b"".join(entries) + stored


def as_it_should_be(chunks):
    """A frame as docs/formats/wire.md has it, of (granule, content): not packed."""
    entries = [entry(granule, hashlib.sha256(content).digest()) for granule, content in chunks]
    return frame(0, entries, b"".join(content for _, content in chunks))


# Most draws lie in the image of 256 granules.
GRANULE = st.one_of(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**64 - 1))
CONTENT = st.integers(1, 255).map(lambda byte: bytes([byte]) * 4096)
PRINT = st.one_of(CONTENT.map(lambda content: hashlib.sha256(content).digest()), st.just(bytes(32)), st.binary(min_size=32, max_size=32))
ENTRIES = st.lists(st.builds(entry, GRANULE, PRINT), max_size=33)
# All bodies fit one record of TLS (16 KiB): where a longer one is refused the server closes an HTTP/1.1 connection before it has
# read all of it, and the answer is lost.
RIGHT = st.lists(st.tuples(st.integers(0, 255), CONTENT), min_size=1, max_size=3).map(as_it_should_be)
SMALL = st.tuples(st.integers(0, 255), CONTENT).map(lambda chunk: as_it_should_be([chunk]))
STORED = st.one_of(st.binary(max_size=200), st.integers(1, 2).map(lambda chunks: b"standin!" * 512 * chunks))
WRONG = st.builds(frame, st.integers(0, 5), ENTRIES, STORED)
# One byte after the head of it is another one: what it holds is not what it says.
HARMED = st.builds(
    lambda right, at, by: right[: 8 + at % (len(right) - 8)] + bytes([by]) + right[9 + at % (len(right) - 8) :],
    RIGHT, st.integers(0, 2**20), st.integers(0, 255),
)
FRAMES = st.one_of(RIGHT, st.lists(SMALL, max_size=3).map(b"".join), st.tuples(SMALL, WRONG).map(b"".join))
# An ask gets frames, too, and the other way round.
BODY = st.one_of(ENTRIES.map(b"".join), FRAMES, HARMED, st.binary(max_size=400))
schemathesis.openapi.media_type("application/octet-stream", BODY)


DRAFTS = {}


def draft(vault, complete):
    """A draft serves a few requests: a token has 512 at most."""
    name, uses = DRAFTS.get((vault, complete), (None, 0))
    if uses == 0:
        name, uses = made(vault, complete), 12
    DRAFTS[vault, complete] = name, uses - 1
    return name


def made(vault, complete):
    def post(below, **more):
        head = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.post(f"{URL}/v1/vaults/{vault}/drafts{below}", headers=head, verify=CA, timeout=20, **more)
        # Without the role, or with too many, requests go on with a name that nobody has.
        return answer.json() if answer.status_code == 200 else {}

    name = post("", json={"empty": 1 << 20}).get("draft", "none")
    if complete:
        post(f"/{name}/finish")
    return name


def with_drafts(value, vault):
    if value in (OPEN, COMPLETE):
        return draft(vault, value == COMPLETE)
    if isinstance(value, list):
        return [with_drafts(one, vault) for one in value]
    if isinstance(value, dict):
        return {name: with_drafts(one, vault) for name, one in value.items()}
    return value


@schemathesis.hook
def filter_path_parameters(context, path_parameters):
    # This version leaves a `?` in what is drawn for a list as it is: another call is asked for then.
    return not any(mark in str(value) for value in (path_parameters or {}).values() for mark in "?#")


@schemathesis.hook
def before_call(context, case, kwargs):
    vault = (case.path_parameters or {}).get("vault")
    vault = vault if vault in ("v", "w") else "v"
    for part in ("path_parameters", "body"):
        value = getattr(case, part)
        if isinstance(value, (dict, list)) and any(word in json.dumps(value) for word in (OPEN, COMPLETE)):
            setattr(case, part, with_drafts(value, vault))
            if context.operation.path.endswith(("/finish", "/points", "/seeds/{group}", "/drafts/{draft}")):
                # It is not what it was after this.
                DRAFTS.clear()
PYTHON
cat > schemathesis.toml <<'TOML'
hooks = "hooks.py"

# Names from answers in other requests: they are another run's, and the fuzzer would take its own token back with them.
[phases.coverage]
extra-data-sources.responses = false

[phases.fuzzing]
extra-data-sources.responses = false

# Of the statuses from 500 on, 507 is an answer as others are: a vault beyond its quota.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "507"]
TOML

# Not asked for yet:
# - positive_data_acceptance: the page does not say which texts are names, lineages, ranges, and how long things may be;
# - negative_data_rejection: so it takes a number in a path for a wrong name, and a draft of ours for one that is none;
# - response_headers_conformance: the page says nothing of headers.
checks=not_a_server_error,content_type_conformance,status_code_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth

token() {
  (umask 077 && "$standin" token create --state state --name "$1" "${@:2}" > "$1" 2> token.log)
}
ask() {
  curl --silent --show-error --fail-with-body --max-time 20 --cacert "$STANDIN_CA" --oauth2-bearer "$(cat "${as:-all}")" "$@"
}
fail() {
  echo "schemathesis: with $role, SEED=$seed: $*" >&2
  tail -n 40 "$place/$role/server.log" >&2
  exit 1
}

# A server of its own for each: what one has left behind is not what another one meets.
begin() {
  mkdir "$place/$role"
  cd "$place/$role"
  for one in ship restore retention admin; do token "$one" --role "$one"; done
  token all --role ship --role restore --role retention --role admin
  # This one is there to be taken back.
  token victim --role restore
  local port=$((20000 + RANDOM % 20000))
  export URL=https://127.0.0.1:$port STANDIN_CA=$PWD/state/server.pem
  RUST_BACKTRACE=1 "$standin" target serve --store dir:place --listen "127.0.0.1:$port" --state state > server.log 2>&1 &
  server=$!
  until ask "$URL/readyz" > command.log 2>&1; do
    kill -0 "$server" 2>/dev/null || fail "the server does not start"
    sleep 0.1
  done
  # Half a MiB, two points: enough that there is something to read, to remove and to collect.
  head -c 500000 /dev/urandom > disk.raw
  truncate -s 1M disk.raw
  local vault
  for vault in v w still; do ask "$URL/v1/vaults" --json "{\"name\": \"$vault\"}" > command.log; done
  "$standin" vault create sealed --server "$URL" --encrypt --no-recovery-key --key-file vault.key --token-file all > command.log
  for _ in 1 2; do
    for vault in v still; do "$standin" import disk.raw --target "$URL/$vault" --group g --token-file ship > command.log; done
    head -c 9000 /dev/urandom | dd of=disk.raw conv=notrunc status=none
  done
  local points catalog tokens objects
  points=$(ask "$URL/v1/vaults/v/groups/g/points")
  catalog=$(ask "$URL/v1/vaults/still/list?folder=catalog")
  tokens=$(ask "$URL/v1/tokens")
  objects=$(cd place/vaults/still && find containers trees -type f)
  jq -n --argjson points "$points" --argjson catalog "$catalog" --argjson tokens "$tokens" --arg objects "$objects" '{
    now: $points.points[0].at_unix_ns, images: [$points.points[].disks[][1]], catalog: [$catalog.objects[][0]],
    token: ($tokens.tokens[] | select(.name == "victim") | .id),
    objects: ($objects | split("\n")), folders: ($objects | split("\n") | map(sub("/[^/]*$"; "")) | unique)}' > known.json
  cp ../hooks.py ../schemathesis.toml .
}

# Alive means: it answers who may ask and who need not, it can still be written to and read, and it ends when it is told to.
is_well() {
  kill -0 "$server" 2>/dev/null || fail "the server is dead"
  # The others may have been taken back, or have come to their limits.
  token after --role admin --role ship --role restore
  local one
  for one in healthz readyz v1/openapi.json; do
    curl --silent --fail --max-time 20 --cacert "$STANDIN_CA" "$URL/$one" > command.log || fail "/$one is not answered"
  done
  as=after ask "$URL/metrics" > command.log || fail "/metrics is not answered"
  as=after ask "$URL/v1/audit" | jq -e .whole > command.log || fail "the audit log is not whole"
  # It may have been given a small one.
  as=after ask -X PUT "$URL/v1/vaults/v/quota" --json '{"quota_bytes": null}' > command.log || fail "a quota cannot be changed"
  "$standin" import disk.raw --target "$URL/v" --group after --token-file after > command.log 2>&1 || fail "nothing can be shipped any more: $(cat command.log)"
  "$standin" restore after@1 --target "$URL/v" --token-file after --output back.raw > command.log 2>&1 || fail "nothing can be restored any more: $(cat command.log)"
  cmp disk.raw back.raw || fail "what is restored is not what was shipped"
  kill "$server"
  wait "$server" || fail "the server does not end well"
  server=
  ! grep -n 'panicked at' server.log || fail "the server has panicked"
}

for role; do
  echo "schemathesis: with $role, SEED=$seed EXAMPLES=$examples"
  begin
  shown=()
  # They are thrown away with their server: arguments may show them.
  SHIP_TOKEN=$(cat "$([ -s "$role" ] && echo "$role" || echo all)")
  export SHIP_TOKEN
  [ "$role" = none ] || shown=(--header "Authorization: Bearer $SHIP_TOKEN")
  "$venv/bin/schemathesis" --config-file schemathesis.toml run "$URL/v1/openapi.json" --tls-verify "$STANDIN_CA" "${shown[@]}" \
    --seed "$seed" --max-examples "$examples" --phases coverage,fuzzing,stateful --checks "$checks" --request-timeout 20 \
    --generation-database none --warnings off --no-color --continue-on-failure ${REPORT:+--report ndjson --report-ndjson-path "$REPORT"} || fail "see above"
  is_well
done
echo "schemathesis: nothing was found"
