package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/agree"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
	"kthwd/test/lbtest"
)

// A running cluster of three takes the profile cis one controller after the other: nothing
// that was written is lost, every controller goes on knowing the others, and etcd answers no
// other machine, except that a member which removes the leader still takes over from it.
func TestProfile(t *testing.T) {
	requireE2E(t)
	requireMachine(t)
	if !lbtest.OwnMachine(t) {
		return
	}
	c := newCluster(t, true, "")
	for i, m := range c.controllers() {
		c.writeMap(t, fmt.Sprintf("before-%d", i))
		m.setProfile(t, "cis")
		before := m.count()
		m.signal(syscall.SIGTERM)
		kthwtest.WaitFor(t, m.name+" to start again", soon, func() error {
			if m.count() == before {
				return errors.New("it has not")
			}
			return nil
		})
		c.awaitReady(t, recovery)
		c.knowEachOther(t, i+1 < controllerCount)
	}
	client, _ := c.client(t, "", soon)
	for i := range c.controllers() {
		if _, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), fmt.Sprintf("before-%d", i), metav1.GetOptions{}); err != nil {
			t.Errorf("written before controller %d was restarted: %v", i, err)
		}
	}
	for _, m := range c.controllers() {
		m.answersNobodyElse(t)
	}
	c.removeLeader(t)
}

// setProfile adds the profile to the machine's kthwd.yaml.
func (m *machine) setProfile(t *testing.T, profile string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(m.dir, "kthwd.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(f, "\nprofile: %s\n", profile)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) writeMap(t *testing.T, name string) {
	t.Helper()
	client, hangUp := c.client(t, "", soon)
	defer hangUp()
	kthwtest.WaitFor(t, "a write through the load balancer", soon, func() error {
		_, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	})
}

// knowEachOther waits until each controller has had an answer of each other one, and nothing is wrong
// but that some have the profile and some do not, if they differ in it.
func (c *cluster) knowEachOther(t *testing.T, differ bool) {
	t.Helper()
	for _, m := range c.controllers() {
		kthwtest.WaitFor(t, m.name+" to know the others", soon, func() error {
			out, err := exec.Command(kthwtest.Binary(t), "status", "--cluster", "--config=", "--data-dir="+m.dir, "-o", "json").Output()
			var all status.Cluster
			if jsonErr := json.Unmarshal(out, &all); jsonErr != nil {
				return errors.Join(err, jsonErr)
			}
			for _, o := range all.Controllers {
				// Advice may say that the APIs which only some serve were taken away and made again.
				wrong := slices.DeleteFunc(slices.Clone(o.Findings), func(f status.Finding) bool { return f.Health == status.Healthy })
				differs := len(wrong) == 1 && wrong[0].Kind == agree.Kind
				if o.Error != "" || differs != differ || !differs && o.Health != status.Healthy {
					return fmt.Errorf("%s is %s: %s %v", o.Name, o.Health, o.Error, o.Findings)
				}
			}
			if len(all.Controllers) != controllerCount {
				return fmt.Errorf("it knows %d controllers", len(all.Controllers))
			}
			return nil
		})
	}
}

// answersNobodyElse tries the ports that the profile puts on loopback, from another machine
// and with a controller's certificate.
func (m *machine) answersNobodyElse(t *testing.T) {
	t.Helper()
	for _, port := range []int{m.ports.ControllerManager, m.ports.Scheduler} {
		if conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", m.address, port), 5*time.Second); err == nil {
			conn.Close()
			t.Errorf("%s: port %d answers other machines", m.name, port)
		}
	}
	client, err := m.etcd()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if r, err := client.Get(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err == nil {
		t.Errorf("%s: etcd told another machine of %d keys", m.name, r.Count)
	}
}

// removeLeader removes etcd's leader on another controller, which takes over first.
func (c *cluster) removeLeader(t *testing.T) {
	t.Helper()
	leader := c.leader(t)
	at := c.followers(t)[0]
	out, err := exec.Command(kthwtest.Binary(t), "member", "remove", leader.name, "--config=", "--data-dir="+at.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, m := range c.controllers() {
		if log := m.log.String(); strings.Contains(log, "leadership was not transferred") {
			t.Errorf("%s could not take over from the leader", m.name)
		}
	}
	if log := leader.log.String(); !strings.Contains(log, "leadership moved, as another controller asked") {
		t.Errorf("the leader was not asked to move its leadership")
	}
	c.writeMap(t, "after")
}
