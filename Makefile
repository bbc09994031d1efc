# What one does with a checkout of nodepass.
#
#   make            build the program: target/release/nodepass
#   make demo       see it take a web page through a tunnel
#   make check      all that must pass before a change goes in
#   make test       only the tests; NP_TEST_BINARY=/path/to/nodepass tests another program
#   make fuzz-smoke only the decoders under damaged input, for a moment
#   make fuzz       the same under all that libFuzzer thinks of; TARGET=name for one of them
#                   (fuzz/src/bin), SECONDS=600 for longer than a minute each, INPUT=file for that
#                   alone
#   make package-test  only those of the packages for OpenWrt, systemd and Docker
#   make static-test   only that of one static file in an empty root
#   make static     one file that needs no libraries; TARGET=triple for another machine,
#                   PROFILE=router or minimal for less of it
#   make alone      see that file resolve names and forward from an empty root; with TARGET,
#                   on an emulator
#   make size       how large that file is in each profile
#   make licenses   the texts that have to go along with a program that is handed on
#   make man        rewrite the generated parts of manual and documents
#   make bench      compare with socat, haproxy and rathole; BENCH_OPTIONS='--rounds 2', see --help
#   make bench-link compare with rathole over a link of 50 ms; root only; BENCH_OPTIONS='--loss 1'
#   make bench-api  the master under load; BENCH_OPTIONS='--seconds 30 --rate 1000 --instances 100'
#   make install    into DESTDIR and PREFIX: program, manual, unit of systemd
#   make clean      remove what was built
#
# All that build install the Debian packages they need when something is missing; check and test
# also fetch what is in tests/peers/requirements.txt, into the folder of the build.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
UNITS ?= $(PREFIX)/lib/systemd/system
PROFILE ?= full
BENCH_OPTIONS ?=
SECONDS ?= 60
# Most tests wait most of the time: for a time limit of the program, for a program to start.
TEST_THREADS ?= 4

BUILD = $(or $(CARGO_TARGET_DIR),target)
BINARY = $(BUILD)/release/nodepass
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# What a build takes: all behind gcc is for BoringSSL (feature quic).
TOOLS = cargo gcc g++ cmake git libclang
# Where the tests look for it.
PYTHON = $(BUILD)/python
MANUAL = man/nodepass.1
NEED = scripts/need.sh
SCRIPTS = $(wildcard scripts/*.sh openwrt/*.sh openwrt/files/*.init packaging/*.sh)
FUZZ = $(abspath $(BUILD))/fuzz
CARGO_FUZZ = $(FUZZ)/bin/cargo-fuzz
# Where the decoders leave little undone at 20 kB, and none takes a second or half a gigabyte.
FUZZ_OPTIONS = -max_len=20000 -timeout=5 -rss_limit_mb=512 -print_final_stats=1
LINK_HELPER = $(abspath $(BUILD))/bench/delaylink

.PHONY: all demo check lint features package-test static-test test fuzz fuzz-smoke static alone size licenses man bench bench-api bench-link install clean

all:
	@$(NEED) $(TOOLS)
	$(CARGO) build --release

demo:
	@$(NEED) $(TOOLS) curl python3
	$(CARGO) build --release
	scripts/demo.sh $(BINARY)

# The tests come last, so that their result is what one sees.
check: lint features package-test static-test test

lint:
	@$(NEED) $(TOOLS) curl shellcheck $(if $(wildcard $(MANUAL)),mandoc)
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps
	$(if $(wildcard $(MANUAL)),mandoc -T lint -W warning $(MANUAL))
	shellcheck $(SCRIPTS)

# What can be left out, alone and as the profiles have it; all of it is linted above.
features:
	@$(NEED) $(TOOLS)
	for features in '' tls master websocket http2 quic master,tls tls,websocket \
	    http2,master,tls,websocket http2,quic,tls,websocket; do \
	    echo "features: $${features:-none}"; \
	    $(CARGO) clippy --all-targets --no-default-features --features "$$features" \
	        -- -D warnings || exit 1; \
	done

# Each URL that a package yields is checked by the program.
package-test:
	@$(NEED) $(TOOLS) busybox unzip
	$(CARGO) build
	openwrt/test.sh $(BUILD)/debug/nodepass
	packaging/test.sh $(BUILD)/debug/nodepass

# The program of routers as one file, in an empty root; QUIC would take minutes more.
static-test:
	@if unshare --map-root-user --net true 2>/dev/null; then \
	    $(MAKE) --no-print-directory alone PROFILE=router TARGET=; \
	else \
	    echo 'static-test: skipped, there are no network namespaces here'; \
	fi

test: $(PYTHON)/made
	@$(NEED) $(TOOLS) chromium curl nginx
	$(CARGO) test --lib --test main -- --test-threads=$(TEST_THREADS)

# A part of the tests.
fuzz-smoke:
	@$(NEED) $(TOOLS)
	$(CARGO) test --test main fuzz::

# Without a sanitizer, which Rust without unsafe code does not need, any toolchain will do.
# Inputs that lead somewhere new stay in the folder of the build, for the next time.
fuzz: $(CARGO_FUZZ)
	@$(NEED) cargo g++
	for target in $(or $(TARGET),$(notdir $(basename $(wildcard fuzz/src/bin/*.rs)))); do \
	    corpus=$(FUZZ)/corpus/$$target; \
	    mkdir -p $$corpus; \
	    NP_FUZZ_CORPUS=$$corpus $< run --sanitizer none --target-dir $(FUZZ) \
	        $$target $(or $(INPUT),$$corpus) -- -max_total_time=$(SECONDS) $(FUZZ_OPTIONS) || exit 1; \
	done

$(CARGO_FUZZ):
	@$(NEED) cargo gcc
	$(CARGO) install cargo-fuzz --locked --root $(FUZZ)

# An interpreter of their own for the peers that the tests play in Python.
$(PYTHON)/made: tests/peers/requirements.txt
	@$(NEED) python3 python3-venv
	rm -rf $(PYTHON)
	python3 -m venv $(PYTHON)
	$(PYTHON)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

static:
	@$(NEED) $(TOOLS) readelf
	CARGO=$(CARGO) PROFILE=$(PROFILE) scripts/build-static.sh $(TARGET)

# A program for another processor takes an emulator.
alone: static
	@$(NEED) curl ip openssl python3 $(if $(filter-out $(shell uname -m)-%,$(TARGET)),qemu-mips-static update-binfmts)
	scripts/alone.sh $(BUILD)/$(or $(TARGET),$(HOST))/small/nodepass

size:
	@$(NEED) $(TOOLS) readelf
	CARGO=$(CARGO) scripts/size.sh $(TARGET)

licenses:
	@$(NEED) cargo unzip
	PROFILE=$(PROFILE) scripts/licenses.sh $(TARGET) >$(BUILD)/licenses.txt
	@echo $(BUILD)/licenses.txt

man:
	@$(NEED) $(TOOLS)
	NP_UPDATE_DOCUMENTS=1 $(CARGO) test --test main documents

bench:
	@$(NEED) $(TOOLS) socat haproxy
	$(CARGO) bench --bench forward -- $(BENCH_OPTIONS)

bench-api:
	@$(NEED) $(TOOLS)
	$(CARGO) bench --bench api -- $(BENCH_OPTIONS)

# The helper makes network namespaces and the link between them.
bench-link: $(LINK_HELPER)
	@[ "$$(id -u)" -eq 0 ] || { echo 'bench-link makes network namespaces: run it as root' >&2; exit 1; }
	@$(NEED) $(TOOLS) ip
	$(CARGO) bench --bench forward -- --link $(LINK_HELPER) $(BENCH_OPTIONS)

$(LINK_HELPER): benches/link/delaylink.c
	@$(NEED) gcc
	mkdir -p $(dir $@)
	$(CC) -O2 -Wall -Wextra -o $@ $<

# Builds only when nothing was built yet: whoever installs may not be the one who builds.
install: $(BINARY)
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/nodepass
	install -D -m 644 $(MANUAL) $(DESTDIR)$(PREFIX)/share/man/man1/nodepass.1
	install -D -m 644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/nodepass/LICENSE
	install -D -m 644 packaging/nodepass.env $(DESTDIR)$(PREFIX)/share/doc/nodepass/nodepass.env
	install -d $(DESTDIR)$(UNITS)
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' packaging/nodepass@.service \
		>$(DESTDIR)$(UNITS)/nodepass@.service
	chmod 644 $(DESTDIR)$(UNITS)/nodepass@.service

$(BINARY):
	$(MAKE) all

clean:
	$(CARGO) clean
