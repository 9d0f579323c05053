package nodejoin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/workers"
)

// scripted is a script for a cluster whose API server is there.
func scripted(t *testing.T) Script {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/livez" || r.Header.Get("Authorization") != "" {
			http.Error(w, "not what a script asks for", http.StatusBadRequest)
		}
	}))
	t.Cleanup(server.Close)
	return Script{
		Options: Options{Server: server.URL, Token: "abcdef.0123456789abcdef", Name: "w0", Files: DefaultFiles()},
		CA:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		Cluster: workers.Cluster{DNS: []string{"10.32.0.10"}, Domain: "cluster.local"}, Expires: time.Now().Add(time.Hour),
	}
}

// join runs the script for a machine whose files are below root.
func (s Script) join(t *testing.T, root string, env ...string) (out string, err error) {
	t.Helper()
	lines, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh")
	cmd.Stdin = strings.NewReader(lines)
	cmd.Env = append(append(os.Environ(), "ROOT="+root), env...)
	said, err := cmd.CombinedOutput()
	return string(said), err
}

func filesBelow(t *testing.T, root string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			paths = append(paths, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// The script writes what kthwd node join writes, to the byte, and nothing the second time.
func TestScript(t *testing.T) {
	for name, address := range map[string]string{"an address": "10.0.1.31", "none": ""} {
		t.Run(name, func(t *testing.T) {
			s, root := scripted(t), t.TempDir()
			out, err := s.join(t, root, "NODE_IP="+address)
			if err != nil || strings.Count(out, "made  /") != 4 || strings.Contains(out, s.Token) {
				t.Fatalf("got %v:\n%s", err, out)
			}
			o := s.Options
			o.Files.NodeIP = address
			p, err := plan(o, found{ca: s.CA, cluster: s.Cluster})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range p.Files {
				info, err := os.Stat(root + f.Path)
				if err != nil {
					t.Fatal(err)
				}
				if data, err := os.ReadFile(root + f.Path); err != nil || string(data) != string(f.Data) || info.Mode().Perm() != f.Mode {
					t.Errorf("%s, mode %v: got\n%s\nwant mode %v\n%s", f.Path, info.Mode(), data, f.Mode, f.Data)
				}
			}
			if out, err := s.join(t, root, "NODE_IP="+address); err != nil || strings.Contains(out, "made ") {
				t.Errorf("again: got %v:\n%s", err, out)
			}
			if left := filesBelow(t, root); len(left) != 4 {
				t.Errorf("got the files %v", left)
			}
		})
	}
}

// What is wrong is said before anything is written.
func TestScriptRefuses(t *testing.T) {
	other := scripted(t)
	for _, tt := range []struct {
		name string
		make func(t *testing.T, s *Script, root string)
		env  string
		want string
		curl bool // it takes curl to see that
	}{
		{"a node already", func(t *testing.T, s *Script, root string) { write(t, root+s.Files.kubeconfig()) }, "", "this machine is a node already", false},
		{"another file", func(t *testing.T, s *Script, root string) { write(t, root+s.Files.Unit) }, "", "kubelet.service exists, and is another file", false},
		{"no address", func(*testing.T, *Script, string) {}, "NODE_IP=w0;id", "is no address", false},
		{"another CA", func(t *testing.T, s *Script, _ string) { s.CA = anotherCA(t) }, "", "somebody is in between", true},
		{"another server", func(_ *testing.T, s *Script, _ string) {
			s.Server = strings.Replace(other.Server, "127.0.0.1", "127.0.0.2", 1)
		}, "", "somebody is in between", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := exec.LookPath("curl"); err != nil && tt.curl {
				t.Skip("needs curl")
			}
			s, root := scripted(t), t.TempDir()
			tt.make(t, &s, root)
			before := len(filesBelow(t, root))
			out, err := s.join(t, root, tt.env)
			if err == nil || !strings.Contains(out, "error: ") || !strings.Contains(out, "hint: ") || !strings.Contains(out, tt.want) {
				t.Errorf("got %v, want %q:\n%s", err, tt.want, out)
			}
			if left := filesBelow(t, root); len(left) != before {
				t.Errorf("written: %v", left)
			}
		})
	}
	for name, change := range map[string]func(*Script){
		"without a name": func(s *Script) { s.Name = "" },
		"capitals":       func(s *Script) { s.Name = "W0" },
		"a shell's word": func(s *Script) { s.Server = "https://10.0.1.48:6443/$(id)" },
	} {
		s := scripted(t)
		change(&s)
		if lines, err := s.Text(); err == nil {
			t.Errorf("%s: got\n%s", name, lines)
		}
	}
}

// anotherCA has signed nothing.
func anotherCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
}
