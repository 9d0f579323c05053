package adopt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/found"
	"kthwd/appliance/program"
)

// Words are read as the program reads them, those of flags that are gone, too.
func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, words, want string
	}{
		{program.Etcd, "-name c0 --client-cert-auth --data-dir=/d -listen-peer-urls https://a:1", "--name=c0 --client-cert-auth=true --data-dir=/d --listen-peer-urls=https://a:1"},
		{program.APIServer, "--allow_privileged --v 2 -v=3 --event-ttl 1h", "--allow-privileged=true --v=2 --v=3 --event-ttl=1h"},
		{program.APIServer, "--enable-swagger-ui --apiserver-count 3 --insecure-port=0", "--enable-swagger-ui=true --apiserver-count=3 --insecure-port=0"},
		{program.Scheduler, "--leader-elect --config /c", "--leader-elect=true --config=/c"},
		{program.ControllerManager, "--kubeconfig", "has no value"},
		{program.ControllerManager, "start", "is no flag"},
	} {
		args, err := parse(tt.name, strings.Fields(tt.words))
		got := strings.Join(program.Render(args), " ")
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
			t.Errorf("%s %s: got %q, want %q", tt.name, tt.words, got, tt.want)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	got, err := fromEnvironment([]program.Arg{{Key: "name", Value: "a"}}, []string{"ETCD_NAME=b", "ETCD_DATA_DIR=/x", "ETCD_DATA_DIR=/y", "ETCDCTL_API=3"})
	if want := []program.Arg{{Key: "name", Value: "a"}, {Key: "data-dir", Value: "/y"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// A program's own parser decides which values are the same.
func TestEqual(t *testing.T) {
	for _, tt := range []struct {
		name, key, a, b string
		want            bool
	}{
		{program.APIServer, "event-ttl", "1h", "60m", true},
		{program.APIServer, "event-ttl", "1h", "2h", false},
		{program.APIServer, "allow-privileged", "true", "1", true},
		{program.APIServer, "gone", "a", "b", false},
		{program.Etcd, "heartbeat-interval", "100", "0x64", true},
		{program.ControllerManager, "secure-port", "10257", "10258", false},
	} {
		if got := equal(tt.name, tt.key, tt.a, tt.b); got != tt.want {
			t.Errorf("--%s=%s and %s: got %t", tt.key, tt.a, tt.b, got)
		}
	}
}

// A process calls itself what it likes, so what another user could have written is not executed.
func TestAskVersion(t *testing.T) {
	dir := t.TempDir()
	exe, ran := filepath.Join(dir, "kube-apiserver"), filepath.Join(dir, "ran")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\ntouch "+ran+"\necho Kubernetes v1.36.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := AskVersion(t.Context(), exe); err != nil || got != "v1.36.1" {
		t.Errorf("got %q, %v, want v1.36.1", got, err)
	}
	if err := errors.Join(os.Remove(ran), os.Chmod(exe, 0o777)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "kube-apiserver")
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	if got, err := AskVersion(t.Context(), link); err == nil || !strings.Contains(err.Error(), "other users can write "+exe) {
		t.Errorf("got %q, %v, want that others can write it", got, err)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("it was executed")
	}
}

// Variables are named without their values, which may be secrets, and words that are no text are refused.
func TestEnvironmentAndText(t *testing.T) {
	m := &found.Machine{Missing: []string{program.Etcd, program.ControllerManager, program.Scheduler}, Programs: []found.Program{{
		Name: program.APIServer, From: "process 7", Kind: found.FromRunning, Version: "v1.2.3",
		Env: []string{"PATH=/bin", "HTTPS_PROXY=http://u:pw4711@proxy:1", "INVOCATION_ID=x"},
	}}}
	p := New(t.Context(), m, Options{})
	notes := strings.Join(p.Notes, "\n")
	if !strings.Contains(notes, "kube-apiserver, process 7, has HTTPS_PROXY in its environment") || strings.Contains(notes, "pw4711") {
		t.Errorf("got %q", notes)
	}
	// What is wrong apart from the missing programs is named at once, too.
	if !slices.ContainsFunc(p.Problems, func(err error) bool { return strings.Contains(err.Error(), "served by Kubernetes v1.2.3") }) {
		t.Errorf("got %v, want the version, too", p.Problems)
	}
	if _, err := parse(program.Etcd, []string{"--name=a\xff"}); err == nil || !strings.Contains(err.Error(), "is not UTF-8") {
		t.Errorf("got %v", err)
	}
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a", "10.0.0.1", "0x1f", "yes", "true", "1e3", "- x", "a: b", "~", "#", "\"\n\t\\", "é\u2028", "a=b", "2001-01-01", "=", ".inf"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ToValidUTF8(s, "") != s {
			return // no path or flag of kthwd may be so
		}
		var got string
		var node yaml.Node
		if err := yaml.Unmarshal([]byte("k: "+quote(s)+"\n"), &node); err != nil {
			t.Fatalf("%q as %s: %v", s, quote(s), err)
		}
		if got = node.Content[0].Content[1].Value; got != s {
			t.Errorf("%q as %s: got %q", s, quote(s), got)
		}
	})
}

// The plan for the guide has a verdict on each flag, whatever is missing on this machine.
func TestGuide(t *testing.T) {
	m := &found.Machine{}
	dir := t.TempDir()
	for name, flags := range map[string]string{
		program.Etcd:              "--name=c0 --data-dir=" + dir + " --initial-advertise-peer-urls=https://10.0.0.1:2380 --cert-file=/etc/etcd/kubernetes.pem",
		program.APIServer:         "--client-ca-file=" + dir + "/ca.pem --etcd-servers=https://127.0.0.1:2379 --insecure-port=8080 --runtime-config=api/all --enable-admission-plugins=Initializers,LimitRanger --experimental-encryption-provider-config=" + dir + "/encryption-config.yaml",
		program.ControllerManager: "--address=0.0.0.0 --cluster-cidr=10.9.0.0/16",
		program.Scheduler:         "--leader-elect=true",
	} {
		m.Programs = append(m.Programs, found.Program{Name: name, Exe: name, Args: strings.Fields(flags), From: name + ".service", Kind: found.FromUnits, Version: "v1.2.3"})
	}
	p := New(context.Background(), m, Options{})
	verdicts := map[string]string{}
	for _, pp := range p.Programs {
		for _, l := range pp.Lines {
			flag, _, _ := strings.Cut(l.Flag, "=")
			verdicts[pp.Name+" "+flag] = l.Verdict
		}
	}
	for flag, want := range map[string]string{
		"etcd --name": Key, "etcd --data-dir": Key, "kube-apiserver --insecure-port": Refused, "kube-apiserver --runtime-config": Same,
		"kube-apiserver --enable-admission-plugins": Translated, "kube-apiserver --client-ca-file": Same, "kube-apiserver --experimental-encryption-provider-config": Same,
		"kube-apiserver --etcd-servers": Dropped, "kube-controller-manager --address": Same, "kube-controller-manager --cluster-cidr": Key, "kube-scheduler --leader-elect": Dropped,
	} {
		if verdicts[flag] != want {
			t.Errorf("%s: got %q, want %q", flag, verdicts[flag], want)
		}
	}
	if p.File != nil || len(p.Problems) == 0 {
		t.Errorf("got a file %s and %d problems, want no file", p.File, len(p.Problems))
	}
	for _, err := range p.Problems {
		if hint, ok := advice.Of(err); !ok || hint == "" {
			t.Errorf("%v: no hint", err)
		}
	}
	if got := filepath.Dir(p.EtcdDir); got != filepath.Dir(dir) {
		t.Errorf("etcd's data: got %s, want %s", p.EtcdDir, dir)
	}
}

// TestLogElsewhere has etcd's log on another disk: a copy of the data has its own, and must not write into
// that of the original.
func TestLogElsewhere(t *testing.T) {
	for copied, want := range map[string]string{"": Passed, filepath.Join(t.TempDir(), "copy"): Dropped} {
		m := &found.Machine{Programs: []found.Program{{
			Name: program.Etcd, Exe: program.Etcd, From: "etcd.service", Kind: found.FromUnits, Version: "v1.2.3",
			Args: []string{"--name=c0", "--data-dir=" + t.TempDir(), "--wal-dir=" + t.TempDir()},
		}}}
		verdict := ""
		for _, pp := range New(t.Context(), m, Options{EtcdDir: copied}).Programs {
			for _, l := range pp.Lines {
				if strings.HasPrefix(l.Flag, "--wal-dir") {
					verdict = l.Verdict
				}
			}
		}
		if verdict != want {
			t.Errorf("with a copy at %q --wal-dir is %q; want %q", copied, verdict, want)
		}
	}
}
