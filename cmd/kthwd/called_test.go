package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/appliance/logging"
	"kthwd/appliance/status"
	"kthwd/cmd/kthwd/cli"
)

// A command in advice begins with the word that works here; the names of units, directories
// and other machines' commands stay.
func TestAsTyped(t *testing.T) {
	a := newApp(io.Discard, io.Discard)
	a.Called = "bin/kthwd"
	for advice, want := range map[string]string{
		"kthwd status": "bin/kthwd status",
		"start it: kthwd --role=controller --config=/etc/kthwd/c.yaml":                                  "start it: bin/kthwd --role=controller --config=/etc/kthwd/c.yaml",
		"run `kthwd etcd space`, then `kthwd status`":                                                   "run `bin/kthwd etcd space`, then `bin/kthwd status`",
		"kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here": "kthwd member add NAME ADDRESS on another controller, then bin/kthwd join with --replace-data here",
		"run kthwd status on these machines":                                                            "run kthwd status on these machines",
		"restart kthwd; systemctl status kthwd-controller; journalctl -u kthwd --since=today":           "restart kthwd; systemctl status kthwd-controller; journalctl -u kthwd --since=today",
	} {
		if got := a.AsTyped(advice); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	r := status.Report{Findings: []status.Finding{{Do: "kthwd pki show"}}}
	if got := r.Spelled(a.AsTyped).Findings[0].Do; got != "bin/kthwd pki show" || r.Findings[0].Do != "kthwd pki show" {
		t.Errorf("got %q, and %q in the report itself", got, r.Findings[0].Do)
	}
	if got := (&cli.App{Called: "kthwd"}).AsTyped("kthwd status"); got != "kthwd status" {
		t.Errorf("found by the shell: got %q", got)
	}
}

// The hints of a log name commands as the advice on the terminal does.
func TestHintsAsTyped(t *testing.T) {
	var log bytes.Buffer
	a := newApp(io.Discard, &log)
	a.Called = "bin/kthwd"
	logs, err := a.NewLogs(logging.Text, nil)
	if err != nil {
		t.Fatal(err)
	}
	logs.Logger("etcd").Warn("full", "hint", "kthwd etcd space; then restart kthwd")
	if want := `hint="bin/kthwd etcd space; then restart kthwd"`; !strings.Contains(log.String(), want) {
		t.Errorf("got %s want %s", log.String(), want)
	}
}

// The name is kthwd where the shell finds this very program under it.
func TestCalledAs(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if got := cli.CalledAs("bin/kthwd"); got != "bin/kthwd" {
		t.Errorf("not in PATH: got %q", got)
	}
	other := filepath.Join(dir, "kthwd")
	if err := os.WriteFile(other, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := cli.CalledAs("my bin/kthwd"); got != "'my bin/kthwd'" {
		t.Errorf("another program in PATH: got %q", got)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, other); err != nil {
		t.Fatal(err)
	}
	if got := cli.CalledAs("bin/kthwd"); got != "kthwd" {
		t.Errorf("in PATH: got %q", got)
	}
}
