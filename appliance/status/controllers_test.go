package status

import (
	"bytes"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/test/harness"
)

// threeOf is a cluster with a healthy controller, one in trouble and one that is dead.
func threeOf() Cluster {
	c := Cluster{Controllers: []Controller{
		{Name: "c0", Here: true, Version: "v0.1.0", Health: Healthy, Since: noon.Add(-3 * time.Hour), Ready: true, Leader: "c0", Answered: noon},
		{Name: "c1", Version: "v0.1.0", Health: Degraded, Since: noon.Add(-time.Minute), Reason: "kube-scheduler: lease lost", Leader: "c0", Answered: noon.Add(-4 * time.Second),
			Findings: []Finding{{Health: Degraded, Text: "kube-scheduler: a webhook refuses its pods", Do: "kubectl delete validatingwebhookconfiguration no"}, {Health: Healthy, Text: "a note"}}},
		{Name: "c2", Version: "v0.1.0", Health: Healthy, Ready: true, Leader: "c0", Answered: noon.Add(-6 * time.Minute), Error: "connection refused", ErrorSince: noon.Add(-5 * time.Minute)},
		{Name: "c3", Error: "it runs, and waits for its first quorum", ErrorSince: noon.Add(-time.Second)},
	}}
	c.Health = worst(c.Controllers)
	return c
}

func TestWriteCluster(t *testing.T) {
	c := threeOf()
	if c.Health != Down {
		t.Errorf("got %s, want %s: one does not answer", c.Health, Down)
	}
	for suffix, colour := range map[string]bool{"": false, "-colour": true} {
		var got bytes.Buffer
		if err := WriteCluster(&got, c, noon, colour); err != nil {
			t.Fatal(err)
		}
		harness.Golden(t, filepath.Join("testdata", "cluster"+suffix+".golden"), got.Bytes())
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	harness.Golden(t, filepath.Join("testdata", "cluster.json"), append(text, '\n'))
}

// The page shows the others, and how old their answers are.
func TestControllersOnThePage(t *testing.T) {
	p := newPage(reports()["ready"], noon, nil)
	p.controllers(threeOf(), noon)
	var b bytes.Buffer
	if err := pageTemplate().Execute(&b, p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1 of 4 healthy", "c2: no answer", "does not answer: connection refused", "6m0s ago", "not ready: kube-scheduler: lease lost", "(and 1 more)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q", want)
		}
	}
}

// What another controller says is cut to what may be shown, and it cannot speak for
// anybody else.
func TestFrom(t *testing.T) {
	const evil = "ev\x1b]0;pwned\x07\u202e\r\nready"
	long := strings.Repeat("é", maxString)
	c := Controller{Name: "c0", Here: true, Version: long, Health: "splendid", Leader: evil, Error: "x", Answered: noon}
	for range 2 * maxPassed {
		c.Findings = append(c.Findings, Finding{Health: Down, Text: evil, Do: long}, Finding{Health: "fine", Text: "x"})
	}
	got := c.From("c1")
	if got.Name != "c1" || got.Here || got.Health != Down || got.Error != "" || !got.Answered.IsZero() {
		t.Errorf("got %+v", got)
	}
	if len(got.Findings) == 0 || len(got.Findings) > maxPassed || len(got.Version) > maxString || len(got.Findings[0].Do) > maxString {
		t.Errorf("got %d findings, a version of %d bytes", len(got.Findings), len(got.Version))
	}
	if strings.ContainsAny(got.Leader+got.Findings[0].Text, "\x1b\x07\u202e\r\n") {
		t.Errorf("got %q and %q", got.Leader, got.Findings[0].Text)
	}
}

// Only a controller knows a cluster.
func TestClusterPath(t *testing.T) {
	addr := free(t)
	start(t, ServerConfig{Address: addr, Report: func() Report { return reports()["ready"] }, Others: func() []Controller { return threeOf().Controllers[1:2] }})
	c, err := Client{Addr: addr}.Cluster(t.Context())
	if err != nil || len(c.Controllers) != 2 || !c.Controllers[0].Here || c.Health != Degraded {
		t.Errorf("got %+v, %v", c, err)
	}
	alone := free(t)
	start(t, ServerConfig{Address: alone, Report: func() Report { return reports()["lb"] }})
	if code, _ := get(t, "http://"+alone+"/status/cluster"); code != http.StatusNotFound {
		t.Errorf("a load balancer: got %d", code)
	}
	if _, err := (Client{Addr: alone}).Cluster(t.Context()); err == nil || !strings.Contains(err.Error(), "knows no cluster") {
		t.Errorf("a load balancer: got %v", err)
	}
}
