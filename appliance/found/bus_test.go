package found

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// service has the properties of a service in the types that D-Bus gives them.
func service(more map[string]any, commands ...[]any) map[string]any {
	p := map[string]any{"Id": "kube-apiserver.service", "LoadState": "loaded", "FragmentPath": "/etc/systemd/system/kube-apiserver.service", "ExecStartEx": commands}
	for key, value := range more {
		p[key] = value
	}
	return p
}

// command is one of ExecStartEx.
func command(flags []string, path string, words ...string) []any {
	return []any{path, words, flags, uint64(0), uint64(0), uint64(0), uint64(0), uint32(0), int32(0), int32(0)}
}

// What systemd says becomes the words that it starts the program with.
func TestProperties(t *testing.T) {
	const exe = "/usr/bin/kube-apiserver"
	file := filepath.Join(t.TempDir(), "100% of the settings")
	if err := os.WriteFile(file, []byte("FILE=from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// systemd has resolved what looks like a specifier or an escape here.
	awkward := []string{"--a=two words", `--b=it's "quoted"`, `--c=back\slash\n`, "--d=%n", "--e=", "", "two\nlines"}
	for name, tt := range map[string]struct {
		properties map[string]any
		want       []string
		problem    string
	}{
		"words":              {service(nil, command(nil, exe, append([]string{exe}, awkward...)...)), awkward, ""},
		"variables":          {service(map[string]any{"Environment": []string{"X=--v=3 --w=4", "GONE=x"}, "UnsetEnvironment": []string{"GONE"}}, command(nil, exe, exe, "$X", "--y=${X}${GONE}", "$$")), []string{"--v=3", "--w=4", "--y=--v=3 --w=4", "$"}, ""},
		"files of variables": {service(map[string]any{"EnvironmentFiles": [][]any{{file, false}, {file + "-none", true}}}, command(nil, exe, exe, "--x=${FILE}")), []string{"--x=from the file"}, ""},
		"a file is missing":  {service(map[string]any{"EnvironmentFiles": [][]any{{file + "-none", false}}}, command(nil, exe, exe)), nil, "no such file"},
		"no expansion":       {service(nil, command([]string{"no-env-expand"}, exe, exe, "$X", "${X}")), []string{"$X", "${X}"}, ""},
		"another argv[0]":    {service(nil, command([]string{"privileged", "no-env-expand"}, "/opt/hyperkube", "kube-apiserver", "--v=$1")), []string{"--v=$1"}, ""},
		"systemd before 243": {map[string]any{"Id": "kube-apiserver.service", "LoadState": "loaded", "ExecStart": [][]any{{exe, []string{exe, "--v=1"}, true}}}, []string{"--v=1"}, ""},
		"two commands":       {service(nil, command(nil, exe, exe), command(nil, exe, exe)), nil, "has 2 lines ExecStart="},
		"a wrapper script":   {service(nil, command(nil, "/bin/sh", "sh", "-c", "exec kube-apiserver --v=1")), nil, "which is not the program itself"},
	} {
		t.Run(name, func(t *testing.T) {
			u, is := fromProperties(tt.properties)
			if !is {
				t.Fatal("no unit")
			}
			p, err := u.program()
			switch {
			case tt.problem != "":
				if err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Errorf("got %v, want %q", err, tt.problem)
				}
			case err != nil || p.Name != "kube-apiserver" || !slices.Equal(p.Args, tt.want):
				t.Errorf("got %q %q, %v, want %q", p.Name, p.Args, err, tt.want)
			}
		})
	}
	for _, state := range []string{"masked", "not-found"} {
		if u, is := fromProperties(service(map[string]any{"LoadState": state}, command(nil, exe, exe))); is {
			t.Errorf("%s: got %v, want none", state, u)
		}
	}
	if u, _ := fromProperties(service(map[string]any{"NeedDaemonReload": true}, command(nil, exe, exe))); !u.stale {
		t.Error("a newer file waits, and nothing says so")
	}
}

// Where no systemd answers that is no news, and the files are read. A bus that fails is news.
func TestNoSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/private"); err == nil && os.Geteuid() == 0 {
		t.Skip("systemd answers root without a bus")
	}
	socket := filepath.Join(t.TempDir(), "bus")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	notes := func() string {
		m := &Machine{}
		m.services(t.Context(), "/")
		return strings.Join(m.Notes, "\n")
	}
	if got := notes(); strings.Contains(got, "systemd does not tell") {
		t.Errorf("without a bus: got %q", got)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			conn.Close()
		}
	}()
	if got := notes(); !strings.Contains(got, "systemd does not tell its units (") {
		t.Errorf("with a bus that hangs up: got %q", got)
	}
}
