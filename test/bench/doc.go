// Package bench compares kthwd with the four programs that it embeds: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler, built from the
// same go.mod with the same compiler flags and started as the tutorial's unit
// files start them.
//
//	make bench                                               # everything, about 20 minutes
//	KTHWD_BENCH_ROUNDS=3 KTHWD_BENCH_ONLY=start make bench   # a part of it
//	make bench-previous                                      # beside the kthwd of the minor before
//	make bench-hardening                                     # what kthwd's own hardening costs
//	KTHWD_BENCH_UPTO=default KTHWD_BENCH_ONLY=throughput make bench-hardening   # two variants and one part of it
//	make bench-backup SIZE=1G                                # what a backup costs
//	make bench-scale SIZES=20/300                            # clusters of other sizes
//	make bench-far FAR=2000/60000                            # clusters that are written to etcd directly
//	make test-conformance                                    # conformance tests on both sides, no figures
//
// It prints a table and one line of JSON that begins with {"bench":"kthwd". A
// target that is missed is reported and fails nothing; what breaks fails:
// a program that ends, a request that is refused, an exit code other than 0.
//
// To publish a run, append one line to history.jsonl here, then run make golden, which
// writes docs/performance.md:
//
//	{"commit":"…","date":"…","machine":"two cores; nothing else ran","note":"…","run":LINE}
//
// where LINE is the line of JSON, and date is the day of the commit.
//
// # What is compared
//
// Both sides have a fresh directory, free ports, the machine's first address
// that is not loopback as advertise address, --v=2, and log files. The separate
// programs have the tutorial's flags in their modern form (separate_test.go)
// and upstream's defaults for all that the tutorial does not set; all four are
// started at the same moment, as systemd does after a boot, and again 5 s after
// a failure, as Restart=on-failure RestartSec=5 does. Their certificates are
// there beforehand; kthwd makes its own within the measured time. kthwd has
// no flags but addresses, ports and verbosity.
//
// All programs are copies, as an installation writes them (kthwtest.Installed).
//
// The sides take turns, A B A B …, and each turn waits until the machine is
// quiet. The parts, by the names that KTHWD_BENCH_ONLY takes, separated by commas:
//
//	start       exec to /readyz, to ServiceAccount default/default and to the first pod
//	            bound; SIGTERM, then exec to /readyz on the same data
//	idle        CPU and memory of a fresh cluster that nobody uses
//	throughput  ConfigMaps of 1 KiB: create, get, list (1000 of them), delete, 32 clients
//	pods        1000 pods on 100 fake nodes, from the first create to the last binding, by
//	            clients that speak protobuf, as controllers do
//	stop        SIGTERM to exit 0 while 50 clients watch; for information, the same of a
//	            kube-apiserver by itself
//
// idle, throughput, pods and stop share one control plane in each turn, in this order.
//
// Settings, all from the environment:
//
//	KTHWD_BENCH=1             run; without it the benchmark is skipped
//	KTHWD_BENCH_ROUNDS=N      rounds of each part; 5 of start and 3 of the others by default
//	KTHWD_BENCH_ONLY=a,b      these parts only
//	KTHWD_BENCH_IDLE=60s      length of the CPU window; it begins half as long after ready,
//	                          and memory is read when this time has passed since ready
//	KTHWD_BENCH_PHASE=5s      length of each throughput phase
//	KTHWD_BENCH_QUIET=10s     how long to wait for a quiet machine before a turn
//	KTHWD_BENCH_REDO=0        how often to repeat a turn of which others used more than 15 %
//	                          of the machine
//	KTHWD_BENCH_DIR=DIR       keep data and logs there; else they are removed
//	KTHWD_BENCH_KTHWD_ARGS=…  further arguments of kthwd, separated by spaces
//	KTHWD_BENCH_PREVIOUS=FILE another kthwd takes the place of the separate programs, and the line
//	                          of JSON begins with {"bench":"kthwd-previous"
//	KTHWD_BENCH_PROFILE=30s   save a CPU profile of kthwd, this long, from within the idle
//	                          window to KTHWD_BENCH_DIR; spoils that turn's numbers a little
//
// # Sizes
//
// make bench-scale runs the two sides in turns with clusters of SIZES, nodes and pods such as
// 100/3000,500/15000. The nodes have clients that do what kubelets do: each renews a lease every
// 10 s, reports the node every 5 minutes, watches its node and its pods, and writes the status of
// its pods. One turn: the pods are created and run; twice KTHWD_BENCH_IDLE with heartbeats only, the
// second half of which is measured; single requests beside the heartbeats; the kubelets stop, and the
// cluster is measured without a client; stop, start with the data, the first binding and lists.
// KTHWD_BENCH_ROUNDS is 1 here. It prints a table for each size, the slope of each figure for
// 1000 pods more, and one line of JSON that begins with {"bench":"kthwd-scale". The clients share the
// machine with the sides, so that the sizes that fit depend on it. A small size, such as 20/300
// with KTHWD_BENCH_IDLE=20s, shows that all of it works and takes five minutes.
//
// With PUBLISH="two cores; nothing else ran" it appends the line to scale.jsonl, draws docs/scale.svg
// and writes the section of docs/performance.md.
//
// # Further
//
// make bench-far measures clusters that are too large to be made through the API first. Each side makes one
// node and one pod and stops; an etcd on its data, without fsync, gets all others, as an API server
// stores them; then the side starts with them beside the kubelets of all nodes. It measures the start, single requests
// right after it and later, the memory, the CPU time of the heartbeats, writes beside them, the cluster
// without a client, and the stop. KTHWD_BENCH_IDLE is the window as above. With LONE=1 there is only
// kthwd, no kubelet, and no more than the start, the memory half a minute later and the stop: on two cores
// that is the way to the largest sizes, for their kubelets take more of the machine than the control plane.
// It prints one line of JSON for each size, which begins with {"bench":"kthwd-far".
//
// # Backups
//
// make bench-backup fills etcd with SIZE of values that cannot be compressed, and puts a small
// value every few milliseconds. Turns with a kthwd backup create, as the schedule runs it, and
// quiet ones as long as that alternate, KTHWD_BENCH_ROUNDS of each. It prints the ratio of the
// longest puts, how much the daemon's RSS grows, the highest RSS of the child that verifies, and
// the time of each step; last, one line of JSON that begins with
// {"bench":"kthwd-backup". Memory is judged as the kernel counts it: a process's RSS has the
// garbage that its collector has not taken yet, and the pages of the database that the child has
// restored, which the kernel takes back when others need them; the lines beside it leave out the
// latter.
//
// # Conformance
//
// make test-conformance runs Kubernetes' own conformance tests on both sides at the same time.
// testdata/conformance.txt says for each whether it needs a kubelet; those that need none run, in a
// cluster whose two nodes are only objects (appliance/fakenode). Their names decide: a test that the
// four programs pass must pass on kthwd. One that fails on both sides is printed and fails nothing.
// Reports, logs and the results by name are in dist/conformance. FOCUS='Watchers|Lease' runs some of them.
//
// # What it does not say
//
// Absolute times are this machine's: the clients run on the same cores as the
// servers and are part of every number, and a disk that syncs faster or slower
// moves the sides differently. Ratios carry further, and only those of one run.
// One controller is measured: no replication, no load balancer, no kubelet,
// nodes that exist on paper only. Lists are read whole but neither unpacked nor
// decoded, so that they cost the server and not the client. A RSS counts pages that several
// processes share in each of them; PSS, printed beside it, does not.
package bench
