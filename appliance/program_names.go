package appliance

// The programs' names, as a person knows them.
const (
	nameEtcd              = "etcd"
	nameAPIServer         = "kube-apiserver"
	nameControllerManager = "kube-controller-manager"
	nameScheduler         = "kube-scheduler"
	nameKubernetes        = "kubernetes" // log lines of code that all three share
)
