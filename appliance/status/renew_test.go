package status

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestRenew(t *testing.T) {
	for _, tt := range []struct {
		file, use string
		has       []string
	}{
		{"/d d/kubernetes.pem", "server,client", []string{"cd '/d d' && ls ca-key.pem kubernetes.pem kubernetes-key.pem &&", "# no restart is needed"}},
		{"/d/kthwd-health.pem", "client", []string{"mv -t old kthwd-health.pem kthwd-health-key.pem &&"}},
		{"/d/front-proxy-client.pem", "client", []string{"ls front-proxy-ca-key.pem front-proxy-client.pem"}},
		{"/d/kube-scheduler.kubeconfig", "client", []string{"old kube-scheduler.pem kube-scheduler-key.pem kube-scheduler.kubeconfig &&", "; } && systemctl restart kthwd-controller"}},
		{"/d/kube-scheduler.kubeconfig", "ca", []string{"issue a new CA"}},
		{"/d/admin.kubeconfig", "client", []string{"mv -t old admin.pem admin-key.pem admin.kubeconfig", "copies"}},
		{"/d/ca.pem", "ca", []string{"every certificate that this one has signed"}},
		{"/etc/web.pem", "server", []string{"reissue it"}},
		{"kube-apiserver, in memory", "server", []string{"systemctl restart kthwd-controller"}},
	} {
		do := renew(Certificate{File: tt.file, Use: tt.use})
		for _, part := range tt.has {
			if !strings.Contains(do, part) {
				t.Errorf("%s (%s): got %s, want %q", tt.file, tt.use, do, part)
			}
		}
	}
}

// The command moves nothing away where something that it needs is missing, and puts the files
// back where no new ones were made.
func TestRenewKeepsFiles(t *testing.T) {
	for missing, ends := range map[string]string{"ca-key.pem": "ls", "kubernetes-key.pem": "ls", "": "init"} {
		dir, bin := t.TempDir(), t.TempDir()
		for _, name := range []string{"ca-key.pem", "kubernetes.pem", "kubernetes-key.pem"} {
			if name == missing {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// A kthwd that tells its configuration and makes nothing.
		if err := os.WriteFile(filepath.Join(bin, "kthwd"), []byte("#!/bin/sh\n[ \"$1\" = config ]\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", renew(Certificate{File: filepath.Join(dir, "kubernetes.pem"), Use: "server"}))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if ends == "ls" && err == nil {
			t.Errorf("without %s: got no error\n%s", missing, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "kubernetes.pem")); err != nil {
			t.Errorf("without %q: %v\n%s", missing, err, out)
		}
	}
}
