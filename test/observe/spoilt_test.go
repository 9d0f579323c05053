package observe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

// againUntil repeats act until all alerts fire.
func againUntil(t *testing.T, p *server, act func(i int), alerts ...string) {
	t.Helper()
	i := 0
	kthwtest.WaitFor(t, fmt.Sprint(alerts, " to fire"), kthwtest.Soon, func() error {
		act(i)
		i++
		for _, alert := range alerts {
			if is, err := p.firing(alert); err != nil || !is {
				return errors.Join(fmt.Errorf("%s is quiet after %d attempts", alert, i), err)
			}
		}
		return nil
	})
}

// fullDisk takes all the room below the audit log, in two steps.
func fullDisk(t *testing.T) scene {
	mount := filepath.Join(t.TempDir(), "disk")
	disk := kthwtest.NewDisk(t, mount)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=audit-log-path=" + filepath.Join(mount, "audit.log")}})
	write := func(i int) {
		_, _ = c.Client(t).CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("write-%d", i)}}, metav1.CreateOptions{})
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			disk.Fill(t)
			filler := filepath.Join(mount, "filler")
			info, err := os.Stat(filler)
			if err == nil {
				err = os.Truncate(filler, info.Size()-60<<20)
			}
			if err != nil {
				t.Fatal(err)
			}
			p.await(t, "KthwdDiskLow", true, kthwtest.Soon)
			disk.Fill(t)
			p.await(t, "KthwdDiskFull", true, kthwtest.Soon)
			againUntil(t, p, write, "KthwdAuditRecordsLost")
		},
		mend: func(*server) { disk.MakeRoom(t) },
	}
}

// spoilt replaces a file that is in use, deletes a bootstrap role, and adds a webhook, an
// APIService and a CRD whose servers are dead.
func spoilt(t *testing.T) scene {
	c := kthwtest.Start(t, kthwtest.Options{})
	client, key := c.Client(t), pki.Layout{Dir: c.Dir}.Key(pki.NameServiceAccount)
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "spoilt.yaml")
	put(t, path, kthwtest.ClosedWebhook+"---"+kthwtest.DeadAPIService+"---"+kthwtest.DeadConversion)
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			put(t, key, "no key")
			c.Kubectl(t, "create", "namespace", "doomed")
			c.Kubectl(t, "apply", "-f", path)
			p.await(t, "KthwdFilesChanged", true, kthwtest.Soon)
			p.await(t, "KthwdAPIServiceUnavailable", true, kthwtest.Soon)
			c.Kubectl(t, "delete", "namespace", "doomed", "--wait=false")
			againUntil(t, p, func(int) {
				_ = client.RbacV1().ClusterRoles().Delete(t.Context(), "cluster-admin", metav1.DeleteOptions{})
			}, "KthwdBootstrapRestored")
			againUntil(t, p, func(int) {
				_, _ = client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "refused"}}, metav1.CreateOptions{})
			}, "KthwdWebhookFails")
			kthwtest.WaitFor(t, "a widget", kthwtest.Soon, func() error { return createWidget(t, c, "v1", kthwtest.Widget) })
			againUntil(t, p, func(int) { _ = readWidgets(t, c, "v2") }, "KthwdConversionFails")
			p.await(t, "KthwdNamespaceStuck", true, kthwtest.Soon)
		},
		mend: func(*server) {
			put(t, key, string(before))
			c.Kubectl(t, "delete", "apiservice/v1.broken.example.com", "validatingwebhookconfiguration/closed")
			c.Kubectl(t, "patch", "crd", "widgets.example.com", "--type=json", "-p", `[{"op": "replace", "path": "/spec/conversion", "value": {"strategy": "None"}}]`)
		},
	}
}

const widgets = "/apis/example.com/%s/namespaces/default/widgets"

func createWidget(t *testing.T, c *kthwtest.Controller, version, object string) error {
	err := c.Client(t).Discovery().RESTClient().Post().AbsPath(fmt.Sprintf(widgets, version)).
		SetHeader("Content-Type", "application/json").Body([]byte(object)).Do(t.Context()).Error()
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func readWidgets(t *testing.T, c *kthwtest.Controller, version string) error {
	return c.Client(t).Discovery().RESTClient().Get().AbsPath(fmt.Sprintf(widgets, version)).Do(t.Context()).Error()
}

// fewDescriptors opens connections until few descriptors are left.
func fewDescriptors(t *testing.T) scene {
	const limit = 1024
	c := kthwtest.Start(t, kthwtest.Options{Wrap: []string{"prlimit", fmt.Sprintf("--nofile=%d:%d", limit, limit)}})
	var open []net.Conn
	drop := func() {
		for _, conn := range open {
			conn.Close()
		}
		open = nil
	}
	t.Cleanup(drop)
	return scene{
		controllers: []*kthwtest.Controller{c},
		make: func(p *server) {
			againUntil(t, p, func(i int) {
				if i%50 == 0 { // the API server ends those that say nothing
					drop()
				}
				for len(open) < limit*3/4 {
					conn, err := net.Dial("tcp", net.JoinHostPort(c.Address, fmt.Sprint(c.Ports.Secure)))
					if err != nil {
						return
					}
					open = append(open, conn)
				}
			}, "KthwdDescriptorsFew")
		},
		mend: func(*server) { drop() },
	}
}
