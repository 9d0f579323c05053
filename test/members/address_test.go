package members

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/harness"
	"kthwd/test/lbtest"
)

// newAddress is where a controller moves to.
func newAddress(i int) string { return fmt.Sprintf("10.43.0.%d", 111+i) }

// move stops a controller and gives its machine another address instead of the one it had.
func (m *machine) move(t *testing.T, to string) {
	t.Helper()
	if m.process.Running() {
		m.process.End()
	}
	m.host.Run(t, "ip", "address", "flush", "dev", "eth0")
	m.host.Run(t, "ip", "address", "add", to+"/24", "dev", "eth0")
}

func (m *machine) file() string { return filepath.Join(m.dir, config.FileName) }

// readdress runs kthwd member address on the machine.
func (m *machine) readdress(args ...string) (output string, err error) {
	m.host.Do(func() {
		cmd := exec.Command(os.Args[0], append([]string{m.file()}, args...)...)
		cmd.Env = append(os.Environ(), lbtest.HelperEnv("address"))
		var out []byte
		out, err = cmd.CombinedOutput()
		output = string(out)
	})
	return output, err
}

// knownAt waits until a controller lists another one at an address, up.
func (m *machine) knownAt(t *testing.T, name, address string) {
	t.Helper()
	harness.WaitFor(t, m.name+" to know "+name+" at "+address, soon, func() error {
		l, err := m.list(t.Context())
		if err != nil {
			return err
		}
		if found, ok := l.Find(name); !ok || found.Address != address || !found.Up {
			return fmt.Errorf("got %+v", found)
		}
		return nil
	})
}

// A lone controller whose machine got another address starts again after one command, with its
// data and with the names that its certificate had.
func TestLoneAddress(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	c0 := newCluster(t, 1).machines[0]
	start(t, c0)
	c0.ready(t)
	c0.write(t)
	c0.endpoint(t, address(0))
	before := c0.names(t)
	c0.move(t, newAddress(0))
	l := pki.Layout{Dir: c0.dir}
	rename(t, l.CAKey(), l.CAKey()+".away")
	if out, err := c0.readdress(newAddress(0)); err == nil || !strings.Contains(out, "kthwd pki controller c0 "+newAddress(0)) || strings.Join(c0.names(t), ",") != strings.Join(before, ",") {
		t.Errorf("without the key of the CA: got %v, %s", err, out)
	}
	rename(t, l.CAKey()+".away", l.CAKey())
	if out, err := c0.readdress(newAddress(0)); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := includes(c0.names(t), append(before, newAddress(0))); err != nil {
		t.Error(err)
	}
	start(t, c0)
	c0.ready(t)
	c0.knownAt(t, "c0", newAddress(0))
	client := c0.etcd(t)
	defer client.Close()
	harness.WaitFor(t, "the data, without the endpoint at the old address", soon, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		kept, err := client.Get(ctx, "/test")
		if err == nil && len(kept.Kvs) != 1 {
			err = fmt.Errorf("got %v", kept)
		}
		if err != nil {
			return fmt.Errorf("the write of before: %w", err)
		}
		old, err := client.Get(ctx, "/registry/masterleases/"+address(0))
		if err == nil && len(old.Kvs) != 0 {
			err = fmt.Errorf("got %v", old)
		}
		if err != nil {
			return fmt.Errorf("the old endpoint: %w", err)
		}
		return nil
	})
}

// One of three moves with one command and a start. Two that move at once are refused, since the
// change has no quorum; then one corrects its address at its start, which gives the other one
// the quorum.
func TestAddressOfThree(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	addressOfThree(t, newCluster(t, 3))
}

// The same where etcd's client ports are on loopback, and kthwd answers at the address.
func TestAddressOfThreeWithCIS(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	addressOfThree(t, newClusterWith(t, 3, config.ProfileCIS))
}

func addressOfThree(t *testing.T, c *cluster) {
	start(t, c.machines...)
	for _, m := range c.machines {
		m.ready(t)
	}
	c0, c1, c2 := c.machines[0], c.machines[1], c.machines[2]
	if out, err := c2.readdress(newAddress(2)); err == nil || !strings.Contains(out, "is in use by another kthwd") {
		t.Errorf("while kthwd runs: got %v, %s", err, out)
	}
	c2.move(t, newAddress(2))
	out, err := c2.readdress(newAddress(2))
	if err != nil || !strings.Contains(out, "changed  the peer URL of c2") {
		t.Fatalf("one of three: got %v, %s", err, out)
	}
	if again, err := c2.readdress(newAddress(2)); err != nil || !strings.Contains(again, "which the others know already") {
		t.Errorf("the same command again: got %v, %s", err, again)
	}
	start(t, c2)
	c0.knownAt(t, "c2", newAddress(2))
	c.heard(t)

	c1.move(t, newAddress(1))
	c2.process.End()
	before, names := read(t, c1.file()), c1.names(t)
	out, err = c1.readdress(newAddress(1))
	if err == nil || !strings.Contains(out, "1 of 3 controllers are up without this one, and 2 must be") {
		t.Errorf("two at once: got %v, %s", err, out)
	}
	if read(t, c1.file()) != before || strings.Join(c1.names(t), ",") != strings.Join(names, ",") {
		t.Error("two at once: refused, and something has changed")
	}
	third := address(1) // which c1 has left while c2 was away: what c2 has stored says that it is taken
	c2.move(t, third)
	if out, err := c1.readdress(newAddress(1), "at-start"); err != nil {
		t.Fatalf("c1, at its start: %v, %s", err, out)
	}
	start(t, c1)
	c0.knownAt(t, "c1", newAddress(1))
	if out, err := c2.readdress(third); err != nil {
		t.Fatalf("c2, with a quorum again: %v, %s", err, out)
	}
	start(t, c2)
	c0.knownAt(t, "c2", third)
	c.heard(t)
}

// heard waits until all hear all others.
func (c *cluster) heard(t *testing.T) {
	t.Helper()
	c.whole(t)
	for _, m := range c.machines {
		m.says(t, "it hears all others", func(r status.Report) bool {
			return finding(r, "peer_cut") == status.Finding{} && finding(r, "peer_url") == status.Finding{}
		})
	}
}

// endpoint stores what an API server at the address would.
func (m *machine) endpoint(t *testing.T, address string) {
	t.Helper()
	client := m.etcd(t)
	defer client.Close()
	if _, err := client.Put(t.Context(), "/registry/masterleases/"+address, ""); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// names are the names in the controller's kubernetes.pem.
func (m *machine) names(t *testing.T) (all []string) {
	t.Helper()
	block, _ := pem.Decode([]byte(read(t, pki.Layout{Dir: m.dir}.Cert(pki.NameKubernetes))))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	all = leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

func includes(all, wanted []string) error {
	for _, w := range wanted {
		if !strings.Contains(","+strings.Join(all, ",")+",", ","+w+",") {
			return fmt.Errorf("kubernetes.pem lacks %s: %s", w, strings.Join(all, ", "))
		}
	}
	return nil
}
