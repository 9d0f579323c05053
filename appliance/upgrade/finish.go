package upgrade

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
)

const look = "kthwd upgrade status shows every controller"

// MayFinish refuses to finish an upgrade as long as a controller could not follow.
func (v View) MayFinish() error {
	switch v.Judge() {
	case StageNone, StageFinishing:
		if v.State != nil && v.State.Finished {
			return nil // it may be repeated
		}
		return advice.With(errors.New("no upgrade is under way"), look)
	case StageBack, StageReturning:
		return advice.With(fmt.Errorf("a way back to etcd %s is under way", etcdfiles.MinorOf(v.Target)), "kthwd upgrade back --cancel ends it; then finish")
	}
	all := v.troubles()
	for _, c := range v.Controllers {
		switch {
		case c.Away != "":
		case c.Old:
			all = append(all, fmt.Sprintf("%s is still on Kubernetes %s, etcd %s", c.Name, c.Kubernetes, c.Etcd))
		case v.etcdMinors && behind(c.Storage, v.State.To.Etcd):
			all = append(all, fmt.Sprintf("etcd of %s still has the storage version %s", c.Name, c.Storage))
		}
	}
	all = append(all, v.differing()...)
	if len(all) == 0 {
		return nil
	}
	return advice.With(fmt.Errorf("the upgrade %s cannot be finished yet: %s", v.State, strings.Join(all, "; ")), "upgrade or start what is named, then finish; "+look)
}

// differing names the controllers with another version than the first new one.
func (v View) differing() (all []string) {
	var first *Controller
	for i, c := range v.Controllers {
		switch {
		case c.Old || c.Away != "":
		case first == nil:
			first = &v.Controllers[i]
		case c.Kthwd != first.Kthwd || c.Kubernetes != first.Kubernetes || c.Etcd != first.Etcd:
			all = append(all, fmt.Sprintf("%s has kthwd %s, Kubernetes %s, etcd %s, and %s has %s, %s, %s", c.Name, c.Kthwd, c.Kubernetes, c.Etcd, first.Name, first.Kthwd, first.Kubernetes, first.Etcd))
		}
	}
	return all
}

// Finish records that the upgrade of v is finished. The controllers follow within seconds.
func (v View) Finish(ctx context.Context, client *clientv3.Client, by string) error {
	if err := v.MayFinish(); err != nil || v.State.Finished {
		return err
	}
	s := *v.State
	s.Finished, s.By, s.Since = true, by, time.Now().UTC().Truncate(time.Second)
	err := s.save(ctx, client)
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return goOn("the upgrade is not finished", err, "kthwd etcd space --fix makes room in etcd; then finish")
	case err != nil && !errors.Is(err, errChanged):
		return goOn("the upgrade may not be finished", err, "kthwd upgrade finish again, once etcd answers: kthwd etcd status shows it")
	}
	return err
}

// AwaitNoted waits until every controller that answers has noted the end of the upgrade.
func AwaitNoted(ctx context.Context, look func(context.Context) (View, error)) (v View, err error) {
	err = await(ctx, look, func(now View) []string { v = now; return v.unfinished() })
	if err != nil {
		return v, goOn("the upgrade is finished, but not every controller has noted it yet", err, "kthwd upgrade finish again: it waits, and says which controllers to restart")
	}
	return v, nil
}

// unfinished names the controllers that have not noted the end yet.
func (v View) unfinished() []string {
	return v.names(func(c Controller) bool { return c.Away == "" && !c.Old && !c.noted })
}
