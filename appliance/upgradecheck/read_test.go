package upgradecheck

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
)

// protobuf is an object as API servers store it.
func protobuf(t *testing.T, version, kind string) []byte {
	t.Helper()
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: version, Kind: kind}, Raw: []byte("…")}
	data, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(slices.Clone(protobufPrefix), data...)
}

func TestStoredAdd(t *testing.T) {
	s := Stored{Objects: map[Object]int{}, Encrypted: map[string]int{}}
	for key, value := range map[string][]byte{
		"deployments/default/a":          protobuf(t, "apps/v1", "Deployment"),
		"deployments/default/b":          protobuf(t, "apps/v1", "Deployment"),
		"example.com/widgets/default/w":  []byte(`{"apiVersion":"example.com/v1","kind":"Widget","spec":{"kind":"no"}}`),
		"secrets/default/s":              []byte("k8s:enc:aescbc:v1:key1:\x00\x01"),
		"broken/default/header":          []byte("k8s\x00\xff\xff\xff"),
		"broken/default/json":            []byte(`{"apiVersion":`),
		"broken/default/number":          []byte(`42`),
		"broken/default/empty":           nil,
		"broken/default/without-version": []byte(`{"kind":"Widget"}`),
	} {
		s.add(key, value)
	}
	want := []Object{{"apps/v1", "Deployment", "deployments", true}, {"example.com/v1", "Widget", "widgets.example.com", false}}
	if got := s.sorted(); !slices.Equal(got, want) || s.count() != 3 || s.Encrypted["secrets"] != 1 {
		t.Errorf("got %v, %v; want %v", s.Objects, s.Encrypted, want)
	}
	if want[1].builtIn() || !want[0].builtIn() || !(Object{Version: "networking.k8s.io/v1"}).builtIn() {
		t.Error("built-in kinds and others are not told apart")
	}
}

const record = `{"kind":"Event","annotations":{"k8s.io/deprecated":"true","k8s.io/removed-release":"1.51"},"user":{"username":"%s"},"userAgent":"tool/1 (linux)","objectRef":{"resource":"things","apiGroup":"old.k8s.io","apiVersion":"v1beta1"},"requestReceivedTimestamp":"%s"}` + "\n"

func TestReadRequests(t *testing.T) {
	const other = `{"kind":"Event","annotations":{},"user":{"username":"eve"},"requestReceivedTimestamp":"2030-01-01T00:00:00.000000Z"}` + "\n"
	log := other +
		fmt.Sprintf(record, "bob", "2030-01-01T01:00:00.000000Z") + "no JSON k8s.io/deprecated\n" + `{"x":"` + strings.Repeat("k8s.io/deprecated ", auditLine/8) + `"}` + "\n" +
		fmt.Sprintf(record, "bob", "2030-01-01T02:00:00.000000Z") + fmt.Sprintf(record, `al\u001b[31mice`, "2030-01-01T03:00:00.000000Z") +
		strings.TrimSuffix(fmt.Sprintf(record, "half", "2030-01-01T04:00:00.000000Z"), "\n")
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := ReadRequests(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.By) != 2 || r.By[1].User != "bob" || r.By[1].Count != 2 || r.By[1].Agent != "tool/1" || r.By[1].API != gone ||
		!r.By[1].Last.Equal(time.Date(2030, 1, 1, 2, 0, 0, 0, time.UTC)) || strings.Contains(r.By[0].User, "\x1b") || !r.Since.Equal(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("got %+v", r)
	}
	if r, err := readRequests(strings.NewReader(log[10:]), true); err != nil || r.Since.Hour() != 1 || len(r.By) != 2 {
		t.Errorf("without the beginning: got %+v, %v", r, err)
	}
	for _, path := range []string{"", "-", filepath.Join(t.TempDir(), "none")} {
		if r, err := ReadRequests(path); err == nil {
			t.Errorf("%q: got %+v", path, r)
		}
	}
}

func TestReadAsked(t *testing.T) {
	text := `# HELP apiserver_requested_deprecated_apis [STABLE] Gauge
# TYPE apiserver_requested_deprecated_apis gauge
apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="old.k8s.io",removed_release="1.51",resource="things",subresource="status",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="never",removed_release="1.51",resource="x",subresource="",version="v1"} 0
# TYPE apiserver_request_total counter
apiserver_request_total{code="200"} 4
`
	got := map[DeprecatedAPI]bool{}
	if err := readAsked(strings.NewReader(text), got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !got[gone] || !got[DeprecatedAPI{Version: "v1", Resource: "endpoints"}] {
		t.Errorf("got %v", got)
	}
	if err := readAsked(strings.NewReader("apiserver_requested_deprecated_apis{ 1\n"), got); err == nil {
		t.Error("a broken line is accepted")
	}
	if !gone.goneIn("v1.51.0") || !gone.goneIn("v1.52.3") || gone.goneIn("v1.50.9") || (DeprecatedAPI{}).goneIn("v1.51.0") {
		t.Error("goneIn")
	}
}
