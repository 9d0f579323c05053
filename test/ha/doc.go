// Package ha breaks a cluster of three controllers and a load balancer in every way
// that an operator will meet, while clients work through the balancer, and holds
// it to what it promises: the failure table of high availability.
//
//	make test-e2e                                       # the table once; in namespaces as root, else on loopback
//	make soak                                           # its rows in random order, 10 minutes (SOAK=1h for longer)
//	KTHWD_SOAK_SEED=42 make soak                        # the same order and the same victims again
//	KTHWD_HA_STRICT=1 make soak                         # a missed bound fails, however busy the machine
//	KTHWD_E2E=1 KTHWD_PREVIOUS=… go test -v -run TestUpgrade ./test/ha  # the same clients through another minor, back, and up for good
//	KTHWD_HA_ROWS=kill-leader,stop KTHWD_E2E=1 go test -v -run TestFaults ./test/ha
//
// KTHWD_HA_LOGS=DIR keeps the whole log of each machine. As root it needs ip
// (iproute2), mkfs.ext4 and mount; what is missing skips it with the reason. It
// prints a table and one line of JSON that begins with {"table":"kthwd-ha".
//
// # The cluster
//
// kthwd pki init makes a directory for each machine, and kthwd runs on the
// kthwd.yaml in it, as docs/operations/several-controllers.md says. Each machine has a network, a
// host name and, when it is a controller, a disk of its own: an ext4 image, which
// can stall (FIFREEZE) and be filled. Neighbours on the bridge are fixed, so that
// a machine whose link is down is silent and not reported unreachable. A process
// that ends is started again a second later, as by systemd with Restart=always;
// the table counts how often.
//
// # The clients
//
// Four impatient writers give an attempt one second, and make a new connection for
// the next; a patient one is client-go as it comes, with no timeout. Two kinds of
// writes: a counter that goes up by one with the resource version of the last
// write, and objects that are made and deleted. Three watchers follow everything and
// resume where they were. Replica sets come and go, so that kube-controller-manager
// and kube-scheduler always have something to do.
//
// # What is checked after each fault
//
//   - every acknowledged write is in etcd's own history, at the revision that was
//     answered; none is there twice; counters have no gap (history.lost, doubled);
//   - each watcher saw exactly the events of etcd's history, in order (unwatched).
//     Where no API server goes on that could know them all, a watcher may have to
//     list anew, as any client of Kubernetes, and must find what etcd had then;
//   - every API server lists what that history leads to, and the members' data have
//     the same hash (different, sameHash);
//   - every write of kube-controller-manager and kube-scheduler, by the audit log of
//     the API server beside them, was made while their controller held the lease
//     in etcd's history (misdeeds);
//   - both programs go on: each has written something after the fault (awaitWork);
//   - all components of all machines are ready, the load balancer has no doubt about
//     any controller, and processes that had to survive have the same number.
//
// The checks are tested themselves, with histories in which something is wrong.
//
// # What the figures mean
//
// "one writer" is the longest that one impatient writer waited for an acknowledgement,
// from the fault until all was ready and at work again and a second more; it is what the reach
// is about where it is a time. "ready again" is from the end of the fault until every component was
// ready, "works again" from there until kube-controller-manager and kube-scheduler had both
// written something: a lease whose holder was killed has to run out first. "no write" is the longest time in which no writer had
// one, "patient" the longest wait of the patient one: a request that the lost leader
// of etcd had taken is answered after etcd's own 7 s at the latest.
//
// A figure that is missed is reported as missed, with the reason, and fails the test when
// it is three times what was promised and thirty times the longest wait of a writer just
// before the fault and after it, when one request in a hundred failed, or with KTHWD_HA_STRICT. The checks above fail it always.
//
// # What it does not say
//
// All machines share one kernel, its clock and its processors: round trips
// take microseconds, and a restart of one takes processor time from the others. A clock
// cannot jump here; TestLeaseOfAnotherClock is what there is.
package ha
