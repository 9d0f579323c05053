package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/lastrun"
	"kthwd/appliance/status"
	"kthwd/cmd/kthwd/cli"
	"kthwd/test/harness"
)

// A process that is only a load balancer records its run beside its socket: an orderly stop
// and a kill are told by the next run, and by the verb while none runs.
func TestBalancerRecordsItsRun(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "status.sock")
	files, _ := cli.BalancerRun(socket)
	client := status.Client{Socket: socket}
	run := func(look func(status.Report)) {
		t.Helper()
		b, _, _, _ := newFake(t, "backend: [10.0.0.1:6443]\n", "--status-socket="+socket)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.run(ctx) }()
		var r status.Report
		harness.WaitFor(t, "the status", time.Minute, func() (err error) {
			r, err = client.Status(ctx)
			return err
		})
		look(r)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	run(func(r status.Report) {
		if r.LastRun != nil {
			t.Errorf("the first run: got %+v before it", r.LastRun)
		}
	})
	ask := cli.Target{Client: client}
	if err := ask.Explain(status.ErrNotRunning); !strings.Contains(err.Error(), "the last run: stopped in order at ") || !errors.Is(err, status.ErrNotRunning) {
		t.Errorf("without a process: got %v", err)
	}

	data, err := os.ReadFile(files.Record())
	if err == nil { // as if it had been killed
		data = regexp.MustCompile(`(?m)^ *"(?:endedAt|askedAt|signal)": .*\n`).ReplaceAll(data, nil)
		data = regexp.MustCompile(`"process": "\d+"`).ReplaceAll(data, []byte(`"process": "1"`))
		err = os.WriteFile(files.Record(), bytes.TrimSpace(data), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(func(r status.Report) {
		if r.LastRun == nil || r.LastRun.Kind != lastrun.Killed || !strings.Contains(r.LastRun.Do, "kthwd-lb") {
			t.Errorf("after a kill: got %+v", r.LastRun)
		}
		if len(r.Findings) == 0 || r.Findings[0].Kind != "last_run" {
			t.Errorf("after a kill: got the findings %+v", r.Findings)
		}
	})
	if end, err := files.Last(); err != nil || end.Kind != lastrun.Stopped {
		t.Errorf("after both runs: got %+v and %v", end, err)
	}
}
