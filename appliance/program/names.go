package program

// The names of the programs and of kthwd's own load balancer, as they appear in
// logs, metrics, status and flags.
const (
	Etcd              = "etcd"                    // the etcd member
	APIServer         = "kube-apiserver"          // the Kubernetes API server
	ControllerManager = "kube-controller-manager" // Kubernetes' controllers
	Scheduler         = "kube-scheduler"          // Kubernetes' scheduler
	Kubernetes        = "kubernetes"              // log lines of code that the three share
	LB                = "lb"                      // the load balancer
)
