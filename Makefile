# Every target works in a fresh clone on Debian, as root, without a terminal.
.PHONY: demo test must-show bench bench-cost bench-cut-pause bench-rpo bench-scale bench-instructions fuzz soak images

# The whole story on real data, with figures: protect, cut, ship, verify, restore, kill -9.
demo:
	bash tests/setup.sh build
	cargo build --release -p cli
	"$${CARGO_TARGET_DIR:-target}"/release/standin demo

# Everything that must be green: format, lints, unit and model tests, journeys with real peers and
# real guests, doc tests, fuzzing, simulation with fresh seeds. Installs what it needs.
test:
	bash tests/setup.sh all
	bash tests/run.sh

# The long forms of the journeys (1,000 cuts, 100 kills, 8 GiB seed): about an hour.
must-show: images
	bash tests/setup.sh all
	bash tests/must-show.sh

# bench/README.md's table: ours beside qemu-nbd and nbdkit on this machine.
bench: images
	bash tests/setup.sh all
	bash bench/first-figures.sh --write

# Other parts of that page, each by itself; bench/README.md says what each shows and how long it takes.
bench-cost:
	bash tests/setup.sh all
	bash bench/cost.sh --write

bench-cut-pause:
	bash tests/setup.sh all
	bash bench/cut_pause.sh --write

bench-rpo:
	bash tests/setup.sh all
	bash bench/rpo.sh --write

bench-scale:
	bash tests/setup.sh all
	bash bench/scale.sh --write

# Instructions per write against the committed baseline.
bench-instructions:
	bash tests/setup.sh all
	bash bench/instructions.sh

# Longer fuzzing of every parser of foreign bytes; SECONDS_EACH=60 by default.
fuzz:
	bash tests/setup.sh all
	bash fuzz/run.sh "$${SECONDS_EACH:-60}"

# Guests, a cut each second, and one random kill or fault after the other: make soak HOURS=8. Writes
# target/soak/report.txt and .json; takes about 8 GiB of $TMPDIR for each hour. SEED= replays.
soak:
	bash tests/setup.sh all
	bash tests/soak.sh "$${HOURS:-1}"

# Three realistic 8 GiB disk images in $STANDIN_IMAGES (default ~/.cache/standin-images).
images:
	bash tests/setup.sh all
	bash tests/lab/images.sh "$${STANDIN_IMAGES:-$$HOME/.cache/standin-images}"
