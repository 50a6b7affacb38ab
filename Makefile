# The one interface to building, running and testing Tatami. `make` lists the targets.
#
# Everything that is built lands in build/ (BUILD=… for another place); long steps are cached outside the checkout, in
# $TATAMI_CACHE, by the hash of their inputs (docs/building.md).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BUILD ?= $(CURDIR)/build
PREFIX ?= /usr/local
DESTDIR ?=
QEMU ?= $(or $(shell command -v qemu-system-x86_64 2>/dev/null),/usr/bin/qemu-system-x86_64)

target := x86_64-unknown-linux-gnu
multiarch := x86_64-linux-gnu
target_dir := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# The static programs of the guest: no loader, no shared libraries, no path of this checkout or of crates' sources.
guest_flags := -C target-feature=+crt-static -C relocation-model=static \
	--remap-path-prefix=$(CURDIR)=/tatami --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
guest_env := RUSTFLAGS="$(guest_flags)" LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$(multiarch)
# A directory of its own: other flags would otherwise rebuild what both sides use, at every change between them.
guest_dir := $(target_dir)/guest
guest_out := $(guest_dir)/$(target)/guest

.PHONY: help
help: ## this list
	@echo "Tatami: containers in microVMs. Targets:"
	@sed -n 's/^\([a-z-]*\):.* ## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

.PHONY: deps
deps: ## what the machine needs: Debian packages and the pinned helper daemons (root)
	@scripts/deps
	@scripts/tool virtiofsd >/dev/null
	@scripts/tool vhost-device-vsock >/dev/null

.PHONY: build
build: kernel initrd daemons binaries config ## everything into build/

# ARCH=arm64 builds for another machine, beside this one's: build/share/vmlinuz-arm64.
kernel_suffix := $(if $(filter-out $(shell uname -m),$(ARCH)),-$(ARCH))

.PHONY: kernel
kernel: ## build/share/{vmlinuz,System.map,modules.img}, from the pinned source (cached); ARCH=arm64 cross-compiles
	@dir=$$(guest-kernel/build $(if $(ARCH),--arch $(ARCH))); mkdir -p $(BUILD)/share; for file in vmlinuz System.map modules.img; do \
		cmp -s "$$dir/$$file" $(BUILD)/share/$$file$(kernel_suffix) \
			|| install -m 0644 "$$dir/$$file" $(BUILD)/share/$$file$(kernel_suffix); \
	done

.PHONY: kernel-debug
kernel-debug: ## build/share/debug/{vmlinuz,System.map,modules.img}: the kernel with BTF, fentry and the function tracer (cached)
	@dir=$$(guest-kernel/build --debug); mkdir -p $(BUILD)/share/debug; for file in vmlinuz System.map modules.img; do \
		cmp -s "$$dir/$$file" $(BUILD)/share/debug/$$file || install -m 0644 "$$dir/$$file" $(BUILD)/share/debug/$$file; \
	done

.PHONY: kernel-bump
kernel-bump: ## VERSION=X.Y.Z: moves the pin to that kernel, with all that has to follow
	@guest-kernel/bump "$(VERSION)"

.PHONY: test-kernel
test-kernel: build ## every kernel fix, on the shipped kernel and on one without it (builds those, cached)
	@TATAMI_BUILD=$(BUILD) cargo run --quiet --locked --release --target-dir $(target_dir) -p tatami-tests --bin kernel-table -- $(FIXES)

.PHONY: test-kernel-debug
test-kernel-debug: build kernel-debug ## a pod that asks for the debug kernel has BTF, fentry and the function tracers
	@TATAMI_BUILD=$(BUILD) cargo run --quiet --locked --release --target-dir $(target_dir) -p tatami-tests --bin kernel-table -- debug

.PHONY: initrd
initrd: static-programs ## build/share/initrd.img, with the static agent as /init, debug-console.img and iptables.img
	@guest-kernel/initrd $(guest_out)/tatami-agent $(BUILD)/share/initrd.img
	@guest-kernel/debug-console $(BUILD)/share/debug-console.img
	@guest-kernel/iptables $(BUILD)/share/iptables.img

.PHONY: static-programs
static-programs: # the agent, kata-ctl (for any distribution, and an image with nothing else), and the tests' probe
	@$(guest_env) cargo build --quiet --locked --profile guest --target $(target) --target-dir $(guest_dir) \
		-p tatami-agent -p guest-probe -p kata-ctl
	@mkdir -p $(BUILD)/bin $(BUILD)/tests
	@cmp -s $(guest_out)/kata-ctl $(BUILD)/bin/kata-ctl \
		|| install -m 0755 $(guest_out)/kata-ctl $(BUILD)/bin/kata-ctl
	@cmp -s $(guest_out)/guest-probe $(BUILD)/tests/guest-probe \
		|| install -m 0755 $(guest_out)/guest-probe $(BUILD)/tests/guest-probe

.PHONY: daemons
daemons: ## build/bin/{virtiofsd,vhost-device-vsock}, at pinned versions (cached)
	@mkdir -p $(BUILD)/bin; for name in virtiofsd vhost-device-vsock; do \
		program=$$(scripts/tool $$name); \
		cmp -s "$$program" $(BUILD)/bin/$$name || install -m 0755 "$$program" $(BUILD)/bin/$$name; \
	done

.PHONY: binaries
binaries: static-programs ## build/bin/{containerd-shim-kata-v2,kata-ctl}
	@cargo build --quiet --locked --release --target-dir $(target_dir) -p containerd-shim-kata-v2
	@mkdir -p $(BUILD)/bin; name=containerd-shim-kata-v2; cmp -s $(target_dir)/release/$$name $(BUILD)/bin/$$name \
		|| install -m 0755 $(target_dir)/release/$$name $(BUILD)/bin/$$name

.PHONY: config
config: ## build/etc/configuration.toml, pointing at what was built
	@mkdir -p $(BUILD)/etc
	@scripts/render-config $(BUILD)/bin $(BUILD)/share $(QEMU) >$(BUILD)/etc/configuration.toml

# Not as prerequisites side by side: under -j the build must not start before its dependencies are there.
.PHONY: run
run: ## deps + build, then a container in a microVM by a private containerd
	@$(MAKE) deps
	@$(MAKE) build
	@TATAMI_BUILD=$(BUILD) cargo run --quiet --locked --release --target-dir $(target_dir) -p tatami-tests --bin demo

.PHONY: test
test: ## deps + build, then all tests, the end-to-end ones included
	@$(MAKE) deps
	@$(MAKE) build
	@$(MAKE) deps-containerd
	@TATAMI_BUILD=$(BUILD) scripts/test
	@for start in pool template; do TATAMI_BUILD=$(BUILD) TATAMI_TEST_START=$$start scripts/test --test smoke --test pods || exit; done

.PHONY: pool-life
pool-life: build ## 1,000 starts from a pool whose members die at random (POOL_STARTS=…, TATAMI_SEED=…)
	@TATAMI_BUILD=$(BUILD) TATAMI_POOL_STARTS=$(or $(POOL_STARTS),1000) cargo test --quiet --locked -p tatami-tests --test pool \
		whatever_dies -- --nocapture

.PHONY: many-files
many-files: build ## a million files of a volume listed, opened and changed (MANY_FILES=…; MANY_EVERY=5: every fifth changed)
	@TATAMI_BUILD=$(BUILD) TATAMI_MANY_FILES=$(or $(MANY_FILES),1000000) TATAMI_MANY_EVERY=$(or $(MANY_EVERY),1) \
		cargo test --quiet --locked -p tatami-tests --test many_files -- --nocapture

.PHONY: stress
stress: ## deps + build, then all loads in full, one after the other, the cheapest first (STRESS="execs cycles" for some; docs/testing.md)
	@$(MAKE) deps
	@$(MAKE) build
	@TATAMI_BUILD=$(BUILD) scripts/stress $(STRESS)

.PHONY: test-kvm
test-kvm: build ## end-to-end tests on real KVM in an emulated VM (root; KVM_TESTS=core, KVM_CONTAINERD=1.7, …)
	@if [ "$(or $(KVM_CONTAINERD),1.6)" != 1.6 ]; then scripts/containerd-versions; fi
	@TATAMI_BUILD=$(BUILD) KVM_TESTS="$(KVM_TESTS)" KVM_BINARIES="$(KVM_BINARIES)" KVM_CONTAINERD="$(KVM_CONTAINERD)" KVM_INIT="$(KVM_INIT)" \
		KVM_CPUS="$(KVM_CPUS)" KVM_WITHOUT="$(KVM_WITHOUT)" KVM_MINUTES="$(KVM_MINUTES)" tests/kvm/run

.PHONY: conformance
conformance: build ## what runc's, runtime-tools' and youki's suites ask, on runc and here (root; CASES="exec bind-…" for some)
	@scripts/containerd-versions
	@TATAMI_BUILD=$(BUILD) cargo run --quiet --locked --release --target-dir $(target_dir) -p tatami-tests --bin conformance -- $(CASES)

.PHONY: deps-containerd
deps-containerd: # the other containerd releases that the tests run against (cached)
	@scripts/containerd-versions

.PHONY: bench
bench: build ## the benchmark: ratios against floors (root; BENCH=--json for programs, or names of sections)
	@floor=$$(guest-kernel/floor); cmp -s "$$floor" $(BUILD)/tests/vmlinuz-floor \
		|| install -m 0644 "$$floor" $(BUILD)/tests/vmlinuz-floor
	@$(if $(or $(filter network,$(BENCH)),$(if $(filter-out --json,$(BENCH)),,all)),iperf3=$$(scripts/iperf3);) \
		TATAMI_BUILD=$(BUILD) TATAMI_BENCH_KERNELS="$(KERNELS)" TATAMI_BENCH_IPERF3="$${iperf3-}" \
		cargo run --quiet --locked --release --target-dir $(target_dir) -p tatami-tests --bin bench -- $(BENCH)

.PHONY: workloads
workloads: build ## real programs on runc and here: checks and ratios (root; WORKLOADS="redis git" for some)
	@root=$$(tests/workloads/root); TATAMI_BUILD=$(BUILD) cargo run --quiet --locked --release --target-dir $(target_dir) \
		-p tatami-tests --bin workloads -- "$$root" $(WORKLOADS)

.PHONY: check
check: ## format, lints, licences and sources of crates, spelling, unused dependencies, shell scripts
	@scripts/check

.PHONY: install
install: build ## into DESTDIR/PREFIX; the result works without the checkout (ACCELERATOR=kvm, auto, …)
	@BUILD=$(BUILD) DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) QEMU=$(QEMU) ACCELERATOR=$(ACCELERATOR) scripts/install

.PHONY: fuzz
fuzz: ## every parser of foreign bytes, a million executions each (EXECUTIONS=…, SEED=…; FUZZ_KEEP=DIR keeps new inputs)
	@FUZZ_EXECUTIONS=$(or $(EXECUTIONS),1000000) FUZZ_SEED=$(or $(SEED),1) scripts/fuzz

.PHONY: packages
packages: build ## build/packages: a .deb, an .rpm, an archive that works anywhere, an SPDX list
	@BUILD=$(BUILD) scripts/packages $(BUILD)/packages

.PHONY: test-packages
test-packages: packages ## the README, command by command, in a fresh bookworm and trixie (root, the network)
	@for suite in bookworm trixie; do scripts/fresh-root $$suite $(BUILD)/packages/tatami_*.deb || exit 1; done

.PHONY: image
image: build ## build/image/tatami.tar: the OCI image that installs a node of a cluster (deploy/)
	@BUILD=$(BUILD) scripts/image $(BUILD)/image

.PHONY: clean
clean: ## removes build/; the cache and cargo's target directory stay
	@rm -rf $(BUILD)
