# make run    builds kthwd and runs a controller, data in ./.kthwd
# make test   runs all that needs no root and no foreign package
# make help   lists the rest
#
# The first build compiles Kubernetes (about 6 minutes on two cores); the later
# ones take seconds as long as all use the same flags, hence the exports here.

export CGO_ENABLED := 0
export GOFLAGS     := $(GOFLAGS) -trimpath -buildvcs=false

BIN        ?= bin/kthwd
VERSION    ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null || echo v0.1.0-dev)
COMMIT     ?= $(shell git describe --always --abbrev=12 --dirty --exclude '*' 2>/dev/null || echo unknown)
KUBERNETES := $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2; exit }' go.mod)
MAJOR_MINOR := $(subst ., ,$(KUBERNETES:v%=%))

# Of the commit, not of the clock: the same sources give the same binary.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
BUILD_DATE := $(shell date -u -d @$(SOURCE_DATE_EPOCH) +%Y-%m-%dT%H:%M:%SZ)

# What Kubernetes' own build stamps (hack/lib/version.sh). Its commit stays
# empty: a module has a version and a hash of its content, but no commit.
STAMPS  = gitVersion=$(KUBERNETES) gitMajor=$(word 1,$(MAJOR_MINOR)) gitMinor=$(word 2,$(MAJOR_MINOR)) \
          gitCommit= gitTreeState=clean buildDate=$(BUILD_DATE)
LDFLAGS = $(if $(DBG),,-s -w) -X kthwd/cmd/kthwd/cli.Version=$(VERSION) -X kthwd/cmd/kthwd/cli.Commit=$(COMMIT) \
          $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,$(addprefix -X $(p).,$(STAMPS)))

RUN_FLAGS ?= --role=controller --data-dir=./.kthwd --health-address=127.0.0.1:8080 \
             --bind-address=127.0.0.1 --advertise-address=127.0.0.1
DIRS      := appliance cmd health lb packaging rbacseed test
LIGHT      = $(shell awk '$$2 == "light" { print "./" $$1 }' appliance/config/testdata/arrows.txt)

.DEFAULT_GOAL := help
.PHONY: help build previous tool tools run test test-backup test-suites test-attacks test-attacks-user test-attacks-reviewed incidents test-light test-one fuzz cover test-e2e test-lb-peers test-conformance soak test-encryption-kills test-rotations test-kubelet-rotation screenshots bench bench-previous bench-scale bench-far bench-hardening bench-try bench-names bench-backup bench-encryption bench-lb lint lint-extra golden verify bump hooks package image package-check generated install test-systemd test-upgrade clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

build: $(BIN) ## build bin/kthwd, one static binary, versions stamped (DBG=1 keeps debug information)

$(BIN): FORCE
	go build -ldflags '$(LDFLAGS)' -o $@ ./cmd/kthwd

previous: ## build bin/previous/kthwd, with the minor of Kubernetes and etcd before this one's, for the tests of upgrades
	@test/previous.sh bin/previous/kthwd

tool: ## build a program of go.mod with the same stamps: make tool PKG=k8s.io/kubernetes/cmd/kubectl OUT=bin/tools/kubectl
	go build -ldflags '$(LDFLAGS)' -o $(OUT) $(PKG)

# Upstream's own programs.
TOOLS    := bin/tools
PROGRAMS := etcd etcdctl etcdutl kube-apiserver kube-controller-manager kube-scheduler kubectl
OF_ETCD  := etcd=server etcdctl=etcdctl etcdutl=etcdutl
tools: $(PROGRAMS:%=$(TOOLS)/%) ## upstream's own programs, of the versions in go.mod, with which tests and benchmarks compare
$(PROGRAMS:%=$(TOOLS)/%): FORCE
	@$(MAKE) --no-print-directory -s tool OUT=$@ \
		PKG=$(or $(patsubst $(@F)=%,go.etcd.io/etcd/%/v3,$(filter $(@F)=%,$(OF_ETCD))),k8s.io/kubernetes/cmd/$(@F))

run: build ## run a controller without root, data in ./.kthwd (RUN_FLAGS=… for others)
	$(BIN) $(RUN_FLAGS)

# The longest first, beside the others: their tests wait more than they compute. Those of
# test/fault and test/incident share the machine by turns (kthwtest.Turn).
LONGEST = ./test/fault ./test/incident ./test/adopt ./test/docs ./test/names ./test/observe ./cmd/kthwd ./test/attack ./test/image ./lb ./lb/discovery

# go vet is a part of make lint. Without debug information a test that has Kubernetes in it
# is linked in half of the processor time, and in four fifths of that if the linker collects its
# garbage less often. The same flags everywhere: they are a part of what go test knows a result by.
TEST_FLAGS = -vet=off -ldflags='-s -w' -toolexec='env GOGC=300'

test: build $(TOOLS)/kubectl ## all tests that need no root and no foreign package
	KTHWD_BIN=$(abspath $(BIN)) KTHWD_TOOLS=$(abspath $(TOOLS)) go test -p 4 -timeout=60m $(TEST_FLAGS) $(LONGEST) ./...

incidents: build ## incidents on the real binary, and a table: which surface says the cause, since when and what to type
	KTHWD_INCIDENTS=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=20m -v ./test/incident

test-light: ## the tests that link no Kubernetes, in seconds
	go test $(TEST_FLAGS) $(LIGHT)

test-backup: build ## archives damaged, processes killed at each step, and a cluster restored elsewhere
	KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=10m -v ./appliance/archive ./appliance/backup/... ./test/backup

test-attacks: build ## attacks that once worked, on the real binary
	KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=10m -v ./test/attack

test-attacks-user: build ## the attacks as an ordinary user, to whom the kernel grants nothing; needs root
	test/attack/unprivileged.sh $(abspath $(BIN))

# The commit that the review of security attacked.
REVIEWED = fa4bf260b44fced615b91721182223a63994ed5d
test-attacks-reviewed: build ## the attacks on the kthwd that was reviewed, where each must succeed
	@COMMIT=$(REVIEWED) test/previous.sh bin/reviewed/kthwd
	@git archive $(REVIEWED):packaging/systemd | tar -x -C bin/reviewed
	KTHWD_REVIEWED=$(abspath bin/reviewed/kthwd) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=30m -v -run '^(TestReviewed|TestReproductions)$$' ./test/attack

# Tests of whole clusters need their switch as well: KTHWD_E2E=1 make test-one T=TestNewUser
packages_of = $(shell grep -rlE --include='*_test.go' '^func $(firstword $(subst /, ,$(1)) none)\b' $(DIRS) | xargs -rn1 dirname | sort -u | sed 's,^,./,')
test-one: ## one test, in whichever package it is: make test-one T=TestGrow, or T=TestGuard/data_gone
	$(if $(call packages_of,$(T)),,$(error there is no test "$(T)": make test-one T=TestGrow))
	go test -count=1 -timeout=20m -v -run '^$(subst /,$$/^,$(T))$$' $(call packages_of,$(T))

FOR ?= 10m
fuzz: ## every parser of foreign bytes on random input, FOR=10m in all
	test/fuzz.sh $$(($(patsubst %h,%*3600,$(patsubst %m,%*60,$(patsubst %s,%,$(FOR))))))

COVER ?= $(LIGHT)
cover: ## which lines the light tests run: dist/cover.html and the total (COVER=./lb/... for other packages)
	@mkdir -p dist
	go test -coverprofile=dist/cover.out $(COVER)
	go tool cover -html=dist/cover.out -o dist/cover.html
	@go tool cover -func=dist/cover.out | tail -n 1

# Of test/fault and test/observe, the others have run in make test. Those of E2E_ALONE measure,
# and nothing runs beside them. test/members waits more than it computes, and test/names only computes.
tests_of = $(shell awk '/^func Test/ { sub(/[^A-Za-z0-9_].*/, "", $$2); name = $$2 } $(2) && name { printf "%s%s", or, name; or = "|"; name = "" }' $(1)/*_test.go)
E2E_ALONE = ^(TestLeaving|TestHealthyLifeIsCalm)
E2E_FAULT = TestSplitEtcdCA|TestLoneCIS|TestSpace|TestAllDisksLost|TestRenewalOfThree|TestEncryptionOfThree|TestServiceAccountOfThree|TestServiceAccountKilled|TestCAKilled|TestCAOfThree|TestFrontProxyCAKilled|TestFrontProxyCAOfThree|TestEtcdCAKilled|TestEtcdCAOfThree|TestRevokedOfThree|TestUpgradeCheckOfThree|TestUpgradeAndBack|TestRollingUpgrade|TestUpgradeKilled
E2E_BESIDE = $(call tests_of,test/members,/^func Test/)|TestProgramsAreUpstreams

test-e2e: build ## whole clusters with kubectl and real nodes, and the failure tables of the load balancer and of three controllers; parts need root and are skipped without
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=40m ./test/e2e/...
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=15m -v ./test/lb
	$(MAKE) --no-print-directory -s previous
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) KTHWD_PREVIOUS=$(abspath bin/previous/kthwd) go test -count=1 -timeout=15m -v -run 'TestFaults|TestUpgrade$$' ./test/ha
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=15m -v -run '$(E2E_ALONE)' ./test/fault
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) KTHWD_PREVIOUS=$(abspath bin/previous/kthwd) go test -p 3 -count=1 -timeout=35m -v -run '^($(E2E_FAULT))|^($(E2E_BESIDE))$$' ./test/fault ./test/members ./test/names
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=20m -run '^($(call tests_of,test/observe,/^\tneedE2E/))$$' ./test/observe
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=20m -v -run 'TestEnvtest|TestPage' ./test/try

# Kubernetes' own tests, of the version in go.mod. The modules that only they need are in a copy
# of go.mod, so that they move no version of kthwd's.
CONFORMANCE := dist/conformance
$(CONFORMANCE)/e2e.test: FORCE
	@mkdir -p $(CONFORMANCE) && cp go.mod go.sum $(CONFORMANCE)
	go test -c -vet=off -mod=mod -modfile=$(CONFORMANCE)/go.mod -ldflags '$(LDFLAGS)' -o $@ k8s.io/kubernetes/test/e2e
	go build -mod=mod -modfile=$(CONFORMANCE)/go.mod -o $(CONFORMANCE)/ginkgo github.com/onsi/ginkgo/v2/ginkgo

FOCUS ?=
test-conformance: build $(CONFORMANCE)/e2e.test $(TOOLS)/kubectl ## Kubernetes' conformance tests that need no kubelet, on kthwd and on the four separate programs: a table, and dist/conformance/results.txt (FOCUS='Watchers|Lease' for some of them)
	KTHWD_CONFORMANCE=$(abspath $(CONFORMANCE)) KTHWD_CONFORMANCE_FOCUS='$(FOCUS)' KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=2h -v -run 'TestConformance$$' ./test/bench

SOAK ?= 10m
soak: build ## the faults of three controllers, then dead webhooks and APIs, kills in rotations of the encryption key, then connections cut in one direction and other addresses, in random order for SOAK=10m each; KTHWD_SOAK_SEED repeats one; in namespaces as root, else on loopback
	KTHWD_SOAK=$(SOAK) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=0 -p=1 -v -run 'TestSoak' ./test/ha ./test/fault ./test/members

KILLS ?= 50
test-encryption-kills: build ## any of three controllers killed in any stage of rotations of the encryption key, KILLS=50 times: no secret is unreadable, and each rotation ends
	KTHWD_KILLS=$(KILLS) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=0 -v -run '^TestSoakEncryption$$' ./test/fault

test-rotations: build ## what is too long for make test-e2e: certificates of 90 s renewed for five minutes under load, keys of a key server (KMS), a kill in each stage of the encryption key's rotation, each on three controllers
	KTHWD_E2E=1 KTHWD_RENEWAL=5m KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=30m -v -run '^(TestRenewalOfThree|TestKMSOfThree|TestEncryptionKilledOfThree)$$' ./test/fault

test-kubelet-rotation: build ## a real kubelet with certificates of ten minutes, which it replaces three times: half an hour of waiting; as root, in namespaces
	KTHWD_E2E=1 KTHWD_KUBELET_ROTATION=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=75m -v -run '^TestKubeletRotation$$' ./test/e2e

screenshots: build ## make docs/images from the pages of a controller and a load balancer; needs chromium
	KTHWD_SCREENSHOTS=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -run TestScreenshots ./test/observe

bench: build ## kthwd against the four separate programs: a table and one JSON line
	KTHWD_BENCH=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v ./test/bench/...

bench-previous: build previous ## kthwd against the kthwd of the minor before: the same table
	KTHWD_BENCH=1 KTHWD_BENCH_PREVIOUS=$(abspath bin/previous/kthwd) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v -run 'TestBench$$' ./test/bench

SIZES ?= 100/3000,500/15000,1000/30000
bench-scale: build ## clusters of SIZES=100/3000,… (nodes/pods), kthwd and the four programs in turns: tables, slopes, one JSON line; PUBLISH="two cores; nothing else ran" draws docs/scale.svg
	KTHWD_BENCH_SCALE=$(SIZES) KTHWD_BENCH_PUBLISH="$(PUBLISH)" KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=6h -v -run 'TestScale$$' ./test/bench

FAR ?= 500/15000
bench-far: build ## clusters of FAR=500/15000,… (nodes/pods) that are written to etcd directly: the start with their data, memory, lists, heartbeats, kthwd and the four programs in turns; LONE=1 measures kthwd without kubelets
	KTHWD_BENCH_FAR=$(FAR) KTHWD_BENCH_LONE=$(LONE) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=6h -v -run 'TestFar$$' ./test/bench

bench-hardening: build ## kthwd as installed, and with profile cis, against kthwd without the hardening that flags can take away: ratios of start and throughput
	KTHWD_BENCH_HARDENING=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v -run TestHardening ./test/bench

TRIES ?= 5
ENVTEST = $(addprefix $(TOOLS)/,etcd kube-apiserver kubectl)
bench-try: build $(ENVTEST) ## kthwd try beside controller-runtime's envtest with kthwd's names and with upstream's programs, TRIES=5 turns each: ratios of time and CPU
	KTHWD_BENCH_TRY=$(TRIES) KTHWD_TOOLS=$(abspath $(TOOLS)) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v -run 'TestBench' ./test/try

bench-names: build $(TOOLS)/kubectl ## kubectl and the short verbs by kthwd's name beside upstream's kubectl: ratios of time, TRIES=5 turns each
	KTHWD_BENCH_NAMES=$(TRIES) KTHWD_TOOLS=$(abspath $(TOOLS)) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=10m -v -run 'TestBench$$' ./test/names

test-suites: build $(ENVTEST) ## controller-runtime's own tests of envtest and its client, with upstream's programs and with kthwd's names: the same must pass; minutes
	KTHWD_SUITES=$(abspath $(TOOLS)) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v -run 'TestSuites' ./test/try

SIZE ?= 256M
bench-backup: build ## what a backup of a database of SIZE=1G costs: the longest put beside a quiet one's, memory, time by step
	KTHWD_BENCH_BACKUP=1 KTHWD_BENCH_SIZE=$(SIZE) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v -run 'TestBackup$$' ./test/bench

SECRETS ?= 10000
bench-encryption: build ## what a rotation of the encryption key of SECRETS=10000 secrets takes: secrets a second, and the API's p99 beside the quiet one
	KTHWD_BENCH_ENCRYPTION=1 KTHWD_BENCH_SECRETS=$(SECRETS) KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=60m -v -run 'TestEncryption$$' ./test/bench

# KTHWD_LB_BIN names any program that takes the flags of kthwd --role=lb.
test-lb-peers: $(if $(KTHWD_LB_BIN),,build) ## the load balancer's failure table with nginx and HAProxy beside kthwd; needs root
	KTHWD_LB_PEERS=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=30m -v ./test/lb

bench-lb: $(if $(KTHWD_LB_BIN),,build) ## kthwd --role=lb against nginx, HAProxy and tcpproxy: a table and one JSON line; needs root
	KTHWD_BENCH_LB=1 KTHWD_BIN=$(abspath $(BIN)) go test -count=1 -timeout=30m -v ./test/benchlb

# The names of packages need versions that differ; what is in them is the same.
test-systemd: ## the .deb and the .rpm on Debian machines that systemd boots: life of the units, upgrade, remove; needs root
	$(MAKE) --no-print-directory package-deb-amd64 package-rpm-amd64 VERSION=v0.9.0
	$(MAKE) --no-print-directory package-deb-amd64 VERSION=v0.10.0
	KTHWD_SYSTEMD=$(abspath dist) go test -count=1 -timeout=20m -v ./test/systemd

test-upgrade: build previous ## another minor of Kubernetes and etcd for three controllers, and back: 200 requests a second through a balancer in namespaces, broken on the way, and with apt on Debian machines that systemd boots; then profile cis for a running cluster; needs root
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) KTHWD_PREVIOUS=$(abspath bin/previous/kthwd) go test -count=1 -timeout=15m -v -run 'TestUpgrade|TestProfile' ./test/ha
	KTHWD_E2E=1 KTHWD_BIN=$(abspath $(BIN)) KTHWD_PREVIOUS=$(abspath bin/previous/kthwd) go test -count=1 -timeout=20m -v -run 'TestUpgradeOfThreeBroken' ./test/fault
	$(MAKE) --no-print-directory package-deb-amd64 VERSION=v0.9.0
	$(MAKE) --no-print-directory package-deb-amd64 VERSION=v0.10.0
	test/previous.sh dist/previous/kthwd v0.8.0 dist
	KTHWD_MINOR=1 KTHWD_SYSTEMD=$(abspath dist) go test -count=1 -timeout=20m -v -run 'TestMinor' ./test/systemd

lint: ## gofmt, go vet, staticcheck (the first time it reads all of Kubernetes: some 5 minutes)
	@test -z "$$(gofmt -l $(DIRS) | tee -a /dev/stderr)"
	go vet ./...
	go tool staticcheck ./...

lint-extra: ## golangci-lint with .golangci.yml, where it is installed
	@if command -v golangci-lint >/dev/null; then golangci-lint run ./...; else echo "lint-extra: golangci-lint is not in PATH, nothing was checked"; fi

golden: ## rewrite golden files and docs/configuration.md from the code
	go test $$(grep -rlE --include='*_test.go' 'harness\.(Golden|Updating)\(' $(DIRS) | xargs -n1 dirname | sort -u | sed 's,^,./,') -update

bump: ## other versions of Kubernetes and etcd in go.mod, then what to check: make bump K8S=v1.37.3 ETCD=v3.7.4 (DRY=1 only prints)
	@DRY='$(DRY)' packaging/bump.sh '$(K8S)' '$(ETCD)'

hooks: ## let git check each commit of this clone: format, light tests, subject
	git config core.hooksPath .githooks

verify: lint golden ## lint, and generated files are as their sources say
	git diff --exit-code

# Packages and tarballs; VERSION=v0.2.0 names them. nfpm is a module of its own,
# so that it does not move a version of go.mod.
ARCHS     := amd64 arm64
ETCD      := $(shell awk '$$1 == "go.etcd.io/etcd/server/v3" { print $$2; exit }' go.mod)
NFPM      := dist/tools/nfpm
IMAGE     := dist/tools/image
GENERATED := dist/generated

package: $(foreach a,$(ARCHS),dist/kthwd-$(VERSION)-linux-$(a).tar.gz package-deb-$(a) package-rpm-$(a)) ## dist/: .deb, .rpm and a static tarball for amd64 and arm64, and their sums
	cd dist && sha256sum kthwd-$(VERSION)-linux-*.tar.gz $$(sed 's,.*/,,' packages-*.list) | tee SHA256SUMS

# ARCHS=amd64 is half of the time, here as with make package.
package-check: package ## the packages once more, from a copy of the sources elsewhere: are the bytes the same?
	packaging/check.sh VERSION='$(VERSION)' COMMIT='$(COMMIT)' SOURCE_DATE_EPOCH='$(SOURCE_DATE_EPOCH)' ARCHS='$(ARCHS)'

dist/kthwd-$(VERSION)-linux-%.tar.gz: dist/bin-%/kthwd
	rm -rf $(@:.tar.gz=) && mkdir -p $(@:.tar.gz=)
	cp dist/bin-$*/kthwd LICENSE README.md $(@:.tar.gz=)
	tar -C dist --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@$(SOURCE_DATE_EPOCH) -c $(basename $(basename $(@F))) | gzip -9n > $@

dist/bin-$(shell go env GOHOSTARCH)/kthwd: build
	@install -D $(BIN) $@

dist/bin-%/kthwd: FORCE
	GOARCH=$* go build -ldflags '$(LDFLAGS)' -o $@ ./cmd/kthwd

# $(1) is deb or rpm, $(2) the architecture.
define package_of
package-$(1)-$(2): $(NFPM) generated dist/bin-$(2)/kthwd
	@rm -rf dist/tree-$(1)-$(2)
	@packaging/install.sh dist/tree-$(1)-$(2) dist/bin-$(2)/kthwd $(GENERATED) $(1)
	$(NFPM) -kind $(1) -arch $(2) -version $(VERSION) -root dist/tree-$(1)-$(2) -scripts dist/scripts -out dist > dist/packages-$(1)-$(2).list
endef
$(foreach k,deb rpm,$(foreach a,$(ARCHS),$(eval $(call package_of,$(k),$(a)))))

# The labels that https://specs.opencontainers.org/image-spec/annotations/ names, and the versions inside.
OCI = -label org.opencontainers.image
IMAGE_LABELS = $(OCI).title=kthwd $(OCI).version='$(VERSION)' $(OCI).revision='$(COMMIT)' $(OCI).created='$(BUILD_DATE)' $(OCI).licenses=Apache-2.0 \
               $(OCI).description='Kubernetes control plane in one process, or its load balancer' \
               -label kthwd.kubernetes='$(KUBERNETES)' -label kthwd.etcd='$(ETCD)'

image: $(IMAGE) $(foreach a,$(ARCHS),dist/bin-$(a)/kthwd) ## dist/kthwd-VERSION-image.tar: an OCI image for amd64 and arm64 (ARCHS=amd64 for one), made without a container engine
	$(IMAGE) -version '$(VERSION)' $(IMAGE_LABELS) -out dist/kthwd-$(VERSION)-image.tar $(foreach a,$(ARCHS),$(a)=dist/bin-$(a)/kthwd)

$(IMAGE): FORCE
	cd packaging/image && go build -o $(abspath $(IMAGE)) .

$(NFPM): FORCE
	cd packaging/nfpm && go build -o $(abspath $(NFPM)) .

generated: build
	@rm -rf $(GENERATED) && $(BIN) generate $(GENERATED)
	@{ cat packaging/etc/copyright; printf 'Files: *\nCopyright: 2026 the authors of kthwd\nLicense: Apache-2.0\n On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.\n'; } > $(GENERATED)/copyright
	@printf 'kthwd (%s) stable; urgency=medium\n\n  * Commit %s; Kubernetes %s, etcd %s.\n\n -- kthwd maintainers <kthwd@example.com>  %s\n' \
		'$(VERSION:v%=%)-1' '$(COMMIT)' '$(KUBERNETES)' '$(ETCD)' "$$(LC_ALL=C date -u -R -d @$(SOURCE_DATE_EPOCH))" > $(GENERATED)/changelog
	@packaging/scripts.sh dist/scripts $(GENERATED) $(VERSION) $(KUBERNETES) $(ETCD)

install: generated ## put kthwd and its units, pages and settings below DESTDIR; existing settings stay
	packaging/install.sh '$(DESTDIR)' $(BIN) $(GENERATED)

clean: ## remove what was built; the data in ./.kthwd stays
	rm -rf bin dist
