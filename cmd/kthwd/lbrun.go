package main

import (
	"context"

	"kthwd/appliance/config"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/observe"
	"kthwd/appliance/status"
	"kthwd/appliance/tune"
	"kthwd/cmd/kthwd/cli"
)

// balancerUnit is the unit of a load balancer, for advice.
const balancerUnit = "kthwd-lb"

// watchOver begins the record of this run, if there is a place for it, and the watch over
// descriptors. Both end with the returned function.
func (b *balancer) watchOver(ctx context.Context, socket string) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	b.machine = observe.New(observe.Config{Unit: balancerUnit, Log: b.log})
	go b.machine.Run(ctx)
	if files, ok := cli.BalancerRun(socket); ok {
		b.record = lastrun.Begin(files, lastrun.Start{Version: cli.Version, Started: b.app.started, Limit: tune.GroupMemory(), Unit: balancerUnit, Log: b.log, TakesOver: b.app.inherits.predecessor != 0})
		b.record.Keep()
		go b.record.Beat(ctx, nil)
	}
	return stop
}

// observed adds to the report what the watches have found.
func (b *balancer) observed(r *status.Report) {
	r.Observed = append(r.Observed, b.machine.Findings()...)
	r.LastRun = b.record.Before()
}

// runOf tells where the kthwd of a configuration records its run.
func runOf(c config.Config) (lastrun.Files, bool) {
	if c.Is(config.RoleLB) && !c.Is(config.RoleController) {
		return cli.BalancerRun(c.StatusSocket)
	}
	return lastrun.In(c.Controller.Layout().Run()), true
}
