package status

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A web configuration is told of only if it lets in more certificates than it seems to.
func TestWebClients(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t, dir, "ca").issue("server", false)
	newAuthority(t, dir, "other-ca")
	file := func(name string) string { return filepath.Join(dir, name) }
	both := write(t, file("both.pem"), readText(t, file("other-ca.pem"))+readText(t, file("ca.pem")), 0o644)
	const verify = "client_auth_type: RequireAndVerifyClientCert, "
	for name, tt := range map[string]struct{ settings, more, address, want string }{
		"the cluster's CA":              {verify + "client_ca_file: ca.pem", "", "0.0.0.0:10300", "each worker's included"},
		"its text":                      {verify + "client_ca: \"" + strings.ReplaceAll(readText(t, file("ca.pem")), "\n", "\\n") + "\"", "", ":10300", "each worker's included"},
		"among others":                  {verify + "client_ca_file: " + both, "", "10.0.0.11:10300", "each worker's included"},
		"with names":                    {verify + "client_ca_file: ca.pem, client_allowed_sans: [prometheus.example]", "", "0.0.0.0:10300", ""},
		"another CA":                    {verify + "client_ca_file: other-ca.pem", "", "0.0.0.0:10300", ""},
		"users as well":                 {verify + "client_ca_file: ca.pem", "basic_auth_users: {prometheus: " + secretHash + "}\n", "0.0.0.0:10300", ""},
		"loopback":                      {verify + "client_ca_file: ca.pem", "", "127.0.0.1:10300", ""},
		"loopback, of IPv6":             {verify + "client_ca_file: ca.pem", "", "[::1]:10300", ""},
		"no metrics":                    {verify + "client_ca_file: ca.pem", "", "", ""},
		"a certificate if there is one": {"client_auth_type: VerifyClientCertIfGiven, client_ca_file: other-ca.pem", "", "0.0.0.0:10300", "without one of its CA"},
		"any certificate":               {"client_auth_type: RequireAnyClientCert", "", "0.0.0.0:10300", "without one of its CA"},
		"no certificates":               {"client_auth_type: NoClientCert", "", "0.0.0.0:10300", ""},
	} {
		path := write(t, file("web.yaml"), "tls_server_config: {cert_file: server.pem, key_file: server-key.pem, "+tt.settings+"}\n"+tt.more, 0o600)
		got := WebClients{Address: tt.address, Web: path, CA: file("ca.pem")}.Findings()
		switch {
		case tt.want == "" && len(got) > 0:
			t.Errorf("%s: got %+v, want no finding", name, got)
		case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0].Text, tt.want) || got[0].Health != Healthy || got[0].Kind != kindMetricsClients || got[0].Do == ""):
			t.Errorf("%s: got %+v, want one finding with %q", name, got, tt.want)
		}
	}
	if got := (WebClients{Address: ":10300", CA: file("ca.pem")}).Findings(); got != nil {
		t.Errorf("without a file: got %+v", got)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
