package status

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/supervise"
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
		c := p.Certificates[0]
		if got := `<span class="tone ` + c.Tone + `">` + c.Left + `</span>`; got != want {
			t.Errorf("%v: got %s, want %s", left, got, want)
		}
	}
	p := newPage(Report{Certificates: []Certificate{{File: "a.pem", Use: "signing", NotAfter: noon.Add(-time.Hour)}}}, noon, nil)
	if tone := p.Certificates[0].Tone; tone != "plain" {
		t.Errorf("of a certificate that only signs: got the tone %s", tone)
	}
}
