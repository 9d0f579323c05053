package status

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kthwd/appliance/supervise"
	"kthwd/test/harness"
)

// pageOf returns the page of a report, and its headers.
func pageOf(t *testing.T, r Report) (string, http.Header) {
	t.Helper()
	s := NewServer(ServerConfig{Logs: quiet(), Report: func() Report { return r }})
	w := httptest.NewRecorder()
	s.public.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	return w.Body.String(), w.Header()
}

// Each report of the golden files has a page that shows all of it.
func TestPage(t *testing.T) {
	for name, r := range reports() {
		text, h := pageOf(t, r)
		wants := []string{"<h1>kthwd", r.Version, `<meta http-equiv="refresh"`}
		for _, c := range r.Components {
			wants = append(wants, c.Name)
		}
		if r.LB != nil {
			for _, b := range r.LB.Backends {
				wants = append(wants, b.Address, b.State)
			}
		}
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%s: lacks %q", name, want)
			}
		}
		if strings.Contains(text, "ZgotmplZ") || regexp.MustCompile(`(src|href)="(https?:)?//`).MatchString(text) {
			t.Errorf("%s: something is from elsewhere, or was refused by the template", name)
		}
		for _, tag := range []string{"style", "script"} {
			m := regexp.MustCompile(`(?s)<` + tag + `>(.*?)</` + tag + `>`).FindStringSubmatch(text)
			if m == nil || !strings.Contains(h.Get("Content-Security-Policy"), tag+"-src '"+hashOf(m[1])+"'") {
				t.Errorf("%s: the policy does not have the hash of the %s", name, tag)
			}
		}
	}
}

// Names from other machines remain text.
func TestHostilePage(t *testing.T) {
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>'`
	r := reports()["lb-trouble"]
	r.Name, r.Version, r.Reason = evil, evil, evil
	r.Components = []supervise.Status{{Name: evil, State: supervise.State(evil), Reason: evil, LastError: evil, ReadyAt: time.Second, Took: time.Second}}
	r.Dependencies = map[string][]string{evil: {"x"}}
	lb := *r.LB
	lb.Backends = append(lb.Backends[:0:0], lb.Backends...)
	lb.Backends[0].Address, lb.Backends[0].Reason, lb.Backends[0].State, lb.Backends[0].LastCheck = evil, evil, evil, evil
	lb.Check = evil
	discovery := *lb.Discovery
	discovery.Error = evil
	lb.Discovery, r.LB = &discovery, &lb
	r.Quorum = &Quorum{Members: 1, Leader: evil}
	r.Member = &Member{Members: []MemberInfo{{Name: evil, ID: evil, URLs: []string{evil}}}}
	r.Leases = []Lease{{Name: evil, Holder: evil}}
	r.Certificates = []Certificate{{File: evil, Subject: evil, Use: evil}, {File: evil, Problem: evil}}
	r.Events = []Event{{Object: evil, From: evil, To: evil, Reason: evil}}
	text, _ := pageOf(t, r)
	if strings.Contains(text, "<script>alert") || strings.Contains(text, "<img") || strings.Contains(text, `x onerror=alert(2)>`) {
		t.Errorf("a name became markup:\n%s", text)
	}
}

// The remaining time of a certificate has a suitable unit.
func TestCertificatesOnThePage(t *testing.T) {
	for left, want := range map[time.Duration]string{
		-time.Hour: `<span class="tone bad">expired</span>`, 5 * time.Hour: `<span class="tone bad">5h0m</span>`,
		6 * 24 * time.Hour: `<span class="tone bad">6 days</span>`, 20 * 24 * time.Hour: `<span class="tone warn">20 days</span>`, 99 * 24 * time.Hour: `<span class="tone good">99 days</span>`,
	} {
		p := newPage(Report{Certificates: []Certificate{{File: "a.pem", NotAfter: noon.Add(left)}}}, noon, nil)
		c := p.Certificates.Rows[0][1]
		if got := `<span class="tone ` + c.Tone + `">` + c.Text + `</span>`; got != want {
			t.Errorf("%v: got %s, want %s", left, got, want)
		}
	}
	p := newPage(Report{Certificates: []Certificate{{File: "a.pem", Use: "signing", NotAfter: noon.Add(-time.Hour)}}}, noon, nil)
	if tone := p.Certificates.Rows[0][1].Tone; tone != "plain" {
		t.Errorf("of a certificate that only signs: got the tone %s", tone)
	}
}

// The golden files hold what the body shows: the order, the tones and the commands.
func TestPageGolden(t *testing.T) {
	for name, r := range reports() {
		r.Health, r.Findings = Assess(r, noon)
		r.HealthSince = noon.Add(-3 * time.Minute)
		r.Dependencies = map[string][]string{"kube-apiserver": {"etcd"}, "kube-controller-manager": {"kube-apiserver"}, "kube-scheduler": {"kube-apiserver"}}
		if r.LB != nil && r.Kubernetes == "" {
			r.Name, r.Dependencies = "edge-1", map[string][]string{"lb": {"status"}}
		}
		r.Certificates = []Certificate{{File: "/pki/ca.pem", Subject: "kubernetes-ca", Use: "ca", NotAfter: noon.Add(9000 * time.Hour)}, {File: "/pki/kubernetes.pem", Subject: "kubernetes", Use: "server,client", NotAfter: noon.Add(800 * time.Hour)}}
		var b bytes.Buffer
		if err := pageTemplate().Execute(&b, newPage(r, noon, []string{"/status.json", "/metrics"})); err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(b.String(), "<body>")
		body, _, _ = strings.Cut(body, "<script>")
		harness.Golden(t, filepath.Join("testdata", "page-"+name+".html"), []byte(body))
	}
}

// What matters most comes first: the verdict, the quorum and the certificates, then the
// findings, then everything else.
func TestPageOrder(t *testing.T) {
	r := reports()["waiting"]
	r.Certificates = []Certificate{{File: "/pki/kubernetes.pem", NotAfter: noon.Add(800 * time.Hour)}}
	text, _ := pageOf(t, r)
	at := 0
	for _, want := range []string{`class="verdict"`, "etcd quorum", "Certificates", `class="findings"`, `class="tone bad"`, "Components"} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("%q does not follow what comes before it", want)
		}
		at += i
	}
}

// A finding's command is code, and advice is not.
func TestRemedies(t *testing.T) {
	type all = []remedy
	for do, want := range map[string]all{
		"":                                   nil,
		"bring it back before another fails": {{"bring it back before another fails", false}},
		"kubectl delete validatingwebhookconfiguration no":       {{"kubectl delete validatingwebhookconfiguration no", true}},
		"kubectl delete apiservice v1.x, or mend its service":    {{"kubectl delete apiservice v1.x", true}, {"or mend its service", false}},
		"put the old file back: mv ca.pem.old ca.pem":            {{"put the old file back:", false}, {"mv ca.pem.old ca.pem", true}},
		"start the others; kthwd etcd recover; then start this":  {{"start the others;", false}, {"kthwd etcd recover", true}, {"then start this", false}},
		"with `kubectl patch x -p '{\"a\": 1, \"b\": 2}'` first": {{"with", false}, {`kubectl patch x -p '{"a": 1, "b": 2}'`, true}, {"first", false}},
		"bin/kthwd etcd space":                                   {{"bin/kthwd etcd space", true}},
		"make room: '/my bin/kthwd' etcd space; then wait":       {{"make room:", false}, {"'/my bin/kthwd' etcd space", true}, {"then wait", false}},
		"the path /usr/bin/kthwd is not safe":                    {{"the path /usr/bin/kthwd is not safe", false}},
		"run kthwd status on these machines":                     {{"run kthwd status on these machines", false}},
		"kthwd pki renew on another controller, then restart it": {{"kthwd pki renew", true}, {"on another controller, then restart it", false}},
		"an odd ` in it": {{"an odd ` in it", false}},
	} {
		if diff := cmp.Diff(want, remediesOf(do)); diff != "" {
			t.Errorf("%q: -want +got\n%s", do, diff)
		}
	}
}

// The page and the table of the cluster spell the commands for this machine as they are typed
// here. A command for another controller's machine, and the report itself, stay.
func TestSpelled(t *testing.T) {
	r := Report{Findings: []Finding{{Health: Down, Text: "full", Do: "kthwd etcd space"}}}
	s := NewServer(ServerConfig{Logs: quiet(), Report: func() Report { return r }})
	s.AsTyped = func(do string) string { return strings.ReplaceAll(do, "kthwd", "bin/kthwd") }
	if got := r.Spelled(s.AsTyped).Findings[0].Do; got != "bin/kthwd etcd space" || r.Findings[0].Do != "kthwd etcd space" {
		t.Errorf("got %q, and %q in the report itself", got, r.Findings[0].Do)
	}
	w := httptest.NewRecorder()
	r = reports()["down"]
	r.Findings = nil
	r.Observed = []Finding{{Health: Down, Kind: "space", Text: "full", Do: "kthwd etcd space"}}
	s.page(w, nil)
	if page := w.Body.String(); !strings.Contains(page, "<code>bin/kthwd etcd space</code>") || strings.Contains(page, "<code>kthwd ") {
		t.Errorf("the page lacks bin/kthwd etcd space, or has another spelling:\n%s", page)
	}
	c := Cluster{Controllers: []Controller{{Name: "c0", Here: true, Findings: r.Observed}, {Name: "c1", Findings: r.Observed}}}
	var table strings.Builder
	if err := WriteCluster(&table, c.Spelled(s.AsTyped), noon, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"c0: full\n  bin/kthwd etcd space\n", "c1: full\n  kthwd etcd space\n"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("got\n%s\nwant %q", table.String(), want)
		}
	}
}
