package lb

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// bySource returns all backends with their source and use.
func bySource(s *Server) string {
	var all []string
	for _, b := range s.Status().Backends {
		words := []string{b.Address, b.Source, b.Use}
		if b.State == stateDraining {
			words = append(words, b.State)
		}
		all = append(all, strings.Join(strings.Fields(strings.Join(words, " ")), " "))
	}
	return strings.Join(all, "\n")
}

func discovering(t *testing.T, backends, discovered []string) *Server {
	t.Helper()
	c := Default()
	c.Listen = []string{"127.0.0.1:7443"}
	c.Check = CheckNone
	c.Backends, c.DiscoveryKubeconfig = backends, "/kubeconfig"
	s, err := New(c, Options{Log: slog.New(slog.DiscardHandler), Discovered: discovered})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stopBackends)
	return s
}

func TestSourceOfBackends(t *testing.T) {
	s := discovering(t, []string{"127.9.1.1:6443", "127.9.1.2:6443"}, nil)
	for _, step := range []struct {
		name string
		set  []string
		want string
	}{
		{"nothing yet", nil, "127.9.1.1:6443 static\n127.9.1.2:6443 static"},
		{"one of them, and another", []string{"127.9.1.2:6443", "[::1]:6443"}, "127.9.1.2:6443 discovered\n[::1]:6443 discovered\n127.9.1.1:6443 static last resort"},
		{"ourselves", []string{"127.0.0.1:7443"}, "127.9.1.2:6443 discovered\n[::1]:6443 discovered\n127.9.1.1:6443 static last resort"},
		{"all", []string{"127.9.1.1:6443", "127.9.1.2:6443", "[::1]:6443"}, "127.9.1.1:6443 discovered\n127.9.1.2:6443 discovered\n[::1]:6443 discovered"},
		{"another only", []string{"127.9.1.3:6443"}, "127.9.1.3:6443 discovered\n127.9.1.1:6443 static last resort\n127.9.1.2:6443 static last resort\n[::1]:6443 discovered draining"},
	} {
		if err := s.SetDiscovered(step.set); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := bySource(s); got != step.want {
			t.Errorf("%s: got\n%s\nwant\n%s", step.name, got, step.want)
		}
	}
	for _, bad := range []string{"0.0.0.0:6443", "api.test:6443", "_https._tcp.api.test", "10.0.0.1:6443 backup"} {
		if err := s.SetDiscovered([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestDiscoveredBefore(t *testing.T) {
	s := discovering(t, []string{"127.9.1.1:6443"}, []string{"127.9.1.2:6443", "127.0.0.1:7443"})
	if got := bySource(s); got != "127.9.1.2:6443 discovered\n127.9.1.1:6443 static last resort" {
		t.Errorf("got %s", got)
	}
}

func TestReloadOfDiscovery(t *testing.T) {
	for name, tt := range map[string]struct {
		discovered []string
		change     func(*Config)
		field      string
	}{
		"kubeconfig":                       {change: func(c *Config) { c.DiscoveryKubeconfig = "/other" }, field: "DiscoveryKubeconfig"},
		"cache":                            {change: func(c *Config) { c.DiscoveryCache = "/other" }, field: "DiscoveryCache"},
		"static backends, too early":       {change: func(c *Config) { c.Backends = nil }, field: "Backends"},
		"static backends, when discovered": {discovered: []string{"127.9.1.2:6443"}, change: func(c *Config) { c.Backends = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			s := discovering(t, []string{"127.9.1.1:6443"}, tt.discovered)
			c := *s.cfg.Load()
			tt.change(&c)
			err := s.Reload(c)
			var p *Problem
			switch errors.As(err, &p); {
			case tt.field == "" && err != nil, tt.field != "" && (p == nil || p.Field != tt.field || p.Hint == ""):
				t.Errorf("got %v, want a problem of %q with a hint", err, tt.field)
			}
		})
	}
}
