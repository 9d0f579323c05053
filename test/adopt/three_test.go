package adopt

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/test/kthwtest"
)

func addressOf(i int) string { return fmt.Sprintf("127.0.72.%d", i+1) }

// threeControllers makes and starts a cluster of three.
func threeControllers(t *testing.T) (all []*kthwtest.Controller) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cluster")
	var ports [3]kthwtest.Ports
	var list []string
	for i := range ports {
		ports[i] = kthwtest.FreePorts(t, addressOf(i))
		ports[i].Secure, ports[i].EtcdPeer = ports[0].Secure, ports[0].EtcdPeer // nobody else has these addresses
		list = append(list, fmt.Sprintf("c%d=%s", i, addressOf(i)))
	}
	kthwd(t, "pki", "init", "--config=", "--controllers="+strings.Join(list, ","), fmt.Sprintf("--secure-port=%d", ports[0].Secure), fmt.Sprintf("--etcd-peer-port=%d", ports[0].EtcdPeer), "--out="+dir)
	for i, p := range ports {
		o := kthwtest.Options{Dir: filepath.Join(dir, fmt.Sprintf("c%d", i)), Address: addressOf(i), Ports: &ports[i], NoWait: true}
		o.File = filepath.Join(o.Dir, "kthwd.yaml")
		text, err := os.ReadFile(o.File)
		if err != nil {
			t.Fatal(err)
		}
		// What several on one machine must have apart.
		text = regexp.MustCompile(`(?m)^health-address:.*`).ReplaceAll(text, []byte("health-address: ''"))
		text = fmt.Appendf(text, "etcd-client-port: %d\ncontroller-manager-port: %d\nscheduler-port: %d\n", p.EtcdClient, p.ControllerManager, p.Scheduler)
		if err := os.WriteFile(o.File, text, 0o600); err != nil {
			t.Fatal(err)
		}
		all = append(all, kthwtest.Start(t, o))
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	return all
}

// at is the admin's configuration for the API server of one controller.
func at(t *testing.T, c *kthwtest.Controller) *rest.Config {
	t.Helper()
	config := c.RESTConfig(t)
	config.Host = fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure)
	return config
}

// Three controllers of separate programs are adopted one after the other, while the etcd of the
// others remains etcd.
func TestThree(t *testing.T) {
	kthwtest.Turn(t, 3)
	ctx := t.Context()
	all := threeControllers(t)
	client := func(c *kthwtest.Controller) kubernetes.Interface {
		client, err := kubernetes.NewForConfig(at(t, c))
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	want, err := client(all[0]).CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "card"}, StringData: map[string]string{"number": "4711"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		c.Signal(t, syscall.SIGTERM)
	}
	var plants []*plant
	for _, c := range all {
		if code := c.Wait(t, kthwtest.Soon); code != 0 {
			t.Errorf("got exit code %d of kthwd, want 0", code)
		}
		p := &plant{data: c.Dir, etcd: filepath.Join(c.Dir, "etcd"), ports: c.Ports, admin: at(t, c)}
		plants = append(plants, p.ejected(t, c.File()))
	}
	for _, p := range plants {
		p.start(t, "etcd")
	}
	plants[0].start(t, "kube-apiserver")
	serves := func(c *kthwtest.Controller, when string) {
		t.Helper()
		kthwtest.WaitFor(t, "a write "+when, kthwtest.Soon, func() error {
			_, err := client(c).CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "when-"}}, metav1.CreateOptions{})
			return err
		})
		got, err := client(c).CoreV1().Secrets("default").Get(ctx, "card", metav1.GetOptions{})
		if err != nil || got.UID != want.UID || got.ResourceVersion != want.ResourceVersion || string(got.Data["number"]) != "4711" {
			t.Errorf("%s: got the secret %v, %v, want %v", when, got, err, want)
		}
	}
	serves(all[0], "of three etcd")
	for i, p := range plants {
		p.stopAll()
		file := filepath.Join(p.root, "kthwd.yaml")
		if out, errs, code := p.adopt(t, "--was="+kubernetesVersion(t), "--out="+file); code != 0 {
			t.Fatalf("controller %d: got exit code %d\n%s\n%s", i, code, out, errs)
		}
		c := kthwtest.Start(t, kthwtest.Options{Dir: p.data, File: file, Address: all[i].Address, Ports: &p.ports})
		serves(c, fmt.Sprintf("of %d kthwd and %d etcd", i+1, 2-i))
	}
}
