package names

import (
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"k8s.io/kube-openapi/pkg/handler3"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

// aDocument is the line that the API server logs about a document of version 3 at its start.
var aDocument = regexp.MustCompile(`msg="OpenAPI document" key=([0-9a-f]+) group=(\S+) hash=([0-9A-F]+) known=(true|false)`)

// openAPI holds the OpenAPI documents to what clients of upstream's API server rely on: the list
// has the hash of each document as it is, and both versions have the same groups. And it
// holds kthwd to the promise that no document is made before it is asked for.
func openAPI(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	get := func(path string) []byte {
		data, err := c.Client(t).Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return data
	}
	var list handler3.OpenAPIV3Discovery
	if err := json.Unmarshal(get("/openapi/v3"), &list); err != nil {
		t.Fatal(err)
	}
	logged := aDocument.FindAllStringSubmatch(c.Log.String(), -1)
	if len(logged) < 20 || len(list.Paths) < len(logged) {
		t.Fatalf("%d documents of the API server, %d in the list", len(logged), len(list.Paths))
	}
	var known []string
	for _, found := range logged {
		key, group, hash := found[1], found[2], found[3]
		known = append(known, group+" "+key+" "+hash+"\n")
		if found[4] != "true" && !harness.Updating() {
			t.Errorf("%s was made at the start: appliance/apiserver/openapi/openapi.hashes does not have it; make golden writes it", group)
		}
		want := fmt.Sprintf("%X", sha512.Sum512(get("/openapi/v3/"+group)))
		if at, err := url.Parse(list.Paths[group].ServerRelativeURL); err != nil || at.Query().Get("hash") != want || (hash != want && !harness.Updating()) {
			t.Errorf("%s: the list has %s, the log %s, the document %s", group, list.Paths[group].ServerRelativeURL, hash, want)
		}
	}
	slices.Sort(known)
	harness.Golden(t, filepath.Join(kthwtest.Root(), "appliance", "apiserver", "openapi", "openapi.hashes"), []byte(strings.Join(known, "")))

	second, err := c.Client(t).Discovery().OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	for group := range list.Paths {
		if !slices.ContainsFunc(second.Paths.Path, func(p *openapi_v2.NamedPathItem) bool {
			return strings.HasPrefix(p.Name, "/"+group+"/") || p.Name == "/"+group
		}) {
			t.Errorf("version 2 of the OpenAPI document has no path below /%s, version 3 has", group)
		}
	}
}
