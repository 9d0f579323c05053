package ha

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

const (
	workPause = 300 * time.Millisecond
	workKept  = 10
)

// makeWork keeps the leading kube-controller-manager and kube-scheduler busy:
// replica sets come and go, and their pods are put on a node that nobody runs.
// A failed request is not retried: this is load, and no test checks it.
func makeWork(ctx context.Context, client kubernetes.Interface) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fake"}}
	node.Status.Allocatable = corev1.ResourceList{"pods": resource.MustParse("500"), "cpu": resource.MustParse("64"), "memory": resource.MustParse("64Gi")}
	node.Status.Capacity = node.Status.Allocatable
	for ctx.Err() == nil {
		if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err == nil || apierrors.IsAlreadyExists(err) {
			break
		}
		sleep(ctx, workPause)
	}
	sets := client.AppsV1().ReplicaSets("default")
	for n := 1; ctx.Err() == nil; n++ {
		_, _ = sets.Create(ctx, replicaSet(fmt.Sprintf("work-%d", n)), metav1.CreateOptions{})
		if n > workKept {
			old := fmt.Sprintf("work-%d", n-workKept)
			_ = sets.Delete(ctx, old, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
			// Nobody runs the node, so nobody else would end the pod.
			_ = client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))},
				metav1.ListOptions{LabelSelector: "work=" + old})
		}
		sleep(ctx, workPause)
	}
}

func replicaSet(name string) *appsv1.ReplicaSet {
	labels := map[string]string{"work": name}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers:  []corev1.Container{{Name: "none", Image: "none"}},
					Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
				},
			},
		},
	}
}

// leases is who held the two leases when, as etcd's history has it.
type leases struct {
	tenures map[string][]tenure
	rev     int64 // up to which they have been read
}

// add notes the next state of a lease.
func (l *leases) add(lease *coordinationv1.Lease) {
	if lease.Name != kcm && lease.Name != scheduler {
		return
	}
	if l.tenures == nil {
		l.tenures = map[string][]tenure{}
	}
	holder, _, _ := strings.Cut(ptr.Deref(lease.Spec.HolderIdentity, ""), "_")
	known := l.tenures[lease.Name]
	if len(known) > 0 && known[len(known)-1].Holder == holder {
		return
	}
	l.tenures[lease.Name] = append(known, tenure{From: lease.Spec.AcquireTime.Time, Holder: holder})
}

// holder is who holds a lease now.
func (l *leases) holder(component string) string {
	known := l.tenures[component]
	if len(known) == 0 {
		return ""
	}
	return known[len(known)-1].Holder
}

// auditLog reads what is new in the audit log of one API server.
type auditLog struct {
	controller string
	path       string
	file       *os.File
	rest       string // a line whose end is not there yet
}

// auditEvent is what is needed of an event of audit.k8s.io/v1.
type auditEvent struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	Object struct {
		Group       string `json:"apiGroup"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	Status struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	Received time.Time `json:"requestReceivedTimestamp"`
	Stage    time.Time `json:"stageTimestamp"`
}

// actions are the new actions of the two programs beside this API server, which
// is the only one they speak to.
func (a *auditLog) actions() (found []action, err error) {
	for {
		if a.file == nil {
			if a.file, err = os.Open(a.path); err != nil {
				return found, err
			}
		}
		reader := bufio.NewReader(a.file)
		for {
			line, err := reader.ReadString('\n')
			if err == io.EOF {
				a.rest += line
				break
			}
			if err != nil {
				return found, err
			}
			if act, ok := actionOf(a.controller, a.rest+line); ok {
				found = append(found, act)
			}
			a.rest = ""
		}
		if !a.rotated() {
			return found, nil
		}
		a.file.Close()
		a.file, a.rest = nil, ""
	}
}

// rotated tells whether the file that is read is no more the one that is written.
func (a *auditLog) rotated() bool {
	now, err := os.Stat(a.path)
	if err != nil {
		return false
	}
	was, err := a.file.Stat()
	return err == nil && !os.SameFile(now, was)
}

const eventBegin = `{"kind":"Event"`

// actionOf is the action in one line of an audit log. A process that is killed
// may leave a line without its end, which the next one's first is then joined to.
func actionOf(controller, line string) (action, bool) {
	if i := strings.LastIndex(line, eventBegin); i > 0 {
		line = line[i:]
	}
	var e auditEvent
	if json.Unmarshal([]byte(line), &e) != nil || e.Status.Code >= 300 || e.Status.Code < 200 {
		return action{}, false
	}
	a := action{Controller: controller, Begun: e.Received, Ended: e.Stage}
	switch user := e.User.Username; {
	case user == "system:"+scheduler:
		a.Component = scheduler
	case user == "system:"+kcm || strings.HasPrefix(user, "system:serviceaccount:kube-system:"):
		a.Component = kcm
	default:
		return action{}, false
	}
	switch e.Verb {
	case "create", "update", "patch", "delete", "deletecollection":
	default:
		return action{}, false
	}
	switch e.Object.Group {
	case "authentication.k8s.io", "authorization.k8s.io": // questions, of the ports 10257 and 10259, too
		return action{}, false
	case "coordination.k8s.io":
		return action{}, false // the leases themselves
	}
	what := e.Object.Resource
	if e.Object.Subresource != "" {
		what += "/" + e.Object.Subresource
	}
	a.What = fmt.Sprintf("%s %s %s/%s", e.Verb, what, e.Object.Namespace, e.Object.Name)
	return a, true
}

// The reader of audit logs finds actions, and nothing else, over a line that is
// written in two parts, one that has no end, and a rotation.
func TestAuditLog(t *testing.T) {
	line := func(user, verb, group, resource string, code int) string {
		return fmt.Sprintf(eventBegin+`,"verb":%q,"user":{"username":%q},"objectRef":{"apiGroup":%q,"resource":%q,"namespace":"default","name":"x"},"responseStatus":{"code":%d},`+
			`"requestReceivedTimestamp":"2026-01-02T03:04:05.000001Z","stageTimestamp":"2026-01-02T03:04:05.100000Z"}`+"\n", verb, user, group, resource, code)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	put := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	log := &auditLog{controller: "c1", path: path}
	want := func(whats ...string) {
		t.Helper()
		got, err := log.actions()
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, a := range got {
			texts = append(texts, a.Component+" on "+a.Controller+": "+a.What)
			if !a.Ended.After(a.Begun) {
				t.Errorf("%s: begun %v, ended %v", a.What, a.Begun, a.Ended)
			}
		}
		wantProblems(t, texts, whats)
	}
	bind := line("system:kube-scheduler", "create", "", "pods", 201)
	put(line("admin", "create", "", "pods", 201) + bind + line("system:kube-scheduler", "get", "", "pods", 200) +
		line("system:kube-scheduler", "patch", "", "pods", 409) + line("system:kube-controller-manager", "create", "authorization.k8s.io", "subjectaccessreviews", 201) +
		line("system:serviceaccount:kube-system:replicaset-controller", "create", "", "pods", 201) + bind[:40])
	want("kube-scheduler on c1: create pods default/x", "kube-controller-manager on c1: create pods default/x")
	want()
	put(bind[40:])
	want("kube-scheduler on c1: create pods")
	put(bind[:len(bind)/2]) // and then it was killed
	want()
	put(bind)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	put(line("system:kube-controller-manager", "delete", "", "pods", 200))
	want("kube-scheduler on c1: create pods", "kube-controller-manager on c1: delete pods")
}
