package upgradecheck

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// Every API server that the cluster has published is asked. One that does not answer is named.
func TestAsked(t *testing.T) {
	free, err := kthwtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	var server *httptest.Server
	published := true
	mux := http.NewServeMux()
	mux.HandleFunc("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", func(w http.ResponseWriter, _ *http.Request) {
		_, port, _ := strings.Cut(server.Listener.Addr().String(), ":")
		if !published {
			fmt.Fprint(w, `{"items":[]}`)
			return
		}
		fmt.Fprintf(w, `{"items":[{"endpoints":[{"addresses":["127.0.0.1"]}],"ports":[{"port":%s}]},{"endpoints":[{"addresses":["127.0.0.1"]}],"ports":[{"port":%d}]}]}`, port, free)
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# TYPE apiserver_requested_deprecated_apis gauge\n"+`apiserver_requested_deprecated_apis{group="old.k8s.io",removed_release="1.51",resource="things",subresource="",version="v1beta1"} 1`+"\n")
	})
	mux.HandleFunc("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"items":[{"metadata":{"name":"w.example.com"},"spec":{"group":"example.com","versions":[{"name":"v1","served":true},{"name":"v0","served":false}]},"status":{"storedVersions":["v0"]}}]}`)
	})
	server = httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	config := "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{name: x, cluster: {server: 'https://127.0.0.1:1', certificate-authority: ca.pem}}]\n" +
		"contexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {token: x}}]\n"
	for name, data := range map[string][]byte{"ca.pem": ca, "config": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	api, err := NewAPI(filepath.Join(dir, "config"), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	asked, err := api.Asked(t.Context())
	if err != nil || asked.Servers != 1 || !asked.APIs[gone] || !slices.Equal(asked.Silent, []string{fmt.Sprintf("127.0.0.1:%d", free)}) {
		t.Errorf("got %+v, %v", asked, err)
	}
	published = false
	if asked, err = api.Asked(t.Context()); err != nil || asked.Servers != 1 || len(asked.Silent) != 0 {
		t.Errorf("where none is published: got %+v, %v", asked, err)
	}
	all, err := api.CRDs(t.Context())
	if err != nil || len(all) != 1 || all[0].Group != "example.com" || !all[0].Versions["v1"] || all[0].Versions["v0"] || !slices.Equal(all[0].Stored, []string{"v0"}) {
		t.Errorf("got %+v, %v", all, err)
	}
	server.Close()
	if asked, err := api.Asked(t.Context()); err == nil {
		t.Errorf("without a server: got %+v", asked)
	}
	if _, err := NewAPI(filepath.Join(dir, "none"), server.URL); err == nil {
		t.Error("a kubeconfig that is missing is accepted")
	}
}
