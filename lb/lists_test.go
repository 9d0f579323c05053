package lb

import (
	"slices"
	"strings"
	"testing"
)

// A list works in every spelling that people use, or is refused with the right one.
func TestLists(t *testing.T) {
	two := []string{"10.0.1.73:6443", "10.0.1.35:6443"}
	for _, tt := range []struct {
		name string
		list []string
		want []string
	}{
		{"one each", two, two},
		{"commas", []string{"10.0.1.73:6443,10.0.1.35:6443"}, two},
		{"commas and spaces", []string{" 10.0.1.73:6443 , 10.0.1.35:6443 "}, two},
		{"spaces", []string{"10.0.1.73:6443  10.0.1.35:6443"}, two},
		{"tab", []string{"10.0.1.73:6443\t10.0.1.35:6443"}, two},
		{"lines", []string{"10.0.1.73:6443\n10.0.1.35:6443\n"}, two},
		{"lines of Windows", []string{"10.0.1.73:6443\r\n10.0.1.35:6443\r\n"}, two},
		{"lines with commas", []string{"10.0.1.73:6443,\n10.0.1.35:6443,\n"}, two},
		{"lines with dashes", []string{"- 10.0.1.73:6443\n- 10.0.1.35:6443"}, two},
		{"comma at the end", []string{"10.0.1.73:6443,10.0.1.35:6443,"}, two},
		{"comma at the end of each", []string{"10.0.1.73:6443,", "10.0.1.35:6443,"}, two},
		{"brackets", []string{"[10.0.1.73:6443, 10.0.1.35:6443]"}, two},
		{"JSON", []string{`["10.0.1.73:6443","10.0.1.35:6443"]`}, two},
		{"JSON, a line each", []string{"[\n  '10.0.1.73:6443',\n  '10.0.1.35:6443',\n]"}, two},
		{"IPv6", []string{"[fd00::1]:6443,[fd00::2]:6443"}, []string{"[fd00::1]:6443", "[fd00::2]:6443"}},
		{"IPv6 in brackets", []string{"[[fd00::1]:6443, [fd00::2]:6443]"}, []string{"[fd00::1]:6443", "[fd00::2]:6443"}},
		{"IPv6, first and last", []string{"[fd00::1]:6443 [fd00::2]"}, []string{"[fd00::1]:6443", "[fd00::2]"}},
		{"IPv6 without port", []string{"[fd00::1]"}, []string{"[fd00::1]"}},
		{"without ports", []string{"10.0.1.73 10.0.1.35"}, []string{"10.0.1.73", "10.0.1.35"}},
		{"a variable without a value", []string{"10.0.1.73:6443,,10.0.1.35:6443"}, []string{"10.0.1.73:6443", "", "10.0.1.35:6443"}},
		{"empty", []string{""}, []string{""}},
		{"none", []string{}, []string{}},
	} {
		c := Config{Listen: tt.list, Backends: tt.list, Sources: tt.list, AcceptProxyFrom: tt.list}
		c.SplitLists()
		for field, got := range map[string][]string{"Listen": c.Listen, "Backends": c.Backends, "Sources": c.Sources, "AcceptProxyFrom": c.AcceptProxyFrom} {
			if !slices.Equal(got, tt.want) {
				t.Errorf("%s: %s is %q, want %q", tt.name, field, got, tt.want)
			}
		}
	}
	for in, want := range map[string][]string{
		"a:1 weight 10, b:1 backup":                    {"a:1 weight 10", "b:1 backup"},
		"a:1 weight 10 b:1 backup":                     {"a:1 weight 10", "b:1 backup"},
		"a:1 weight=10 backup _https._tcp.example.com": {"a:1 weight=10 backup", "_https._tcp.example.com"},
		"a:1 weight 1.5":                               {"a:1 weight 1.5"},
		"a:1 check inter 2s":                           {"a:1 check inter 2s"},
	} {
		c := Config{Backends: []string{in}}
		c.SplitLists()
		if !slices.Equal(c.Backends, want) {
			t.Errorf("%q is %q, want %q", in, c.Backends, want)
		}
	}
}

// The option of a listener stays with it, in each spelling of a list.
func TestListsOfListeners(t *testing.T) {
	for in, want := range map[string][]string{
		":6443 accept-proxy":                      {":6443 accept-proxy"},
		":6443,accept-proxy":                      {":6443 accept-proxy"},
		":443, :6443 accept-proxy":                {":443", ":6443 accept-proxy"},
		":6443 accept-proxy :443":                 {":6443 accept-proxy", ":443"},
		":6443,accept-proxy,10.0.1.48:443":        {":6443 accept-proxy", "10.0.1.48:443"},
		`[":443", "[fd00::1]:6443 accept-proxy"]`: {":443", "[fd00::1]:6443 accept-proxy"},
		"- :443\n- 10.0.1.48:6443 accept-proxy":   {":443", "10.0.1.48:6443 accept-proxy"},
		":6443 proxy_protocol reuseport":          {":6443 proxy_protocol reuseport"},
		"6443 443":                                {"6443", "443"},
		"accept-proxy":                            {"accept-proxy"},
	} {
		c := Config{Listen: []string{in}}
		c.SplitLists()
		if !slices.Equal(c.Listen, want) {
			t.Errorf("%q is %q, want %q", in, c.Listen, want)
		}
	}
}

// The option needs the addresses of proxies.
func TestAcceptProxyNeedsAddresses(t *testing.T) {
	c := Default()
	c.Backends, c.Listen = []string{"10.0.0.11:6443"}, []string{":443", ":6443 accept-proxy"}
	if err := c.Validate(); err == nil || err.Error() != `Listen ":6443 accept-proxy" needs AcceptProxyFrom` {
		t.Errorf("got %v", err)
	}
	c.AcceptProxyFrom = []string{"10.0.1.5"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Listen = []string{":6443", ":6443 accept-proxy"}
	if err := c.Validate(); err == nil || err.Error() != "Listen :6443 is given twice" {
		t.Errorf("got %v", err)
	}
}

// What is refused is named, with the right spelling.
func TestRefusedSpellings(t *testing.T) {
	for _, tt := range []struct{ field, in, want, hint string }{
		{"Backends", "10.0.1.73", `"10.0.1.73" has no port`, "did you mean 10.0.1.73:6443?"},
		{"Backends", "api.example.com", `"api.example.com" has no port`, "did you mean api.example.com:6443?"},
		{"Backends", "10.0.1.73 weight 2", "has no port", "did you mean 10.0.1.73:6443 weight 2?"},
		{"Backends", "https://10.0.1.73:6443", `"https://10.0.1.73:6443" is a URL`, "did you mean 10.0.1.73:6443?"},
		{"Backends", "https://api.example.com:6443/readyz", "is a URL", "did you mean api.example.com:6443?"},
		{"Backends", "https://api.example.com", "is a URL", "did you mean api.example.com:6443?"},
		{"Backends", "https://[fd00::1]:6443", "is a URL", "did you mean [fd00::1]:6443?"},
		{"Backends", "fd00::1:6443", "needs brackets around an IPv6 address", "did you mean [fd00::1]:6443?"},
		{"Backends", "fd00::1", "has no port", "did you mean [fd00::1]:6443?"},
		{"Backends", "[fd00::1]", "has no port", "did you mean [fd00::1]:6443?"},
		{"Backends", "a:1 check", `has the option "check"`, "want HOST:PORT, such as 10.0.1.73:6443; weight N and backup may follow"},
		{"Backends", "", `"" is empty`, "want HOST:PORT"},
		{"Listen", "6443", `"6443" has no port`, "did you mean :6443?"},
		{"Listen", "10.0.1.48", `"10.0.1.48" has no port`, "did you mean 10.0.1.48:6443?"},
		{"Listen", "*:6443", `has no IP address, but "*"`, "did you mean :6443?"},
		{"Listen", "tcp://0.0.0.0:6443", "is a URL", "did you mean 0.0.0.0:6443?"},
		{"Listen", "https://10.0.1.48:6443/", "is a URL", "did you mean 10.0.1.48:6443?"},
		{"Listen", ":::6443", "needs brackets around an IPv6 address", "did you mean [::]:6443?"},
		{"Listen", "[::]", "has no port", "did you mean [::]:6443?"},
		{"Listen", "eth0:6443", `has no IP address, but "eth0"`, "want ADDRESS:PORT"},
		{"Listen", "224.0.0.18:6443", "is not an address that a client can connect to", "want ADDRESS:PORT"},
		{"Listen", "", `"" is empty`, "want ADDRESS:PORT"},
		{"Listen", "accept-proxy", `"accept-proxy" is no address`, "write it behind its address, such as :6443 accept-proxy"},
		{"Listen", ":6443 proxy_protocol", `has the option "proxy_protocol"; the option is accept-proxy`, "did you mean :6443 accept-proxy?"},
		{"Listen", "10.0.1.48:6443 ssl", `has the option "ssl"`, "want ADDRESS:PORT"},
		{"Listen", "https://10.0.1.48:6443 accept-proxy", "is a URL", "did you mean 10.0.1.48:6443 accept-proxy?"},
	} {
		c := Default()
		c.Backends = []string{"10.0.0.11:6443"}
		if tt.field == "Listen" {
			c.Listen = []string{tt.in}
		} else {
			c.Backends = []string{tt.in}
		}
		got := c.Problems()
		if len(got) != 1 || got[0].Field != tt.field || !strings.Contains(got[0].Text, tt.want) || !strings.HasPrefix(got[0].Hint, tt.hint) {
			t.Errorf("%s %q: got %d problems", tt.field, tt.in, len(got))
			for _, p := range got {
				t.Errorf("  %v (%s)", p, p.Hint)
			}
		}
	}
}
