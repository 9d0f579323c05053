package controllers

import (
	"log/slog"

	"k8s.io/apiserver/pkg/server/healthz"
	componentbaseconfig "k8s.io/component-base/config"

	"kthwd/appliance/lease"
	"kthwd/appliance/logging"
	"kthwd/appliance/program"
)

// Config is the input of NewManager and NewScheduler.
type Config struct {
	Args     []program.Arg // the program's command line, without feature gates
	Identity string        // of this controller, as the holder of a lease
	Fence    *lease.Fence
	Pause    *lease.Pause
	Term     func(args []program.Arg) []program.Arg // the command line of the next term of kube-controller-manager; nil for Args
	Live     *Live                                  // the kubeconfig of Args, if its clients should follow it; may be nil
	Alive    healthz.HealthChecker
	Logs     *logging.Logs
}

// common is shared by both programs.
type common struct {
	name     string
	args     []program.Arg
	forTerm  func([]program.Arg) []program.Arg
	identity string
	record   *lease.Record
	fence    *lease.Fence
	pause    *lease.Pause
	live     *Live
	alive    healthz.HealthChecker
	logs     *logging.Logs
	log      *slog.Logger
}

func newCommon(name string, c Config) common {
	return common{
		name: name, args: c.Args, forTerm: c.Term, identity: c.Identity, record: lease.NewRecord(name, c.Identity),
		fence: c.Fence, pause: c.Pause, live: c.Live, alive: c.Alive, logs: c.Logs, log: c.Logs.Logger(name),
	}
}

// Name implements supervise.Component.
func (c *common) Name() string { return c.name }

// Record returns the program's lease, for the status.
func (c *common) Record() *lease.Record { return c.record }

func (c *common) lease(election componentbaseconfig.LeaderElectionConfiguration, client *leaseClient) *lease.Lease {
	return lease.New(lease.Config{
		Component: c.name, Identity: c.identity, Election: election, Client: client.current, ForTerm: client.forTerm,
		Fence: c.fence, Record: c.record, Pause: c.pause, Log: c.log,
	})
}
