package observe

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/durable"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// spoiltEncryption takes the key of a stored secret out of the file, puts it back, and kills a
// controller in the middle of a rotation.
func spoiltEncryption(t *testing.T) scene {
	short := []string{"--kube-apiserver-arg=request-timeout=20s"} // after which a rotation looks again
	c := kthwtest.Start(t, kthwtest.Options{Args: short})
	_, err := c.Client(t).CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "one"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Dir, "encryption-config.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, key, found := bytes.Cut(good, []byte("secret: "))
	key, _, _ = bytes.Cut(key, []byte("\n"))
	if !found {
		t.Fatal("the file has no key")
	}
	other := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("other"), 7)[:32])
	replace := func(data []byte) {
		if err := durable.Write(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	encryption := func(verb ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), kthwtest.Binary(t), append(append([]string{"encryption"}, verb...), "--config=", "--data-dir="+c.Dir)...)
	}
	rotation := func(health status.Health, says string) {
		t.Helper()
		kthwtest.WaitFor(t, "the rotation: "+says, kthwtest.Soon, func() error {
			r, err := c.Status()
			if err != nil {
				return err
			}
			for _, f := range r.Findings {
				if f.Kind == "encryption_rotation" && f.Health == health && strings.Contains(f.Text, says) {
					return nil
				}
			}
			return fmt.Errorf("got %+v", r.Findings)
		})
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			replace(bytes.ReplaceAll(good, key, []byte(other)))
			p.await(t, "KthwdEncryptionFileRefused", true, kthwtest.Soon)
			replace(good)
			p.await(t, "KthwdEncryptionFileRefused", false, kthwtest.Soon)

			rotate := encryption("rotate", "--without-backup")
			if err := rotate.Start(); err != nil {
				t.Fatal(err)
			}
			rotation(status.Healthy, "stage 3 of 4")
			c.Signal(t, syscall.SIGKILL)
			c.Wait(t, kthwtest.Soon)
			_ = rotate.Wait() // which has lost its controller
			c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: short})
			rotation(status.Degraded, "has stopped")
		},
		mend: func(*server) {
			kthwtest.WaitFor(t, "the rotation to go on to its end", 3*time.Minute, func() error {
				if out, err := encryption("resume").CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		},
	}
}
