package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// TestSoakEncryption kills any of three controllers in any stage of rotations of the encryption key.
// No secret is unreadable at any moment, and each rotation ends after kthwd encryption resume or
// abort. KTHWD_SOAK says for how long; a KTHWD_SOAK of some 50 minutes is 50 kills.
func TestSoakEncryption(t *testing.T) {
	if os.Getenv("KTHWD_SOAK") == "" {
		t.Skip("KTHWD_SOAK is not set: run make soak (TestEncryptionKilled kills one controller in each stage)")
	}
	kthwtest.Turn(t, 3)
	random, goesOn := switching(t)
	m := makeCluster(t)
	m.args = append(m.args, "--kube-apiserver-arg=request-timeout=2s")
	all := m.startAll(t)
	const n = 50
	storeSecrets(t, direct(t, all[0]), "s", n)
	kills := 0
	for ; goesOn(kills); kills++ {
		killed, by := random.IntN(3), random.IntN(3)
		stage := []string{"read", "write", "rewrite", "drop"}[random.IntN(4)]
		kind := []string{"secretbox", "aesgcm", "aescbc"}[random.IntN(3)]
		pause := time.Duration(random.IntN(500)) * time.Millisecond
		t.Logf("kill %d: c%d, %v after the stage %s of a rotation to %s by c%d", kills+1, killed, pause, stage, kind, by)
		watched := (killed + 1) % 3
		b := startBusy(t, direct(t, all[watched]), direct(t, all[(killed+2)%3]))
		killInStage(t, all[:], by, killed, watched, stage, kind, pause)
		b.check(t)
		readSecrets(t, direct(t, all[watched]), "s", n)
		all[killed] = m.start(t, killed)
		all[killed].WaitReady(t)
		endRotation(t, all[:], random)
		if got := storedWith(t, all[0].Etcd(t)); len(got) != 1 {
			t.Fatalf("in etcd: got %v, want values of one key", got)
		}
		for _, c := range all {
			readSecrets(t, direct(t, c), "s", n)
		}
	}
	t.Logf("%d kills, no secret was unreadable", kills)
}

// killInStage begins a rotation on one controller, and kills one some time after it has entered
// a stage; the rotation may have gone on meanwhile, or have ended.
func killInStage(t *testing.T, all []*kthwtest.Controller, by, killed, watched int, stage, kind string, pause time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	watch := all[watched].Etcd(t).Watch(ctx, rotationKey)
	said := make(chan string, 1)
	go func() {
		out, _ := exec.CommandContext(ctx, kthwtest.Binary(t), "encryption", "rotate", "--provider="+kind, "--without-backup", "--config=", "--data-dir="+all[by].Dir).CombinedOutput()
		said <- string(out)
	}()
	for {
		select {
		case answer := <-watch:
			for _, e := range answer.Events {
				var s struct{ Stage string }
				if json.Unmarshal(e.Kv.Value, &s) != nil || s.Stage != stage {
					continue
				}
				<-time.After(pause)
				all[killed].Signal(t, syscall.SIGKILL)
				all[killed].Wait(t, soon)
				<-said
				return
			}
		case out := <-said:
			t.Fatalf("the rotation has not come to the stage %s: %s", stage, out)
		}
	}
}

// endRotation resumes the rotation that is under way, or takes it back, until none is. The error
// names the controller that has the new key if not all have it.
func endRotation(t *testing.T, all []*kthwtest.Controller, random *rand.Rand) {
	t.Helper()
	word := "resume"
	if random.IntN(4) == 0 {
		word = "abort"
	}
	kthwtest.WaitFor(t, "the rotation to end", 2*soon, func() error {
		code, out := verb(t, all[random.IntN(3)], "encryption", "status", "-o=json")
		var r struct{ Running bool }
		if json.Unmarshal([]byte(out), &r) != nil {
			return fmt.Errorf("status: exit code %d: %s", code, out)
		}
		if !r.Running {
			return nil
		}
		code, out = verb(t, all[random.IntN(3)], "encryption", word)
		if word == "abort" && (code == 0 || strings.Contains(out, "can no longer be aborted") || strings.Contains(out, "being aborted already")) {
			word = "resume"
		}
		return errors.New(out)
	})
}
