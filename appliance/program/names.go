package program

// The programs' names, as a person knows them.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kubernetes        = "kubernetes" // log lines of code that all three share
)
