package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// encryptionStages are those of a rotation of the encryption key.
var encryptionStages = []string{"read", "write", "rewrite", "drop"}

// TestSoakEncryption kills any of three controllers in any stage of rotations of the encryption key.
// No secret is unreadable at any moment, and each rotation ends after kthwd encryption resume or
// abort. KTHWD_SOAK says for how long, or KTHWD_KILLS how often; twelve kills are one of each
// controller in each stage.
func TestSoakEncryption(t *testing.T) {
	if os.Getenv("KTHWD_SOAK") == "" && os.Getenv("KTHWD_KILLS") == "" {
		t.Skip("neither KTHWD_SOAK nor KTHWD_KILLS is set: run make soak or make test-encryption-kills (TestEncryptionKilled kills one controller in each stage)")
	}
	kthwtest.Turn(t, 3)
	random, goesOn := switching(t)
	if wanted, err := strconv.Atoi(os.Getenv("KTHWD_KILLS")); err == nil {
		goesOn = func(round int) bool { return round < wanted }
	}
	var deck []int
	killInRotations(t, random, goesOn, func() (killed int, stage string) {
		if len(deck) == 0 {
			deck = random.Perm(3 * len(encryptionStages))
		}
		killed, stage = deck[0]%3, encryptionStages[deck[0]/3]
		deck = deck[1:]
		return killed, stage
	})
}

// TestEncryptionKilledOfThree is TestSoakEncryption with one kill in each stage.
func TestEncryptionKilledOfThree(t *testing.T) {
	endToEnd(t, "TestEncryptionKilled kills one controller in each stage")
	kthwtest.Turn(t, 3)
	random, _ := switching(t)
	stages := random.Perm(len(encryptionStages))
	killInRotations(t, random, func(round int) bool { return round < len(encryptionStages) }, func() (killed int, stage string) {
		stage, stages = encryptionStages[stages[0]], stages[1:]
		return random.IntN(3), stage
	})
}

// killInRotations rotates the key again and again, and kills a controller in each rotation: which one
// and when, next says.
func killInRotations(t *testing.T, random *rand.Rand, goesOn func(round int) bool, next func() (killed int, stage string)) {
	t.Helper()
	m := makeCluster(t)
	m.args = append(m.args, "--kube-apiserver-arg=request-timeout=2s")
	all := m.startAll(t)
	const n = 50
	storeSecrets(t, direct(t, all[0]), "s", n)
	var done tally
	begun := time.Now()
	for ; goesOn(done.kills); done.kills++ {
		killed, stage := next()
		by := random.IntN(3)
		kind := []string{"secretbox", "aesgcm", "aescbc"}[random.IntN(3)]
		pause := time.Duration(random.IntN(500)) * time.Millisecond
		t.Logf("%s kill %d: c%d, %v after the stage %s of a rotation to %s by c%d", time.Now().Format(time.TimeOnly), done.kills+1, killed, pause, stage, kind, by)
		watched := (killed + 1) % 3
		b := startBusy(t, direct(t, all[watched]), direct(t, all[(killed+2)%3]))
		killInStage(t, all[:], by, killed, watched, stage, kind, pause)
		b.check(t)
		readSecrets(t, direct(t, all[watched]), "s", n)
		all[killed] = m.start(t, killed)
		all[killed].WaitReady(t)
		word := endRotation(t, all[:], random)
		if got := storedWith(t, all[0].Etcd(t)); len(got) != 1 {
			t.Fatalf("in etcd: got %v, want values of one key", got)
		}
		for _, c := range all {
			readSecrets(t, direct(t, c), "s", n)
		}
		done.note(stage, killed == by, word, b.done.Load())
	}
	t.Logf("%s; no secret was unreadable; %v", done, time.Since(begun).Round(time.Second))
}

// tally counts what a soak has done.
type tally struct {
	kills, carriers int
	stages, ends    [4]int // by encryptionStages; by endWords
	requests        int64
}

// endWords are the ways in which a rotation goes on after a kill.
var endWords = []string{"", "resume", "abort"}

func (t *tally) note(stage string, carrier bool, word string, requests int64) {
	t.stages[slices.Index(encryptionStages, stage)]++
	t.ends[slices.Index(endWords, word)]++
	t.requests += requests
	if carrier {
		t.carriers++
	}
}

// String is the tally for people.
func (t tally) String() string {
	said := fmt.Sprintf("%d kills, of the controller that carried the rotation on in %d", t.kills, t.carriers)
	for i, stage := range encryptionStages {
		said += fmt.Sprintf(", %d in %s", t.stages[i], stage)
	}
	return said + fmt.Sprintf("; %d rotations ended by themselves, %d by resume, %d by abort; %d requests for secrets beside them", t.ends[0], t.ends[1], t.ends[2], t.requests)
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
			if !strings.Contains(out, "done  ") {
				t.Fatalf("the rotation has not come to the stage %s: %s", stage, out)
			}
			all[killed].Signal(t, syscall.SIGKILL)
			all[killed].Wait(t, soon)
			return
		}
	}
}

// endRotation resumes the rotation that is under way, or takes it back, until none is. The error
// names the controller that has the new key if not all have it. It returns the verb that was
// accepted last; empty if none was needed.
func endRotation(t *testing.T, all []*kthwtest.Controller, random *rand.Rand) (accepted string) {
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
		if code == 0 {
			accepted = word
		}
		if word == "abort" && (code == 0 || strings.Contains(out, "can no longer be aborted") || strings.Contains(out, "being aborted already")) {
			word = "resume"
		}
		return errors.New(out)
	})
	return accepted
}
