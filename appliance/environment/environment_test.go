package environment

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpproxy"

	"kthwd/test/harness"
)

// TestPage holds the table in the docs to Table.
func TestPage(t *testing.T) {
	const begin, end = "<!-- table of appliance/environment: make golden -->\n", "<!-- end -->\n"
	page := filepath.Join("..", "..", "docs", "operations", "environment.md")
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := strings.Cut(string(data), begin)
	_, after, ended := strings.Cut(rest, end)
	if !begun || !ended {
		t.Fatalf("%s lacks the marks of the table", page)
	}
	var b strings.Builder
	b.WriteString("| variable | kthwd | |\n|---|---|---|\n")
	for _, v := range Table() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, v.Action, v.Why)
	}
	harness.Golden(t, page, []byte(before+begin+b.String()+end+after))
}

// reads finds the name of a variable that is read as a literal, or a constant that looks
// like one, in a file that reads variables.
var (
	reads    = regexp.MustCompile(`\b(?:Getenv|LookupEnv)\(`)
	literal  = regexp.MustCompile(`\b(?:Getenv|LookupEnv)\("([A-Za-z0-9_]+)"\)`)
	constant = regexp.MustCompile(`= +"([A-Z][A-Z0-9]*_[A-Z0-9_]+)"`)
)

// notOfDaemon are packages of upstream's own programs, which kthwd is by another name, and of
// kubectl drain, which a verb runs: they read the variables that they always read.
var notOfDaemon = []string{"kthwd/appliance/byname", "kthwd/appliance/early", "k8s.io/kubectl/pkg/drain"}

// TestTableIsComplete reads the sources that are linked into the daemon: each variable that
// they read must have a row.
func TestTableIsComplete(t *testing.T) {
	if testing.Short() {
		t.Skip("runs go list")
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}`, "kthwd/cmd/kthwd/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports := slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool {
		return slices.Contains(notOfDaemon, path) || strings.HasPrefix(path, "kthwd/cmd/kthwd/")
	})
	args := append([]string{"list", "-deps", "-f", `{{if not .Standard}}{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}`}, imports...)
	out, err = exec.CommandContext(t.Context(), "go", args...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	files := strings.Fields(string(out))
	found := map[string]string{}
	for _, file := range files {
		own := strings.Contains(file, "/cmd/kthwd/") || strings.Contains(file, "/appliance/")
		// Tests of a terminal, a manual page, and what the table's package itself names.
		if own || strings.Contains(file, "spf13/cobra") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !reads.Match(data) {
			continue
		}
		for _, m := range slices.Concat(literal.FindAllSubmatch(data, -1), constant.FindAllSubmatch(data, -1)) {
			found[string(m[1])] = file
		}
	}
	if len(found) < 30 {
		t.Fatalf("got %d variables in %d files: the pattern finds no longer what it did", len(found), len(files))
	}
	for name, file := range found {
		if _, ok := Of(name); !ok && !notOfLinux[name] {
			t.Errorf("%s, which %s reads, has no row in the table", name, file)
		}
	}
}

// notOfLinux are variables of other systems, and constants that are no variables.
var notOfLinux = map[string]bool{
	"HOMEDRIVE": true, "HOMEPATH": true, "USERPROFILE": true, "SYSTEMDRIVE": true,
}

// clear removes each variable that the table names for the time of a test.
func clear(t *testing.T) {
	t.Helper()
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		if _, ok := Of(name); ok {
			t.Setenv(name, value) // puts it back
			os.Unsetenv(name)
		}
	}
}

func TestTake(t *testing.T) {
	clear(t)
	for _, v := range Table() {
		t.Setenv(strings.Replace(v.Name, "*", "XYZ", 1), "s3cret")
	}
	notes := Take(nil)
	for _, v := range Table() {
		name := strings.Replace(v.Name, "*", "XYZ", 1)
		_, there := os.LookupEnv(name)
		if want := v.Action != Removed && v.Action != Refused; there != want {
			t.Errorf("%s, %s: in the environment %v, want %v", name, v.Action, there, want)
		}
		said := slices.ContainsFunc(notes, func(n Note) bool { return n.Name == name && n.Warning })
		if want := v.Action == Warned || v.Action == Refused; said != want {
			t.Errorf("%s, %s: a warning %v, want %v", name, v.Action, said, want)
		}
	}
}

func TestProxies(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		t.Run(name, func(t *testing.T) {
			clear(t)
			t.Setenv("NO_PROXY", "")
			t.Setenv("no_proxy", "kept.example.com")
			t.Setenv(name, "http://user:s3cret@10.8.0.99:3128")
			notes := Take([]string{"lb.example.com"})
			if len(notes) != 1 || notes[0].Name != name || !strings.Contains(notes[0].Text, "10.8.0.99:3128") || strings.Contains(notes[0].Text, "s3cret") {
				t.Errorf("notes: got %+v, want one that names the proxy without its password", notes)
			}
			proxy := httpproxy.FromEnvironment().ProxyFunc()
			scheme := strings.ToLower(strings.TrimSuffix(strings.ToLower(name), "_proxy"))
			for host, want := range map[string]bool{
				"10.0.1.73:2380": false, "[fd00::1]:2380": false, "203.0.113.9:10250": false, "127.0.0.1:6443": false, "localhost:6443": false,
				"lb.example.com:6443": false, "hook.default.svc:443": false, "a.b.svc.cluster.local": false, "kept.example.com": false,
				"hooks.example.com": true, "oidc.example.com:8443": true,
			} {
				got, err := proxy(&url.URL{Scheme: scheme, Host: host})
				if err != nil || (got != nil) != want {
					t.Errorf("%s://%s: got proxy %v, %v, want one %v", scheme, host, got, err, want)
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		clear(t)
		if notes := Take([]string{"lb.example.com"}); len(notes) > 0 || os.Getenv("NO_PROXY") != "" {
			t.Errorf("got %+v and NO_PROXY=%s, want nothing", notes, os.Getenv("NO_PROXY"))
		}
	})
}

// A program that runs without kthwd gets what its code reads on purpose, and no proxy is asked
// for an address.
func TestHanded(t *testing.T) {
	got := Handed([]string{
		"HTTPS_PROXY=http://proxy:3128", "NO_PROXY=example.com", "TZ=Asia/Tokyo", "PATH=/bin", "GOGC=50", "ETCD_NAME=x", "KUBECONFIG=/x",
		"NOTIFY_SOCKET=/x", "UNKNOWN=1", "SSL_CERT_FILE=/ca", "",
	}, []string{"api.internal"})
	direct := "example.com,0.0.0.0/0,::/0,localhost,.svc,.cluster.local,api.internal"
	want := []string{"HTTPS_PROXY=http://proxy:3128", "NO_PROXY=" + direct, "SSL_CERT_FILE=/ca", "TZ=Asia/Tokyo", "no_proxy=" + direct}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Handed([]string{"NO_PROXY=example.com", "HOME=/"}, nil); len(got) != 0 {
		t.Errorf("without a proxy: got %q", got)
	}
}
