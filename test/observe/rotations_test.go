package observe

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/tokenrotation"
	"kthwd/test/kthwtest"
)

// stoppedRotations leaves a rotation of the cluster's CA and one of the service account key where a
// controller that has died leaves them, the first one for two days.
func stoppedRotations(t *testing.T) scene {
	c := kthwtest.Start(t, kthwtest.Options{})
	c.WaitReady(t)
	verb := func(args ...string) error {
		out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), append(append([]string{"pki"}, args...), "--config=", "--data-dir="+c.Dir)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("kthwd pki %v: %w: %s", args, err, out)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(*server) {
			must(verb("ca", "rotate", "--without-backup"))
			must(verb("service-account", "rotate", "--wait=0s"))
			var ca castate.State
			change(t, c, "/kthwd/ca/rotation", "CA rotation", &ca, func() {
				ca.Stage, ca.Since, ca.Seals = castate.StageTrust, ca.Since.Add(-48*time.Hour), nil
			}, func(s stages.Seals) { ca.Seals = s })
			var tokens tokenrotation.State
			change(t, c, "/kthwd/service-account/rotation", "service account rotation", &tokens, func() {
				tokens.Stage, tokens.Seals = tokenrotation.StageSign, nil
			}, func(s stages.Seals) { tokens.Seals = s })
		},
		mend: func(*server) {
			must(verb("ca", "abort"))
			must(verb("service-account", "resume"))
		},
	}
}

// change replaces a state in etcd, with the seals of a controller.
func change(t *testing.T, c *kthwtest.Controller, key, purpose string, state any, edit func(), seal func(stages.Seals)) {
	t.Helper()
	etcd := c.Etcd(t)
	answer, err := etcd.Get(t.Context(), key)
	if err != nil || len(answer.Kvs) != 1 {
		t.Fatalf("%s in etcd: %v, %v", key, answer, err)
	}
	if err := json.Unmarshal(answer.Kvs[0].Value, state); err != nil {
		t.Fatal(err)
	}
	edit()
	seals, err := stages.SealsOf(pki.Layout{Dir: c.Dir}, purpose, state)
	if err != nil {
		t.Fatal(err)
	}
	seal(seals)
	value, err := json.Marshal(state)
	if err == nil {
		_, err = etcd.Put(t.Context(), key, string(value))
	}
	if err != nil {
		t.Fatal(err)
	}
}
