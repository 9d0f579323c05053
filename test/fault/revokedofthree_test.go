package fault

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/test/kthwtest"
)

// A user revoked at one controller is refused at each: open watches end, and a controller that was
// away refuses from its first answer on. The user's next certificate works at each.
func TestRevokedOfThree(t *testing.T) {
	endToEnd(t, "TestUsers revokes a user of one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t, "--with-ca-key=c0")
	all := m.startAll(t)
	first, away := all[0], 2
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "readers"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "readers"}}}
	if _, err := m.clientAt(t, first.Kubeconfig("admin"), 0).RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path, _ := newUser(t, first, "jane", "--group=readers")
	var open [3]watch.Interface
	for i := range all {
		jane := m.clientAt(t, path, i)
		kthwtest.WaitFor(t, fmt.Sprintf("a watch at c%d", i), soon, func() (err error) {
			open[i], err = jane.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{})
			return err
		})
		defer open[i].Stop()
	}
	stop(t, all[away], syscall.SIGTERM, 0)
	if out := kthwd(t, "kubeconfig", "revoke", "jane", "--config=", "--data-dir="+first.Dir); !strings.Contains(out, "Every certificate of jane that begins before now is refused.") {
		t.Errorf("revoke: got %s", out)
	}
	for i := range away {
		ends(t, fmt.Sprintf("the watch at c%d", i), open[i])
		wantUnauthorized(t, m.clientAt(t, path, i))
	}
	m.start(t, away)
	jane := m.clientAt(t, path, away)
	kthwtest.WaitFor(t, "the first answer of the controller that was away", soon, func() error {
		_, err := jane.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		var answer apierrors.APIStatus
		switch {
		case err == nil:
			t.Fatal("it accepts the revoked certificate")
		case !errors.As(err, &answer):
			return err
		case !apierrors.IsUnauthorized(err):
			return fmt.Errorf("got %w, want Unauthorized", err) // such as for an API server that is not ready
		}
		return nil
	})

	next := filepath.Join(t.TempDir(), "jane.kubeconfig")
	if out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), "kubeconfig", "create", "jane", "--group=readers", "--out="+next, "--config=", "--data-dir="+first.Dir).CombinedOutput(); err != nil {
		t.Fatalf("kubeconfig create: %v\n%s", err, out)
	}
	for i := range all {
		kthwtest.WaitFor(t, fmt.Sprintf("the next certificate at c%d", i), soon, func() error {
			_, err := m.clientAt(t, next, i).CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
			return err
		})
	}
}

// clientAt is a client with the user of a kubeconfig at controller i.
func (m *made) clientAt(t *testing.T, kubeconfig string, i int) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Host = fmt.Sprintf("https://%s:%d", madeAddress(i), m.ports[i].Secure)
	return clientFor(t, config)
}

// ends waits for the end of a watch.
func ends(t *testing.T, what string, w watch.Interface) {
	t.Helper()
	kthwtest.WaitFor(t, "the end of "+what, soon, func() error {
		for {
			select {
			case _, more := <-w.ResultChan():
				if !more {
					return nil
				}
			default:
				return errors.New("it is open")
			}
		}
	})
}
