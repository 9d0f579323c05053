// Package program holds what is known of the four embedded programs before any of
// them is linked: their names, and the guide's unit files as data.
//
// EtcdArgs, APIServerArgs, ControllerManagerArgs and SchedulerArgs each return the
// flags of one program in the guide's order. A command line is made in this order:
//
//	users := program.ParseUser(cfg.EtcdArgs)
//	users, warnings, errs := program.CheckOwned(program.Etcd, ours, users)
//	merged, overrides := program.Merge(program.Etcd, ours, users)
//
// CheckOwned comes before Merge, or a user's argument could override a flag that
// other parts of kthwd rely on. docs/tutorial-differences.md explains every line
// that is not the guide's own, and a test holds the two together.
//
// The package does not parse values; cmdline does, with upstream's parsers. It
// links neither Kubernetes nor etcd.
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
