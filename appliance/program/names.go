// Package program describes the four embedded programs without linking them: their
// names, and the guide's unit files as data.
//
// EtcdArgs, APIServerArgs, ControllerManagerArgs and SchedulerArgs each return the
// flags of one program in the guide's order. Build a command line in these steps:
//
//	users := program.ParseUser(cfg.EtcdArgs)
//	users, warnings, errs := program.CheckOwned(program.Etcd, ours, users)
//	merged, overrides := program.Merge(program.Etcd, ours, users)
//
// CheckOwned comes before Merge; otherwise a user's argument could override a flag
// that other parts of kthwd rely on. docs/tutorial-differences.md explains every line
// that differs from the guide, and a test keeps the two in step.
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
