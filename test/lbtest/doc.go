// Package lbtest is what the load balancer's failure table (test/lb) and its
// benchmark (test/benchlb) share: a machine of the test's own, network
// namespaces, processes, and the balancers that are compared.
//
//	func TestMain(m *testing.M) { lbtest.Main(m, map[string]lbtest.Helper{"backend": runBackend}) }
//
//	func TestIt(t *testing.T) {
//		if !lbtest.OwnMachine(t) {
//			return // it has run there
//		}
//		ns := lbtest.NewNamespace(t)
//		backend := lbtest.StartHelper(t, ns, "backend", "127.0.0.11:6443")
//		…
//	}
//
// OwnMachine runs the test again as the first process of fresh process, mount
// and network namespaces: whatever it starts ends with it, however it ends. A
// Namespace is one more network within; it goes when its last process has gone,
// and has no name that could be left behind.
//
// Nothing here imports Kubernetes. kthwd is a program that is run, named by
// KTHWD_LB_BIN (any program that takes the flags of kthwd --role=lb) or KTHWD_BIN.
package lbtest
