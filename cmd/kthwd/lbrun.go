package main

import (
	"context"
	"path/filepath"
	"strings"

	"kthwd/appliance/config"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/observe"
	"kthwd/appliance/status"
	"kthwd/appliance/tune"
)

// balancerUnit is the unit of a load balancer, for advice.
const balancerUnit = "kthwd-lb"

// balancerRun returns the files in which a load balancer records its run: beside its status
// socket, which no two of them share. ok is false without a socket.
func balancerRun(socket string) (_ lastrun.Files, ok bool) {
	if socket == "" {
		return lastrun.Files{}, false
	}
	return lastrun.In(filepath.Join(filepath.Dir(socket), strings.TrimSuffix(filepath.Base(socket), ".sock")+"-run")), true
}

// watchOver begins the record of this run, if there is a place for it, and the watch over
// descriptors. Both end with the returned function.
func (b *balancer) watchOver(ctx context.Context, socket string) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	b.machine = observe.New(observe.Config{Unit: balancerUnit, Log: b.log})
	go b.machine.Run(ctx)
	if files, ok := balancerRun(socket); ok {
		b.record = lastrun.Begin(files, lastrun.Start{Version: version, Started: b.app.started, Limit: tune.GroupMemory(), Unit: balancerUnit, Log: b.log, TakesOver: b.app.inherits.predecessor != 0})
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
		return balancerRun(c.StatusSocket)
	}
	return lastrun.In(c.Controller.Layout().Run()), true
}
