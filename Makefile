# What one does with a checkout of nodepass.
#
#   make            build the program: target/release/nodepass
#   make demo       see it forward a web page
#   make check      all that must pass before a change goes in
#   make test       only the tests
#   make static     one file that needs no libraries; TARGET=triple for another machine
#   make man        rewrite the generated parts of manual and documents
#   make bench      compare with socat and haproxy; BENCH_OPTIONS='--rounds 2', see --help
#   make install    into DESTDIR and PREFIX
#   make clean      remove what was built
#
# demo, check and bench install the Debian packages they need when something is missing.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
BENCH_OPTIONS ?=

BUILD = $(or $(CARGO_TARGET_DIR),target)
BINARY = $(BUILD)/release/nodepass
MANUAL = man/nodepass.1
NEED = scripts/need.sh

.PHONY: all demo check lint test static man bench install clean

all:
	@$(NEED) cargo gcc
	$(CARGO) build --release

demo:
	@$(NEED) cargo gcc curl python3
	$(CARGO) build --release
	scripts/demo.sh $(BINARY)

# The tests come last, so that their result is what one sees.
check: lint test

lint:
	@$(NEED) cargo gcc curl $(if $(wildcard $(MANUAL)),mandoc)
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps
	$(if $(wildcard $(MANUAL)),mandoc -T lint -W warning $(MANUAL))

test:
	@$(NEED) cargo gcc
	$(CARGO) test --lib --test main

static:
	@$(NEED) cargo gcc readelf
	CARGO=$(CARGO) scripts/build-static.sh $(TARGET)

man:
	@$(NEED) cargo gcc
	NP_UPDATE_DOCUMENTS=1 $(CARGO) test --test main documents

bench:
	@$(NEED) cargo gcc socat haproxy
	$(CARGO) bench --bench forward -- $(BENCH_OPTIONS)

# Builds only when nothing was built yet: whoever installs may not be the one who builds.
install: $(BINARY)
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/nodepass
	install -D -m 644 $(MANUAL) $(DESTDIR)$(PREFIX)/share/man/man1/nodepass.1
	install -D -m 644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/nodepass/LICENSE

$(BINARY):
	$(MAKE) all

clean:
	$(CARGO) clean
