package ha

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/upgrade"
	"kthwd/test/kthwtest"
	"kthwd/test/lbtest"
)

const statusRate = 4 // componentstatuses a second

// TestUpgrade moves three controllers behind a balancer to another minor of Kubernetes and etcd, back,
// and up again for good, one after the other each time, while the clients of TestFaults work.
func TestUpgrade(t *testing.T) {
	requireE2E(t)
	previous := kthwtest.Previous(t)
	requireMachine(t)
	if !lbtest.OwnMachine(t) {
		return
	}
	var results []*result
	t.Cleanup(func() { whatFailed(os.Stdout, results) }) // after all logs
	r := newRig(t, true, previous)
	r.random = rand.New(rand.NewPCG(seed(t), 0))
	for _, w := range upgradeRows(kthwtest.Binary(t), previous) {
		res, goOn := r.row(t, w)
		results = append(results, res)
		if !goOn {
			break
		}
	}
	report(t, results)
}

// upgradeRows need one another: each begins where the one before ends.
func upgradeRows(newer, older string) []*row {
	const reach = "0 failed requests, 0 lost events, components always healthy"
	return []*row{
		{name: "upgrade", fault: "the next minor on one controller after the other, 200 requests/s", reach: reach, judge: asNoted, run: func(o *round) {
			o.underLoad(func() {
				o.replaceAll(older, newer)
				o.reached()
			})
		}},
		{name: "back", fault: "the minor before on one controller after the other, 200 requests/s", reach: reach, judge: asNoted, run: func(o *round) {
			o.underLoad(func() {
				o.verb("back")
				o.replaceAll(newer, older)
			})
		}},
		{name: "finish", fault: "the next minor again, and restarts that end the emulation, 200 requests/s", reach: reach, judge: asNoted, run: func(o *round) {
			o.underLoad(func() {
				o.replaceAll(older, newer)
				if v := o.view(); v.Target != "" { // the older ones had too little time to end it
					o.verb("back", "--cancel")
				}
				o.reached()
				o.verb("finish")
				for _, m := range o.controllers() {
					o.restart(m)
				}
				o.stage(upgrade.StageNone, nil)
			})
		}},
	}
}

// underLoad holds what do does to no request that failed, and to no component that was unwell.
func (o *round) underLoad(do func()) {
	o.t.Helper()
	load, statuses := o.apiLoad(o.t), o.componentStatuses()
	defer load.stop()
	defer statuses.stop()
	o.hold(time.Second)
	o.begun = time.Now()
	do()
	o.hold(time.Second)
	statuses.none(o, "componentstatuses", statusRate*5)
	measured := o.result.Measured
	o.note("%d componentstatuses met a stop of the minor before", o.excused.Load())
	load.none(o, "requests", loadRate*5)
	o.result.Measured += ", componentstatuses: " + measured
}

// componentStatuses asks for the state of etcd, kube-controller-manager and kube-scheduler beside
// whichever API server the balancer chooses. Each must be there and healthy, but for what a kthwd of
// the minor before says in its stop: it closes the ports of the two before its API server, which can no
// longer be mended (TestPortsOutliveTheAPIServer).
func (o *round) componentStatuses() *requests {
	client, _ := o.client(o.t, "", 0)
	return makeRequests(statusRate, func(ctx context.Context, _ int) error {
		old := o.oldStops.Load()
		err := allHealthy(ctx, client)
		if errors.Is(err, errUnhealthy) && (old || o.oldStops.Load()) {
			o.excused.Add(1)
			return nil
		}
		return err
	})
}

var errUnhealthy = errors.New("not healthy")

func allHealthy(ctx context.Context, client kubernetes.Interface) error {
	var list corev1.ComponentStatusList
	if err := client.CoreV1().RESTClient().Get().MaxRetries(0).Resource("componentstatuses").Do(ctx).Into(&list); err != nil {
		return err
	}
	healthy := 0
	for _, s := range list.Items {
		for _, c := range s.Conditions {
			switch {
			case c.Type != corev1.ComponentHealthy:
			case c.Status == corev1.ConditionTrue:
				healthy++
			default:
				return fmt.Errorf("%s: %w: %s %s", s.Name, errUnhealthy, c.Message, c.Error)
			}
		}
	}
	if healthy != 3 {
		return fmt.Errorf("%d of 3 components are healthy", healthy)
	}
	return nil
}

// replaceAll restarts one controller after the other with another program.
func (o *round) replaceAll(from, to string) {
	o.t.Helper()
	for _, m := range o.controllers() {
		m.runs(to)
		o.oldStops.Store(from != kthwtest.Binary(o.t))
		o.restart(m)
		o.oldStops.Store(false)
	}
}

// verb runs a verb of kthwd upgrade on the first controller.
func (o *round) verb(args ...string) {
	o.t.Helper()
	if _, said, err := o.upgrade(args...); err != nil {
		o.t.Fatalf("kthwd upgrade %s: %v\n%s", strings.Join(args, " "), err, said)
	}
}

func (o *round) upgrade(args ...string) (out []byte, said string, err error) {
	m := o.controllers()[0]
	var stdout, both bytes.Buffer
	cmd := exec.CommandContext(o.t.Context(), kthwtest.Binary(o.t), append(append([]string{"upgrade"}, args...), "--config=", "--data-dir="+m.dir)...)
	cmd.Stdout, cmd.Stderr = &stdout, &both
	m.host.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	return stdout.Bytes(), stdout.String() + both.String(), err
}

// upgradeView is the answer of kthwd upgrade status -o json.
type upgradeView struct {
	Stage upgrade.Stage `json:"stage"`
	upgrade.View
}

func (o *round) view() (v upgradeView) {
	o.t.Helper()
	kthwtest.WaitFor(o.t, "kthwd upgrade status", soon, func() error {
		out, said, _ := o.upgrade("status", "-o", "json") // its exit code is 1 while an upgrade is under way
		v = upgradeView{}
		if err := json.Unmarshal(out, &v); err != nil {
			return errors.Join(err, errors.New(said))
		}
		return nil
	})
	return v
}

// stage waits until the cluster is in a stage and every controller as ok wants it.
func (o *round) stage(want upgrade.Stage, ok func(upgrade.Controller) bool) {
	o.t.Helper()
	kthwtest.WaitFor(o.t, "the upgrade to be in stage "+string(want), soon, func() error {
		v := o.view()
		if v.Stage != want {
			return fmt.Errorf("got stage %s: %+v", v.Stage, v.View)
		}
		for _, c := range v.Controllers {
			if ok != nil && !ok(c) {
				return fmt.Errorf("got %+v", c)
			}
		}
		return nil
	})
}

// reached waits until all are new and etcd stores as the new minor.
func (o *round) reached() {
	o.t.Helper()
	o.stage(upgrade.StageReached, func(c upgrade.Controller) bool {
		return c.Storage != "" && strings.HasPrefix(c.Etcd, strings.TrimSuffix(c.Storage, "0")) && !c.MayGoBack && c.Away == "" && c.Unwell == ""
	})
}
