# `make demo` and `make test` set up what they need: on Debian, missing packages are installed with apt.

CARGO ?= cargo
BIN := target/release
RELEASE := $(CARGO) build --release --locked -p mesh-agent -p mesh-coordinator -p mesh-lab
# The network lab's tools; each is looked up by a file that its package brings.
PACKAGES := nft:nftables ip:iproute2 ping:iputils-ping wg:wireguard-tools wireguard-go:wireguard-go \
	iperf3:iperf3 conntrack:conntrack nginx:nginx-light tinyproxy:tinyproxy squid:squid openssl:openssl ethtool:ethtool \
	miniupnpd:miniupnpd-nftables tayga:tayga gcc:build-essential \
	iptables:iptables /usr/lib/cni/bridge:containernetworking-plugins
# What a cluster takes beside them. Go is not among it: Debian's is too old to build Kubernetes.
CLUSTER_PACKAGES := etcd:etcd-server containerd:containerd runc:runc busybox:busybox-static

.PHONY: demo demo-up demo-down test test-unit test-lab test-k8s test-chart test-machines test-guides deb matrix chaos events soak lint bench bench-memory bench-soak bench-relay bench-restart bench-roam bench-shards bench-storm bench-wire bench-links bench-profile bench-core bins setup clean

## demo: stands the village up, tells its story, and takes it down again
demo: bins
	$(BIN)/mesh-lab demo

## demo-up: leaves the village running and prints how to look inside
demo-up: bins
	$(BIN)/mesh-lab village up

## demo-down: removes it
demo-down: bins
	$(BIN)/mesh-lab village down

## test: everything that can fail: units, golden bytes, the simulator, real binaries in network namespaces
test: test-unit test-lab

# The simulator moves the session's clock, which no binary may link: it is tested in a build of its own.
test-unit: setup
	$(CARGO) test --locked --workspace --exclude mesh-engine --exclude mesh-lab --exclude mesh-benches
	$(CARGO) test --locked -p mesh-engine
	$(CARGO) test --locked -p mesh-engine --features virtual-time

# Lab tests that wait most of their time go two at a time; the others are alone, since CPU time is shared.
# Those that the manifest names take a feature each, and have targets of their own.
FEATURED_TESTS := $(shell sed -n 's/^name = "\(.*\)"/\1/p' benches/lab/Cargo.toml)
LAB_TESTS := $(filter-out $(FEATURED_TESTS),$(sort $(patsubst %/main,%,$(basename \
	$(subst benches/lab/tests/,,$(wildcard benches/lab/tests/*.rs benches/lab/tests/*/main.rs))))))
PATIENT_TESTS := bad_input dns_move ipv6 nat_layers nat_punch nat_rows near near_coordinator netcheck port_mapping \
	relays udp_blocked
BUSY_TESTS := $(filter-out $(PATIENT_TESTS),$(LAB_TESTS))
LAB := MESH_BIN_DIR=$(abspath $(BIN)) $(CARGO) test --locked
test-lab: bins
	$(LAB) -p mesh-lab $(PATIENT_TESTS:%=--test %) -- --test-threads=2
	$(LAB) -p mesh-lab --lib --bins $(BUSY_TESTS:%=--test %) -- --test-threads=1
	$(LAB) -p mesh-lab --doc
	$(LAB) -p mesh-benches -- --test-threads=1

## test-k8s: a real Kubernetes in the village; needs Go 1.24, and builds Kubernetes the first time: about ten minutes; ROUNDS=5 of 40 pods
test-k8s: bins
	@.ci/setup $(CLUSTER_PACKAGES)
	directory=$$(benches/lab/kubernetes/build) && MESH_KUBERNETES_DIR=$$directory MESH_BIN_DIR=$(abspath $(BIN)) MESH_POD_ROUNDS=$(or $(ROUNDS),5) \
		$(CARGO) test --locked -p mesh-lab --features kubernetes --test k8s -- --nocapture --test-threads=1

## test-chart: the Helm chart against the overlays of kustomize, with a real helm; builds Kubernetes and helm as test-k8s does
test-chart:
	directory=$$(benches/lab/kubernetes/build helm) && MESH_KUBERNETES_DIR=$$directory \
		$(CARGO) test --locked -p mesh-lab --features helm --test chart

## test-machines: the packages on Debians with a systemd of their own, in the village; installs Debian once, for later runs too
test-machines: deb
	@.ci/setup debootstrap:debootstrap systemd-nspawn:systemd-container
	MESH_PACKAGES=$(abspath target/debian) MESH_BIN_DIR=$(abspath $(BIN)) \
		$(CARGO) test --locked -p mesh-lab --features machines --test machines -- --nocapture --test-threads=1

## test-guides: deploy/k8s/README.md, followed word by word on such Debians; builds Kubernetes, kubeadm, helm and flannel as test-k8s does
test-guides: deb
	@.ci/setup debootstrap:debootstrap systemd-nspawn:systemd-container busybox:busybox-static
	directory=$$(benches/lab/kubernetes/build kubeadm helm flannel) && MESH_KUBERNETES_DIR=$$directory \
		MESH_PACKAGES=$(abspath target/debian) MESH_BIN_DIR=$(abspath $(BIN)) \
		$(CARGO) test --locked -p mesh-lab --features guides --test guides -- --nocapture --test-threads=1

## deb: a Debian package of each daemon, in target/debian
deb: bins
	@command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb@3.8.0
	$(CARGO) deb --no-build -p mesh-agent
	$(CARGO) deb --no-build -p mesh-coordinator

## matrix: the 81 pairs of NAT types on real kernels, one after the other; RUNS=1 SEED=1 IPV6=
matrix: bins
	$(BIN)/mesh-lab matrix --runs $(or $(RUNS),1) --seed $(or $(SEED),1) $(if $(IPV6),--ipv6)

## chaos: 500 times kill -9 of anything in the village, under traffic; about half an hour
chaos: bins
	MESH_BIN_DIR=$(abspath $(BIN)) MESH_CHAOS_KILLS=500 \
		$(CARGO) test --locked -p mesh-lab --test chaos -- --nocapture

## events: 1,000 random events in the village, under traffic: roaming, sleep, NATs, relays, the coordinator; EVENTS=1000 SEED=n
events: bins
	MESH_BIN_DIR=$(abspath $(BIN)) MESH_EVENTS=$(or $(EVENTS),1000) $(if $(SEED),MESH_EVENTS_SEED=$(SEED)) \
		$(CARGO) test --locked -p mesh-lab --test events -- --nocapture

## soak: an hour of such events without the coordinator, which then comes back; MINUTES=60 SEED=n
soak: bins
	MESH_BIN_DIR=$(abspath $(BIN)) MESH_SOAK_MINUTES=$(or $(MINUTES),60) $(if $(SEED),MESH_EVENTS_SEED=$(SEED)) \
		$(CARGO) test --locked -p mesh-lab --test soak -- --nocapture

## sim: random worlds in the simulator for so many virtual node-hours, from a seed on; HOURS=100000 SEED=1, a seed alone: SIM_SEED=n
sim: setup
	SIM_HOURS=$(or $(HOURS),100000) SIM_FIRST=$(or $(SEED),1) $(CARGO) test --locked -p mesh-engine \
		--features virtual-time --test sim random_worlds -- --nocapture

## lint: formatting, clippy, docs, dependencies
lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p mesh-engine --all-targets --features virtual-time -- -D warnings
	$(CARGO) clippy --locked -p mesh-lab --all-targets --features kubernetes,machines,guides,helm -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	.ci/deny

## bench: the budgets, as a table and as JSON
bench: bins
	$(CARGO) bench --locked -p mesh-benches --bench budgets

## bench-memory: what an agent takes with 10, 200 and 1,000 peers that are idle, and one that does Kubernetes
bench-memory: bins
	$(CARGO) bench --locked -p mesh-benches --bench budgets -- memory

## bench-soak: minutes of mixed load in which nothing may grow; MINUTES=10
bench-soak: bins
	$(CARGO) bench --locked -p mesh-benches --bench soak

## bench-relay: what our relay pays for a packet, beside coturn
bench-relay: bins
	@.ci/setup turnserver:coturn
	$(CARGO) bench --locked -p mesh-benches --bench relay

## bench-restart: for how long nothing arrives when an agent is restarted under traffic, or killed; TRIALS=50
bench-restart: bins
	MESH_BIN_DIR=$(abspath $(BIN)) $(CARGO) bench --locked -p mesh-benches --bench restart

## bench-roam: how soon a pair talks again after its network has changed, beside nebula; TRIALS=200 KINDS=roam,wake PEERS=none
bench-roam: bins
	MESH_BIN_DIR=$(abspath $(BIN)) $(CARGO) bench --locked -p mesh-benches --bench roam

## bench-shards: one engine and two in an agent that talks to four peers at once
bench-shards: bins
	$(CARGO) bench --locked -p mesh-benches --bench shards

## bench-storm: a thousand agents come back after their coordinator was killed: time and CPU
bench-storm: setup
	$(CARGO) bench --locked -p mesh-coordinator --bench storm

## bench-wire: the data plane beside wireguard-go, boringtun-cli and nebula; ROUNDS=5 SECONDS=3
bench-wire: bins
	$(CARGO) bench --locked -p mesh-benches --bench wire

## bench-links: the same over slower links: 40 ms and 1 % loss, a far bottleneck of 100 Mbit/s, and one's own
bench-links: bins
	$(CARGO) bench --locked -p mesh-benches --bench wire -- lossy narrow uplink

## bench-profile: where the cycles of one TCP stream go, ours and wireguard-go's
bench-profile: bins
	@.ci/setup perf:linux-perf
	$(CARGO) bench --locked -p mesh-benches --bench wire -- profile tcp-1 wireguard-go

## bench-core: what a packet costs in the engine, without IO, beside the bare AEAD
bench-core: setup
	$(CARGO) bench --locked -p mesh-engine --bench core
	$(CARGO) bench --locked -p mesh-agent --bench merge

bins: setup
	$(RELEASE)

setup:
	@.ci/setup $(PACKAGES)

clean:
	$(CARGO) clean
