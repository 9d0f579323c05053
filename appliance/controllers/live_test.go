package controllers

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/harness"
)

func liveOf(t *testing.T) (*Live, pki.Layout) {
	t.Helper()
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	return NewLive(l.Kubeconfig(pki.NameScheduler), t.TempDir(), slog.New(slog.DiscardHandler)), l
}

// Clients of the live kubeconfig read the certificate from a file, and that file follows the
// original.
func TestLiveFollows(t *testing.T) {
	old := liveLook
	liveLook = 10 * time.Millisecond
	t.Cleanup(func() { liveLook = old })
	live, l := liveOf(t)
	config, err := clientcmd.BuildConfigFromFlags("", live.Path())
	if err != nil || config.CertFile == "" || config.CertFile != config.KeyFile || len(config.CertData)+len(config.KeyData)+len(config.CAData) > 0 || config.CAFile == "" {
		t.Fatalf("got %q and %q, %v; want files with both, and one with the CAs", config.CertFile, config.KeyFile, err)
	}
	for _, file := range []string{live.Path(), config.CertFile} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	before, err := tls.LoadX509KeyPair(config.CertFile, config.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { live.Follow(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	harness.WaitFor(t, "the new certificate", time.Minute, func() error {
		// Again and again, because Follow may not have begun.
		if _, err := pki.Renew(l, pki.RenewOptions{Names: []string{pki.NameScheduler}}); err != nil {
			return err
		}
		pair, err := tls.LoadX509KeyPair(config.CertFile, config.KeyFile)
		if err == nil && pair.Leaf.Equal(before.Leaf) {
			err = errors.New("it is the old one")
		}
		return err
	})
}

// What names a file, or is broken, is used as it is, and so are other kubeconfigs.
func TestLiveLeavesOthersAlone(t *testing.T) {
	live, l := liveOf(t)
	args := live.in([]program.Arg{{Key: "kubeconfig", Value: live.from}, {Key: "authentication-kubeconfig", Value: "/other"}, {Key: "config", Value: live.from}})
	if args[0].Value == live.from || args[1].Value != "/other" || args[2].Value != live.from {
		t.Errorf("got %+v", args)
	}
	if got := live.of("/other"); got != "/other" {
		t.Errorf("got %s", got)
	}
	text, err := os.ReadFile(live.from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(live.from, text[:200], 0o600); err != nil {
		t.Fatal(err)
	}
	if got := live.Path(); got != live.from {
		t.Errorf("half a kubeconfig: got %s", got)
	}
	if got := (*Live)(nil).of(l.Dir); got != l.Dir {
		t.Errorf("without one: got %s", got)
	}
}

// The scheduler's configuration file gets the live kubeconfig, if it names the original, and
// nothing else changes.
func TestLiveInSchedulerConfig(t *testing.T) {
	live, _ := liveOf(t)
	file := filepath.Join(t.TempDir(), "kube-scheduler.yaml")
	write := func(kubeconfig string) string {
		t.Helper()
		text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n# mine\nclientConnection:\n  kubeconfig: " + kubeconfig + "\nparallelism: 3\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := live.inSchedulerConfig(file)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := write("/other"); got != file {
		t.Errorf("another kubeconfig: got %s", got)
	}
	got, err := os.ReadFile(write(live.from))
	if err != nil || !strings.Contains(string(got), "kubeconfig: "+live.Path()+"\n") || !strings.Contains(string(got), "parallelism: 3") {
		t.Errorf("got %s, %v", got, err)
	}
}
