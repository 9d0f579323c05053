// Package lbtest is shared by the load balancer's failure table (test/lb) and its
// benchmark (test/benchlb): a separate machine for the test, network namespaces,
// processes, and the balancers under comparison.
//
//	func TestMain(m *testing.M) { lbtest.Main(m, map[string]lbtest.Helper{"backend": runBackend}) }
//
//	func TestIt(t *testing.T) {
//		if !lbtest.OwnMachine(t) {
//			return // the test has run there
//		}
//		ns := lbtest.NewNamespace(t)
//		backend := lbtest.StartHelper(t, ns, "backend", "127.0.0.11:6443")
//		…
//	}
//
// OwnMachine runs the test again as the first process of new process, mount and
// network namespaces, so that everything it starts ends with it, however it ends. A
// Namespace is a further network inside; it ends with its last process, and has no
// name that could be left behind.
//
// Nothing here imports Kubernetes. kthwd is run as a program, named by KTHWD_LB_BIN
// (any program that takes the flags of kthwd --role=lb) or KTHWD_BIN.
package lbtest
