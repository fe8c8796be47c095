# Each target does all its own set-up: Debian packages, a virtual environment, the BPF build.
# Set-up runs once; `make clean` takes its products away again.
SHELL  := /bin/bash
PYTHON := /usr/bin/python3
BIN    := .venv/bin
BUILD  := build
DEBS   := python3-bpfcc python3-venv clang libclang-rt-14-dev llvm libbpf-dev gcc g++ libc6-dev make \
          gdb elfutils binutils dwz xz-utils strace redis-tools linux-libc-dev fuse3 curl openssl \
          runc groff-base
# Only for `make package-test`
PACKAGE_DEBS := debootstrap e2fsprogs lintian qemu-system-x86
# To boot other kernels: only for `make kernels` and `make kernel-tests`
KERNEL_DEBS := qemu-system-x86 busybox-static cpio kmod
OBJECT := $(BUILD)/coreward.bpf.o
NATIVE := $(BUILD)/coreward-pipe $(BUILD)/coreward-handoff.so $(BUILD)/coreward-copy \
          $(BUILD)/coreward-cpu.so
SYMBOLS := $(BUILD)/trace-symbols.json
# For tests only, and unpacked instead of installed: the package would start a service.
PROMETHEUS := $(BUILD)/prometheus/prometheus $(BUILD)/prometheus/promtool

# The same: schemas of Kubernetes, three files of a package of hundred megabytes
KUBERNETES := $(BUILD)/kubernetes/.ready

.DELETE_ON_ERROR:
.PHONY: setup demo run test lint types unit system sanitize fuzz kernels kernel-tests package-test bench man wheel deb clean

setup: $(BIN)/.ready $(OBJECT) $(NATIVE) $(SYMBOLS)

demo: setup
	@$(BIN)/python -m demo

run: setup
	@exec $(BIN)/coreward run --config config/default.yaml

test: $(BIN)/.ready
	@$(MAKE) --no-print-directory -j2 --output-sync=target \
	    lint types setup $(PROMETHEUS) $(KUBERNETES) $(BUILD)/.kernel-debs
	@MAKEFLAGS= $(BIN)/python -m tests

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(BIN)/.ready
	$(BIN)/mypy

unit: $(BIN)/.ready $(PROMETHEUS) $(KUBERNETES)
	MAKEFLAGS= $(BIN)/pytest -q tests/unit

system: setup $(PROMETHEUS)
	MAKEFLAGS= $(BIN)/python -m tests tests/system

# The native part under the sanitizers of addresses and undefined behaviour, in real hand-offs. The
# interpreter leaks by design at its end; a fault of another process is none of the sanitizer's.
SANITIZE := COREWARD_SANITIZE=1 UBSAN_OPTIONS=print_stacktrace=1 \
            ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0
sanitize: setup
	@$(SANITIZE) $(BIN)/python -m collector.native.build $(BUILD)/sanitize
	@runtime=$$(gcc -print-file-name=libasan.so); \
	$(SANITIZE) COREWARD_SANITIZER_RUNTIME=$$runtime LD_PRELOAD=$$runtime \
	    $(BIN)/pytest -q -s tests/system/test_native.py tests/system/test_hold_handoff.py \
	        tests/system/test_hold_crowd.py

# Each parser of the native part for a minute; `make unit` does it for a second.
fuzz: $(BIN)/.ready
	@$(BIN)/python -m tests.fuzz 60

# Debian's kernels 6.1 and 6.12 in a virtual machine; downloaded once into $(BUILD)/kernels.
kernels: setup $(BUILD)/.kernel-debs
	@$(BIN)/python -m tests.kernels

kernel-tests: setup $(BUILD)/.kernel-debs
	$(BIN)/pytest -q tests/kernels

# The package in a fresh Debian: installed, a crash on record, purged; and where KVM is, on a machine of
# its own with systemd as process 1. Minutes, and downloads the first time: not part of `make test`.
package-test: deb $(BUILD)/.package-debs
	$(BIN)/pytest -q tests/package

bench: setup
	@$(BIN)/python -m bench

# Manual pages, and what bash, zsh and fish need to complete words: of the same source as `--help`.
MAN := $(BUILD)/man
man: $(BIN)/.ready
	@rm -rf $(MAN) && $(BIN)/python -m deploy.manual $(MAN)

# For machines without a compiler: with all that was built here, and the sources that bcc compiles.
WHEEL := $(BUILD)/wheel
wheel: setup man
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)/src/collector
	@cp pyproject.toml README.md LICENSE $(WHEEL)/src
	@git ls-files -z collector | xargs -0 cp --parents -t $(WHEEL)/src
	@cp $(NATIVE) $(WHEEL)/src/collector/native
	@cp -r $(BUILD)/*.bpf.o bpf $(WHEEL)/src/collector/probe
	@cp $(SYMBOLS) $(WHEEL)/src/collector/trace
	@cp -r $(MAN) $(WHEEL)/src/share
	@$(BIN)/pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation \
	    -w $(WHEEL) \
	    --config-settings=--build-option=--plat-name=linux_$$(uname -m) $(WHEEL)/src
	@ls $(WHEEL)/*.whl

# For Debian, with the distribution's Python: `apt install ./build/deb/coreward_*.deb`
DEB := $(BUILD)/deb
deb: wheel
	@rm -rf $(DEB) && mkdir -p $(DEB)
	@deploy/debian/build $(WHEEL)/coreward-*.whl $(DEB)

clean:
	rm -rf .venv $(BUILD) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What Debian lacks is installed only if it is missing, so that a second run needs no network.
$(BUILD)/.debs: PACKAGES := $(DEBS)
$(BUILD)/.kernel-debs: PACKAGES := $(KERNEL_DEBS)
$(BUILD)/.package-debs: PACKAGES := $(PACKAGE_DEBS)
$(BUILD)/.kernel-debs $(BUILD)/.package-debs: | $(BUILD)/.debs
$(BUILD)/.debs $(BUILD)/.kernel-debs $(BUILD)/.package-debs: Makefile
	@mkdir -p $(BUILD)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${db:Status-Abbrev}' $$p 2>/dev/null \
	    | grep -q '^ii' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    [ "$$(id -u)" = 0 ] || { echo "install as root: apt-get install $$missing" >&2; exit 1; }; \
	    echo "installing" $$missing; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	        apt-get -qq install -y --no-install-recommends $$missing >$(BUILD)/apt.log 2>&1 \
	        || { tail -20 $(BUILD)/apt.log >&2; exit 1; }; \
	fi
	@touch $@

# The distribution's interpreter and its packages: bcc is one of them.
$(BIN)/.ready: pyproject.toml $(BUILD)/.debs
	@test -x $(BIN)/python || { echo "making the virtual environment"; \
	    $(PYTHON) -m venv --system-site-packages .venv; }
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m compileall -q collector # else each start does it, where PYTHONDONTWRITEBYTECODE is set
	@touch $@

$(OBJECT): $(wildcard bpf/*) $(wildcard collector/probe/*.py) $(BIN)/.ready
	@$(BIN)/python -m collector.probe.build $(BUILD)

$(NATIVE) &: $(wildcard collector/native/*.[ch]) bpf/coreward.h collector/native/build.py $(BIN)/.ready
	@$(BIN)/python -m collector.native.build $(BUILD)

$(PROMETHEUS) &: | $(BUILD)/.debs
	@mkdir -p $(BUILD)/prometheus && cd $(BUILD)/prometheus \
	    && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; } \
	        2>apt.log || { cat apt.log >&2; exit 1; }
	@cd $(BUILD)/prometheus && dpkg-deb -x prometheus_*.deb . && mv usr/bin/prometheus usr/bin/promtool . \
	    && touch prometheus promtool && rm -rf etc lib usr var prometheus_*.deb

$(KUBERNETES): $(BIN)/.ready
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/pip download -q --disable-pip-version-check --no-deps -d $(@D) kubernetes-validate==1.30.0
	@cd $(@D) && $(PYTHON) -c 'import glob, zipfile; \
	    wheel = zipfile.ZipFile(glob.glob("*.whl")[0]); \
	    [wheel.extract(name) for name in wheel.namelist() for version in ("v1.22.0", "v1.30.0") \
	        for file in ("_definitions", "daemonset-apps-v1", "namespace-v1") \
	        if name.endswith(f"/{version}-local-strict/{file}.json")]'
	@rm $(@D)/*.whl && touch $@

# Names of constants, as the kernel's headers have them.
$(SYMBOLS): collector/trace/headers.py collector/trace/groups.py $(BIN)/.ready
	@$(BIN)/python -m collector.trace.headers $@
