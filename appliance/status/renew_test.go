package status

import (
	"strings"
	"testing"
)

func TestRenew(t *testing.T) {
	for _, tt := range []struct {
		file, use string
		has       string
	}{
		{"/d d/kubernetes.pem", "server,client", "kthwd pki renew kubernetes --data-dir='/d d'"},
		{"/d/kthwd-health.pem", "client", "kthwd pki renew kthwd-health --data-dir=/d"},
		{"/d/kube-scheduler.kubeconfig", "client", "kthwd pki renew kube-scheduler --data-dir=/d"},
		{"/d/kube-scheduler.kubeconfig", "ca", "issue a new CA"},
		{"/d/admin.kubeconfig", "client", "copies"},
		{"/d/ca.pem", "ca", "every certificate that this one has signed"},
		{"/etc/web.pem", "server", "reissue it"},
		{"/d/worker-0.kubeconfig", "client", "reissue it"},
		{"kube-apiserver, in memory", "server", "systemctl restart kthwd-controller"},
	} {
		if do := renew(Certificate{File: tt.file, Use: tt.use}); !strings.Contains(do, tt.has) {
			t.Errorf("%s (%s): got %s, want %q", tt.file, tt.use, do, tt.has)
		}
	}
}
