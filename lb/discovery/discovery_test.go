package discovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd/api"

	"kthwd/lb"
)

func TestFollows(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.73", "127.9.1.35"))
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.35:6443,127.9.1.73:6443")
	<-s.opened
	<-f.Ready
	<-f.First()
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"one more", func() { s.put(slice("kubernetes", "127.9.1.73", "127.9.1.35", "127.9.1.9")) }, "127.9.1.9:6443,127.9.1.35:6443,127.9.1.73:6443"},
		{"one is not ready", func() { s.put(slice("kubernetes", "127.9.1.73", "!127.9.1.35")) }, "127.9.1.73:6443"},
		{"twice in one slice", func() { s.put(slice("kubernetes", "127.9.1.35", "127.9.1.35")) }, "127.9.1.35:6443"},
		{"a second slice, with one of the first", func() { s.put(slice("kubernetes-b", "127.9.1.35", "127.9.1.36")) }, "127.9.1.35:6443,127.9.1.36:6443"},
		{"IPv6", func() { s.put(slice("kubernetes-v6", "fd00::1")) }, "127.9.1.35:6443,127.9.1.36:6443,[fd00::1]:6443"},
		{"a slice goes", func() { s.remove("kubernetes-b") }, "127.9.1.35:6443,[fd00::1]:6443"},
	} {
		step.do()
		f.want(step.want)
		if t.Failed() {
			t.Fatal(step.name)
		}
	}
	if st := f.Status(); st.Server != s.URL || st.Error != "" || st.LastSuccess.IsZero() {
		t.Errorf("status: %+v", st)
	}
	if n := f.log.Count("INFO", "following the backends"); n != 1 {
		t.Errorf("said %d times that it follows, want once", n)
	}
}

func TestBackendsOfASlice(t *testing.T) {
	port := func(p int32) *int32 { return &p }
	name := func(n string) *string { return &n }
	for what, tt := range map[string]struct {
		change func(s *slicePointer)
		want   string
	}{
		"as it is":           {func(*slicePointer) {}, "127.9.1.1:6443"},
		"readiness not said": {func(s *slicePointer) { s.Endpoints[0].Conditions.Ready = nil }, "127.9.1.1:6443"},
		"names":              {func(s *slicePointer) { s.AddressType = "FQDN" }, ""},
		"another port":       {func(s *slicePointer) { s.Ports[0].Name = name("metrics") }, ""},
		"port without name":  {func(s *slicePointer) { s.Ports[0].Name = nil }, ""},
		"port for all":       {func(s *slicePointer) { s.Ports[0].Port = nil }, ""},
		"impossible port":    {func(s *slicePointer) { s.Ports[0].Port = port(0) }, ""},
		"no address":         {func(s *slicePointer) { s.Endpoints[0].Addresses[0] = "x" }, ""},
		"mapped":             {func(s *slicePointer) { s.Endpoints[0].Addresses[0] = "::ffff:127.9.1.2" }, "127.9.1.2:6443"},
	} {
		s := slice("kubernetes", "127.9.1.1")
		tt.change(s)
		if got := strings.Join(backends(s), ","); got != tt.want {
			t.Errorf("%s: got %q, want %q", what, got, tt.want)
		}
	}
}

func TestListsAnewWhenTheVersionIsGone(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.1:6443")
	<-s.opened
	s.expireVersions()
	<-s.opened
	if s.listed() != 2 {
		t.Errorf("listed %d times, want 2", s.listed())
	}
	f.wantNone()
	s.put(slice("kubernetes", "127.9.1.2"))
	f.want("127.9.1.2:6443")

	// For a while, the version has expired when the watch starts.
	s.refuses("watch", 410, metav1.StatusReasonExpired)
	s.expireVersions()
	before := s.listed()
	eventually(t, "some lists", func() error {
		if s.listed() < before+3 {
			return errors.New("too few")
		}
		return nil
	})
	s.refuses("watch", 0, "")
	<-s.opened
	s.put(slice("kubernetes", "127.9.1.3"))
	f.want("127.9.1.3:6443")
	if got := testutil.ToFloat64(only(t, f.Collector(), "kthwd_lb_discovery_errors_total", "api")); got != 0 {
		t.Errorf("counted %v errors, want none", got)
	}
}

func TestAnEmptyListChangesNothing(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.1:6443")
	<-s.opened
	s.put(slice("kubernetes"))
	f.says("lists no backend that is ready")
	s.put(slice("kubernetes", "!127.9.1.1"))
	s.remove("kubernetes")
	s.expireVersions()
	<-s.opened
	f.wantNone()
	if n := f.log.Count("WARN", "lists no backend"); n != 1 {
		t.Errorf("said %d times, want once", n)
	}
	s.put(slice("kubernetes", "127.9.1.2"))
	f.want("127.9.1.2:6443")
	s.put(slice("kubernetes"))
	eventually(t, "said again", func() error {
		if f.log.Count("WARN", "lists no backend") != 2 {
			return errors.New("not yet")
		}
		return nil
	})
}

// The API is away: it is said once, the list stays, and it comes back by itself.
func TestUnreachable(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.1:6443")
	for round := 1; round <= 2; round++ {
		<-s.opened
		s.refuses("list", 503, metav1.StatusReasonServiceUnavailable)
		s.refuses("watch", 503, metav1.StatusReasonServiceUnavailable)
		s.cut()
		eventually(t, "a status with the error", func() error {
			if st := f.Status(); st.Error == "" || st.Server != "" {
				return fmt.Errorf("got %+v", st)
			}
			return nil
		})
		before := s.listed()
		eventually(t, "it is tried again", func() error {
			if s.listed() < before+3 {
				return errors.New("too few")
			}
			return nil
		})
		if got := f.Last(); len(got) != 1 || got[0] != "127.9.1.1:6443" {
			t.Errorf("list: got %v", got)
		}
		s.refuses("list", 0, "")
		s.refuses("watch", 0, "")
		eventually(t, "a status without", func() error {
			if st := f.Status(); st.Error != "" || st.Server == "" {
				return fmt.Errorf("got %+v", st)
			}
			return nil
		})
		if lost, back := f.log.Count("WARN", "backends not followed"), f.log.Count("INFO", "following the backends"); lost != round || back != round+1 {
			t.Errorf("logged %d times that no server answers and %d times that one does, want %d and %d", lost, back, round, round+1)
		}
	}
	f.wantNone()
	if got := testutil.ToFloat64(only(t, f.Collector(), "kthwd_lb_discovery_errors_total", "api")); got < 4 {
		t.Errorf("counted %v errors, want 4 at least", got)
	}
	if got := testutil.ToFloat64(only(t, f.Collector(), "kthwd_lb_discovery_backends", "")); got != 1 {
		t.Errorf("counted %v backends, want 1", got)
	}
}

// A server that answers the list but hangs up on the watch is not followed.
func TestWatchDoesNotBegin(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	s.refuses("watch", hangsUp, "")
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.1:6443")
	f.says("the watch did not begin")
	if st := f.Status(); !st.LastSuccess.IsZero() || st.Error == "" {
		t.Errorf("status: %+v", st)
	}
	s.refuses("watch", 0, "")
	<-s.opened
	f.says("following the backends")
}

func TestForbidden(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	s.refuses("watch", 403, metav1.StatusReasonForbidden)
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.1:6443") // the list is allowed
	f.says(`hint="the user of the kubeconfig must be allowed to get, list and watch endpointslices`)
	s.refuses("watch", 0, "")
	<-s.opened
	s.put(slice("kubernetes", "127.9.1.2"))
	f.want("127.9.1.2:6443")
}

// The server of the kubeconfig is down, or is the load balancer without a backend: the
// known backends are queried, by the name in the kubeconfig or by their own address.
func TestThroughABackend(t *testing.T) {
	for name, tt := range map[string]struct {
		server   string
		tlsName  string
		static   bool
		follows  bool
		problems string
	}{
		"static":                       {server: "127.0.0.1", static: true, follows: true},
		"cached":                       {server: "127.0.0.1", follows: true},
		"by its own name":              {server: "localhost", static: true, follows: true},
		"by the queried name":          {server: "localhost", tlsName: "example.com", static: true, follows: true},
		"not by a name that is no one": {server: "127.0.0.1", tlsName: "other.example.org", static: true, problems: "not other.example.org"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			s.put(slice("kubernetes", "127.9.1.1"))
			_, port, _ := strings.Cut(deaf(t), ":")
			c := Config{Kubeconfig: s.kubeconfig(at("https://"+tt.server+":"+port), func(c *api.Config) {
				c.Clusters["kubernetes"].TLSServerName = tt.tlsName
			})}
			if tt.static {
				c.Static = func() []string { return []string{deaf(t), s.address()} }
			} else {
				c.Cache = filepath.Join(t.TempDir(), "cache")
				write(t, c.Cache, `{"backends":["`+s.address()+`"]}`)
			}
			f := follow(t, c)
			if !tt.follows {
				f.says(tt.problems)
				f.wantNone()
				return
			}
			f.want("127.9.1.1:6443")
			<-s.opened
			<-f.Ready
			f.says(`msg="following the backends" server=https://` + s.address())
		})
	}
}

// The API servers have stopped one after the other, each removing itself from the list;
// the first to return is not the last one on the list.
func TestThroughAFormerBackend(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	cache := filepath.Join(t.TempDir(), "cache")
	write(t, cache, `{"backends":["`+deaf(t)+`"],"former":["`+deaf(t)+`","`+s.address()+`"]}`)
	f := follow(t, Config{Kubeconfig: s.kubeconfig(at("https://" + deaf(t))), Cache: cache})
	f.want("127.9.1.1:6443")
	<-s.opened
	f.says(`msg="following the backends" server=https://` + s.address())
}

// Where there are backends without it, discovery is ready at once.
func TestReady(t *testing.T) {
	s := newAPIServer(t)
	s.refuses("list", 503, metav1.StatusReasonServiceUnavailable)
	cache := filepath.Join(t.TempDir(), "cache")
	write(t, cache, `{"backends":["127.9.1.1:6443"]}`)
	for name, c := range map[string]Config{
		"static": {Static: func() []string { return []string{deaf(t)} }},
		"cached": {Cache: cache},
	} {
		t.Run(name, func(t *testing.T) {
			c.Kubeconfig = s.kubeconfig()
			f := follow(t, c)
			<-f.Ready
		})
	}
	t.Run("neither", func(t *testing.T) {
		f := follow(t, Config{Kubeconfig: s.kubeconfig()})
		f.says("backends not followed")
		select {
		case <-f.Ready:
			t.Error("ready without a backend")
		case <-f.First():
			t.Error("a list out of nothing")
		default:
		}
		s.put(slice("kubernetes", "127.9.1.2"))
		s.refuses("list", 0, "")
		f.want("127.9.1.2:6443")
		<-f.Ready
		<-f.First()
	})
}

// A rejected list is not cached, and is offered again.
func TestListThatIsNotTaken(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	cache := filepath.Join(t.TempDir(), "cache")
	f := make_(t, Config{Kubeconfig: s.kubeconfig(), Cache: cache})
	f.OnList(func(list []string) error {
		f.lists <- strings.Join(list, ",")
		if list[0] == "127.9.1.1:6443" {
			return errors.New("not that one")
		}
		return nil
	})
	f.run()
	f.want("127.9.1.1:6443")
	f.says(`err="not that one"`)
	<-s.opened
	if _, err := os.Stat(cache); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was cached: %v", err)
	}
	s.put(slice("kubernetes", "127.9.1.2"))
	f.want("127.9.1.2:6443")
}

// A kubeconfig that changes is used from the next round on; a broken one is not.
func TestKubeconfigChanges(t *testing.T) {
	s, other := newAPIServer(t), newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	other.put(slice("kubernetes", "127.9.1.2"))
	path := s.kubeconfig()
	f := follow(t, Config{Kubeconfig: path})
	f.want("127.9.1.1:6443")
	<-s.opened
	write(t, path, "[")
	s.expireVersions()
	<-s.opened
	f.says("changed kubeconfig not used")
	if err := os.Rename(other.kubeconfig(), path); err != nil {
		t.Fatal(err)
	}
	s.cut()
	f.want("127.9.1.2:6443")
	if n := f.log.Count("WARN", "changed kubeconfig not used"); n != 1 {
		t.Errorf("said %d times, want once", n)
	}
}

// Run leaves no connection behind: one through a load balancer would hold up its drain.
func TestHangsUp(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	f := follow(t, Config{Kubeconfig: s.kubeconfig()})
	f.want("127.9.1.1:6443")
	<-s.opened
	f.Stop()
	eventually(t, "no watch is left", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.watches) > 0 {
			return errors.New("one is")
		}
		return nil
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pause{least: time.Second, most: 30 * time.Second}
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			begun := time.Now()
			p.wait(t.Context())
			if got := time.Since(begun); got < want*time.Second/2 || got > want*time.Second {
				t.Errorf("got %v, want %ds or up to half of it less", got, want)
			}
		}
		p.reset()
		begun := time.Now()
		p.wait(t.Context())
		if got := time.Since(begun); got > time.Second {
			t.Errorf("after a success: got %v, want 1s at most", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begun = time.Now()
		p.wait(ctx)
		if time.Since(begun) != 0 {
			t.Error("waited after the end")
		}
	})
}

func TestBadKubeconfig(t *testing.T) {
	s := newAPIServer(t)
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	keyless := s.kubeconfig(func(c *api.Config) { c.AuthInfos["lb"] = &api.AuthInfo{} })
	for name, tt := range map[string]struct {
		path       string
		text       string
		mode       os.FileMode
		want, hint string
	}{
		"missing":         {path: missing, want: missing + ": no such file or directory", hint: "want the kubeconfig of a user"},
		"a directory":     {path: dir, want: "is a directory"},
		"broken YAML":     {text: "a: [", want: ": not a kubeconfig: "},
		"of another kind": {text: "kind: Pod\napiVersion: v1\n", want: ": not a kubeconfig: "},
		"empty":           {text: "", want: "has no current-context", hint: "kubectl config use-context"},
		"no cluster":      {path: s.kubeconfig(func(c *api.Config) { c.Contexts["lb"].Cluster = "x" }), want: `its current-context "lb" has no cluster`},
		"no TLS":          {path: s.kubeconfig(at("http://127.0.0.1:8080")), want: `server "http://127.0.0.1:8080" is not an https URL`},
		"no server":       {path: s.kubeconfig(at("")), want: "no server found for cluster"},
		"CA is missing": {path: s.kubeconfig(func(c *api.Config) {
			*c.Clusters["kubernetes"] = api.Cluster{Server: s.URL, CertificateAuthority: missing}
		}), want: missing},
		"CA is none":     {path: s.kubeconfig(func(c *api.Config) { c.Clusters["kubernetes"].CertificateAuthorityData = []byte("x") }), want: "unable to load root certificates"},
		"key is missing": {path: s.kubeconfig(func(c *api.Config) { c.AuthInfos["lb"] = &api.AuthInfo{ClientCertificate: missing, ClientKey: missing} }), want: missing},
		"readable token": {path: tokenFile(t, s, 0o644)},
		"writable token": {path: tokenFile(t, s, 0o646), want: "readable or writable by others (mode 0646)", hint: "chmod 600 "},
		"readable":       {path: s.kubeconfig(), mode: 0o604, want: "readable or writable by others (mode 0604)", hint: "chmod 600 "},
		"writable":       {path: keyless, mode: 0o602, want: "readable or writable by others (mode 0602)", hint: "chmod 600 "},
		"a group's":      {path: s.kubeconfig(), mode: 0o640},
		"no secret":      {path: keyless, mode: 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			path := tt.path
			if path == "" {
				path = filepath.Join(t.TempDir(), "kubeconfig")
				write(t, path, tt.text)
			}
			if tt.mode != 0 {
				if err := os.Chmod(path, tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			_, err := New(Config{Kubeconfig: path})
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			var p *lb.Problem
			if !errors.As(err, &p) || p.Field != "DiscoveryKubeconfig" || !strings.Contains(p.Text, tt.want) || !(strings.Contains(p.Text, path) || strings.Contains(p.Text, "token")) || !strings.HasPrefix(p.Hint, tt.hint) {
				t.Errorf("got %#v, want %q, the path and the hint %q", err, tt.want, tt.hint)
			}
		})
	}
}

// tokenFile is a kubeconfig with the token in another file.
func tokenFile(t *testing.T, s *apiServer, mode os.FileMode) string {
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, token)
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return s.kubeconfig(func(c *api.Config) { c.AuthInfos["lb"] = &api.AuthInfo{TokenFile: path} })
}

// only is one series of a collector.
func only(t *testing.T, c prometheus.Collector, name, label string) prometheus.Collector {
	t.Helper()
	all := make(chan prometheus.Metric, 100)
	c.Collect(all)
	close(all)
	for m := range all {
		if text := m.Desc().String(); strings.Contains(text, `"`+name+`"`) && (label == "" || hasLabel(m, label)) {
			return one{m}
		}
	}
	t.Fatalf("no series %s %s", name, label)
	return nil
}

type one struct{ m prometheus.Metric }

func (o one) Describe(ch chan<- *prometheus.Desc) { ch <- o.m.Desc() }
func (o one) Collect(ch chan<- prometheus.Metric) { ch <- o.m }
