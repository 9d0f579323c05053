package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// uids are the objects of a cluster that its programs do not make anew by themselves, by kind and
// name.
func uids(t *testing.T, client kubernetes.Interface) map[string]types.UID {
	t.Helper()
	all := map[string]types.UID{}
	namespaces, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	maps, err2 := client.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{})
	secrets, err3 := client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{})
	roles, err4 := client.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{})
	accounts, err5 := client.CoreV1().ServiceAccounts("").List(t.Context(), metav1.ListOptions{})
	if err := errors.Join(err, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	for _, o := range namespaces.Items {
		all["namespace "+o.Name] = o.UID
	}
	for _, o := range maps.Items {
		all["configmap "+o.Namespace+"/"+o.Name] = o.UID
	}
	for _, o := range secrets.Items {
		all["secret "+o.Namespace+"/"+o.Name] = o.UID
	}
	for _, o := range roles.Items {
		all["clusterrole "+o.Name] = o.UID
	}
	for _, o := range accounts.Items {
		all["serviceaccount "+o.Namespace+"/"+o.Name] = o.UID
	}
	return all
}

// TestAllDisksLost loses three controllers with their disks. One restore and two joins bring the
// cluster back: every object has its UID on each controller, and a token of before is valid.
func TestAllDisksLost(t *testing.T) {
	endToEnd(t, "TestRestoredElsewhere is in make test")
	kthwtest.Turn(t, 3)
	g := begin(t, 97)
	g.grow(t, 1)
	g.grow(t, 2)
	client := g.c[0].Client(t)
	for i := range 20 {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)}, StringData: map[string]string{"a": "b"}}
		if _, err := client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	token := ""
	kthwtest.WaitFor(t, "a token", soon, func() error {
		r, err := client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authv1.TokenRequest{}, metav1.CreateOptions{})
		if err == nil {
			token = r.Status.Token
		}
		return err
	})
	before := uids(t, client)
	away := t.TempDir()
	identity := filepath.Join(away, "key.txt")
	if out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), "backup", "keygen", identity).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	code, out := verb(t, g.c[0], "backup", "create", "--dir="+filepath.Join(away, "archives"), "--recipient="+identity+".pub")
	all, err := filepath.Glob(filepath.Join(away, "archives", "*.kthwd"))
	if code != 0 || err != nil || len(all) != 1 {
		t.Fatalf("kthwd backup create: exit code %d, archives %v, %v\n%s", code, all, err, out)
	}
	file := all[0]
	for i := range 3 {
		g.c[i].Signal(t, syscall.SIGKILL)
		g.c[i].Wait(t, soon)
		if err := os.RemoveAll(g.data(i)); err != nil {
			t.Fatal(err)
		}
	}

	begun, p := time.Now(), g.ports[0]
	args := []string{
		"backup", "restore", file, "--config=", "--yes", "--identity=" + identity, "--data-dir=" + g.data(0), "--name=c0", "--advertise-address=" + g.address(0),
		fmt.Sprintf("--etcd-client-port=%d", p.EtcdClient), fmt.Sprintf("--controller-manager-port=%d", p.ControllerManager), fmt.Sprintf("--scheduler-port=%d", p.Scheduler),
		fmt.Sprintf("--health-address=%s:%d", g.address(0), p.Health), fmt.Sprintf("--metrics-address=%s:%d", g.address(0), p.Metrics),
	}
	if out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), args...).CombinedOutput(); err != nil {
		t.Fatalf("kthwd backup restore: %v\n%s", err, out)
	}
	g.start(t, 0).WaitReady(t)
	g.grow(t, 1)
	g.grow(t, 2)
	t.Logf("one restore and two joins took %v", time.Since(begun).Round(time.Second))
	lists(t, g.c[2], "c0 voter up", "c1 voter up", "c2 voter up")
	for i := range 3 {
		client := g.c[i].Client(t)
		after := uids(t, client)
		for what, uid := range before {
			if after[what] != uid {
				t.Errorf("c%d: %s has the UID %q, want %q", i, what, after[what], uid)
			}
		}
		kthwtest.WaitFor(t, fmt.Sprintf("the token of before is valid on c%d", i), soon, func() error {
			r, err := client.AuthenticationV1().TokenReviews().Create(t.Context(), &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
			if err == nil && !r.Status.Authenticated {
				err = errors.New(r.Status.Error)
			}
			return err
		})
	}
	if len(before) < 50 {
		t.Errorf("only %d objects were compared", len(before))
	}
}
