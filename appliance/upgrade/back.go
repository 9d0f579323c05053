package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	grpcstatus "google.golang.org/grpc/status"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/status"
)

// ErrFinished is the reason why there is no way back. The caller knows which copy leads back.
var ErrFinished = errors.New("the upgrade is finished: what was stored since may be unreadable for the version of before")

const requestTimeout = 10 * time.Second

// MayGoBack refuses a way back that does not exist, before anything is touched.
func (v View) MayGoBack() error {
	switch v.Judge() {
	case StageFinishing:
		return ErrFinished
	case StageNone:
		if v.State != nil && v.State.Finished {
			return ErrFinished
		}
		return advice.With(errors.New("no upgrade is under way that could be taken back"), look)
	case StageReturning, StageRolling:
		if v.Leaderless {
			return advice.With(errors.New("etcd has no leader"), "kthwd status says which controllers are missing")
		}
		return nil
	}
	if all := v.troubles(); len(all) > 0 {
		return advice.With(fmt.Errorf("etcd cannot go back yet, nothing was changed: %s", and(all)), "start what is named: every member must take part; then kthwd upgrade back again")
	}
	return nil
}

// Returner takes an upgrade back.
type Returner struct {
	Client *clientv3.Client // of the member here
	Look   looker
	Say    func(step, text string)
}

// Back tells etcd to go back to the older minor, if it has left that, and waits until every
// controller may run it. It can be repeated after any interruption.
func (r Returner) Back(ctx context.Context) error {
	v, err := r.Look(ctx)
	if err == nil {
		err = v.MayGoBack()
	}
	if err != nil {
		return err
	}
	if err := r.setOnward(ctx, v.State, false); err != nil {
		return goOn("the way back is not ready", r.because(ctx, err), again)
	}
	switch {
	case v.Target != "":
		r.Say("enable", "etcd's downgrade to "+etcdfiles.MinorOf(v.Target)+" is enabled already")
	case v.etcdMinors && v.Judge() == StageReached:
		if err := r.enable(ctx, v.State.fromEtcd()); err != nil {
			return r.interrupted(ctx, err)
		}
	default:
		r.Say("etcd", "stores everything as "+v.State.fromEtcd()+" reads it: nothing to do")
	}
	return r.await(ctx)
}

// enable begins etcd's own downgrade.
func (r Returner) enable(ctx context.Context, minor string) error {
	for _, step := range []struct {
		name   string
		action clientv3.DowngradeAction
		done   string
	}{
		{"validate", clientv3.DowngradeValidate, "etcd can go back to " + minor},
		{"enable", clientv3.DowngradeEnable, "etcd goes back to " + minor + ": its members write their databases so that it can read them"},
	} {
		if err := r.downgrade(ctx, step.action, minor); err != nil {
			return advice.With(fmt.Errorf("%s etcd's downgrade to %s: %w", step.name, minor, err), "kthwd etcd status shows the members; kthwd upgrade back tries again, and goes on where it was")
		}
		r.Say(step.name, step.done)
	}
	return nil
}

func (r Returner) downgrade(ctx context.Context, action clientv3.DowngradeAction, minor string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := r.Client.Downgrade(ctx, action, minor)
	if s, ok := grpcstatus.FromError(err); err != nil && ok && s.Message() != "" {
		return errors.New(s.Message())
	}
	return err
}

// again is how a way back that was begun goes on.
const again = "kthwd upgrade back goes on where it was; kthwd upgrade back --cancel ends it"

// interrupted says why a request to etcd has failed, if the kthwd here has ended.
func (r Returner) interrupted(ctx context.Context, err error) error {
	if ended := r.because(ctx, err); errors.Is(ended, status.ErrNotRunning) {
		return goOn("the way back was interrupted", ended, again)
	}
	return err
}

// because is the end of the kthwd here, if that is why a request to etcd has failed, else err.
func (r Returner) because(ctx context.Context, err error) error {
	if _, ended := r.Look(ctx); errors.Is(ended, status.ErrNotRunning) {
		return ended
	}
	return err
}

// await waits until the older versions may run on every controller that has the newer ones.
func (r Returner) await(ctx context.Context) error {
	said := map[string]bool{}
	err := await(ctx, r.Look, func(v View) []string { return v.say(r.Say, said) })
	if err != nil {
		return goOn("the way back is not ready", err, again)
	}
	return nil
}

// say tells each controller's step once, and returns those that are not ready.
func (v View) say(say func(step, text string), said map[string]bool) (waiting []string) {
	for _, c := range v.Controllers {
		stored := v.etcdMinors && !behind(v.State.From.Etcd, c.Storage) && c.Away == ""
		if stored && !c.Old && !said["stored "+c.Name] {
			said["stored "+c.Name] = true
			say("stored", c.Name+": the database of etcd has the format of "+etcdfiles.MinorOf(c.Storage))
		}
		if c.Away != "" && !said["away "+c.Name] {
			said["away "+c.Name] = true
			say("waiting", c.Name+" does not answer: "+c.Away)
		}
		switch {
		case c.Old:
		case !c.MayGoBack || c.Away != "":
			waiting = append(waiting, c.Name)
		case !said[c.Name]:
			said[c.Name] = true
			say("record", c.Name+": the old kthwd may run again")
		}
	}
	return waiting
}

const (
	tryCancel = "kthwd upgrade back --cancel tries again"
	// noteWithin bounds the wait for the records of all controllers: each looks at etcd every 2 s and
	// writes every 5 s. A kthwd that does not know State.Onward notes nothing before etcd goes on.
	noteWithin = 20 * time.Second
	// cancelWithin bounds the wait for etcd, which takes no longer than one request once there is a leader.
	cancelWithin = time.Minute
)

// Cancel lets etcd go on to the newer minor. Each controller notes before that the old kthwd may
// not run: etcd, once told, changes its databases within moments, and an old kthwd that was let in
// would end with etcd's own error.
func (r Returner) Cancel(ctx context.Context) error {
	v, err := r.Look(ctx)
	switch {
	case err != nil:
		return err
	case v.Leaderless:
		return advice.With(errors.New("etcd has no leader"), "kthwd status says which controllers are missing")
	case v.Target == "":
		return advice.With(errors.New("no way back is under way: etcd's downgrade is not enabled"), look)
	}
	if err = r.refuseOld(ctx, v.State); err == nil {
		err = r.disable(ctx)
	}
	if err != nil {
		return goOn("etcd's downgrade may still be enabled", err, tryCancel)
	}
	r.Say("cancel", "etcd goes on with the upgrade as soon as all its members are new")
	return nil
}

// refuseOld waits until no controller lets the old kthwd run. One that is away is not waited for, nor
// one that cannot write its record: its old kthwd would be refused by etcd.
func (r Returner) refuseOld(ctx context.Context, s *State) error {
	if s == nil || s.Finished { // somebody else has told etcd to go back
		return nil
	}
	if err := r.setOnward(ctx, s, true); err != nil {
		return r.because(ctx, err)
	}
	within, cancel := context.WithTimeout(ctx, noteWithin)
	defer cancel()
	leaderless := false
	err := await(within, r.Look, func(v View) []string {
		leaderless = v.Leaderless
		return v.names(func(c Controller) bool { return c.MayGoBack && c.Away == "" && !c.Old })
	})
	switch {
	case err != nil && (leaderless || ctx.Err() != nil || errors.Is(err, status.ErrNotRunning)):
		return err
	case err != nil:
		r.Say("record", "not every controller has noted that the old kthwd may not run: "+err.Error())
	default:
		r.Say("record", "the old kthwd may not run")
	}
	return nil
}

// setOnward records whether the way back is given up.
func (r Returner) setOnward(ctx context.Context, s *State, onward bool) error {
	if s == nil || s.Onward == onward {
		return nil
	}
	changed := *s
	changed.Onward = onward
	return changed.save(ctx, r.Client)
}

// disable ends etcd's downgrade. etcd answers a cancellation that has failed as one that has not
// (etcdserver/v3_server.go:downgradeCancel), so it is looked at, and told again.
func (r Returner) disable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cancelWithin)
	defer cancel()
	var refused error
	err := await(ctx, r.Look, func(v View) []string {
		switch {
		case v.Target == "":
			return nil
		case !v.Leaderless:
			refused = r.downgrade(ctx, clientv3.DowngradeCancel, "")
		}
		return []string{"etcd"}
	})
	if err != nil && ctx.Err() != nil && refused != nil {
		err = fmt.Errorf("%w (%w)", err, refused)
	}
	return err
}
