package attack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"kthwd/appliance/config"
	"kthwd/appliance/program"
	"kthwd/test/kthwtest"
)

// A namespace that floods the cluster with Events is refused after those of a rolling
// update of 5000 pods, and takes nothing from the others: their Events are accepted, and so is
// every other request of its own. With both profiles, for there is one file for all plugins.
// The flood of the shipped limits is 50 000 requests; without KTHWD_E2E=1 the limits are a
// hundredth of that, in a file of the user's.
func TestFloodOfEvents(t *testing.T) {
	t.Parallel()
	for profile, plugins := range map[string]string{config.ProfileGuide: "EventRateLimit", config.ProfileCIS: "EventRateLimit PodSecurity"} {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			shipped := string(program.AdmissionConfig(config.Controller{Profile: profile}))
			names, limits := readAdmission(t, shipped)
			if names != plugins {
				t.Errorf("the file has settings of %q, want %s", names, plugins)
			}
			if limits["Namespace"].Burst < 5000*10 {
				t.Errorf("a namespace may make %d Events at once: a rolling update of 5000 pods makes more", limits["Namespace"].Burst)
			}
			// Upstream takes what it refuses a namespace from the server's limit, too.
			if server, one := limits["Server"], limits["Namespace"]; server.Burst < 4*one.Burst || server.QPS < 10*one.QPS {
				t.Errorf("limits %+v: one namespace uses up the server's", limits)
			}
			args := []string{"--profile=" + profile}
			if os.Getenv("KTHWD_E2E") == "" {
				var more []string
				more, limits = scaled(t, shipped, limits, 100)
				args = append(args, more...)
			}
			flood(t, start(t, kthwtest.Options{Args: args}), limits)
		})
	}
}

type limit struct {
	Type       string
	QPS, Burst int
}

// readAdmission returns the plugins of a file with settings, and the limits of Events by type.
func readAdmission(t *testing.T, text string) (names string, limits map[string]limit) {
	t.Helper()
	var file struct {
		Plugins []struct {
			Name          string
			Configuration struct{ Limits []limit }
		}
	}
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	limits = map[string]limit{}
	for _, p := range file.Plugins {
		names = strings.TrimSpace(names + " " + p.Name)
		for _, l := range p.Configuration.Limits {
			limits[l.Type] = l
		}
	}
	return names, limits
}

// scaled returns flags that name a file of the user's with kthwd's limits, divided.
func scaled(t *testing.T, text string, limits map[string]limit, by int) (flags []string, less map[string]limit) {
	t.Helper()
	less = map[string]limit{}
	for name, l := range limits {
		less[name] = limit{name, max(1, l.QPS/by), l.Burst / by}
		is := fmt.Sprintf("qps: %d, burst: %d}", l.QPS, l.Burst)
		if !strings.Contains(text, is) {
			t.Fatalf("no %q in\n%s", is, text)
		}
		text = strings.Replace(text, is, fmt.Sprintf("qps: %d, burst: %d}", less[name].QPS, less[name].Burst), 1)
	}
	path := filepath.Join(t.TempDir(), "admission.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--kube-apiserver-arg=admission-control-config-file=" + path,
		"--kube-apiserver-arg=enable-admission-plugins=NamespaceLifecycle,NodeRestriction,EventRateLimit"}, less
}

// flood sends Events of one namespace until they are refused.
func flood(t *testing.T, c *cluster, limits map[string]limit) {
	rest := c.RESTConfig(t)
	rest.QPS = -1
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"flood", "quiet"} {
		if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	before := passed(t, client)
	made, err := untilRefused(t, client, 4*limits["Namespace"].Burst)
	if err == nil || !strings.Contains(err.Error(), "limit reached on type Namespace for key flood") {
		t.Fatalf("after %d events: got %v, want a refusal by the limit of the namespace", made, err)
	}
	// Upstream asks the plugin again for an Event whose generated name is taken.
	if n := passed(t, client) - before; n < limits["Namespace"].Burst {
		t.Errorf("refused after %d events passed, want at least the burst of %d", n, limits["Namespace"].Burst)
	}
	t.Logf("%d events before the refusals", made)
	// While the flood goes on, nobody else notices it.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	refused := atomic.Int64{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if apierrors.IsTooManyRequests(postEvent(ctx, client, "flood")) {
					refused.Add(1)
				}
			}
		})
	}
	accepted := 0
	for before := refused.Load(); refused.Load() < before+100 || accepted == 0; {
		one := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "of-the-flood-"}}
		_, other := client.CoreV1().ConfigMaps("flood").Create(t.Context(), one, metav1.CreateOptions{})
		event := postEvent(t.Context(), client, "quiet")
		switch {
		case apierrors.IsTooManyRequests(event):
			t.Fatalf("an event of another namespace: %v", event)
		case apierrors.IsTooManyRequests(other):
			t.Fatalf("another object of the same namespace: %v", other)
		case event == nil && other == nil:
			accepted++
		default:
			t.Logf("not refused, and tried again: %v, %v", event, other) // a machine that is too busy
		}
	}
	t.Logf("%d times both were accepted", accepted)
	stop()
	wg.Wait()
}

var passedEvents = regexp.MustCompile(`(?m)^apiserver_admission_controller_admission_duration_seconds_count\{name="EventRateLimit",operation="CREATE",rejected="false",type="validate"\} (\d+)$`)

// passed is how many times EventRateLimit has let a new Event pass.
func passed(t *testing.T, client kubernetes.Interface) (n int) {
	t.Helper()
	text, err := client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m := passedEvents.FindSubmatch(text); m != nil { // absent before the first
		n, _ = strconv.Atoi(string(m[1]))
	}
	return n
}

// untilRefused makes Events with 32 clients at once until one is refused, or until there are too
// many. Those that failed otherwise, by a timeout, may have been made: they count.
func untilRefused(t *testing.T, client kubernetes.Interface, most int) (made int, refusal error) {
	var n atomic.Int64
	var wg sync.WaitGroup
	var first atomic.Pointer[error]
	for range 32 {
		wg.Go(func() {
			for first.Load() == nil && n.Load() < int64(most) {
				if err := postEvent(t.Context(), client, "flood"); apierrors.IsTooManyRequests(err) {
					first.CompareAndSwap(nil, &err)
				} else {
					n.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if err := first.Load(); err != nil {
		refusal = *err
	}
	return int(n.Load()), refusal
}

func postEvent(ctx context.Context, client kubernetes.Interface, namespace string) error {
	_, err := client.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "e-", Namespace: namespace},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: "p"},
		Reason:         "Flood", Message: "one of many", Type: corev1.EventTypeNormal,
	}, metav1.CreateOptions{})
	return err
}
