package pki

import (
	"crypto/x509"
	"net"
	"slices"
	"testing"
)

// A certificate that is moved away and made anew keeps its names.
func TestNamesAreKept(t *testing.T) {
	l := fresh(t)
	names := []string{NameKubernetes, NameEtcd}
	for _, name := range names {
		reissue(t, l, name, func(c *x509.Certificate) {
			c.DNSNames = append(c.DNSNames, "lb.example.com", "*.api.example.com")
			c.IPAddresses = append(c.IPAddresses, net.IPv4(192, 0, 2, 9), net.ParseIP("fd00::9"))
		})
	}
	if err := RecordNames(l); err != nil {
		t.Fatal(err)
	}
	before := contents(t, l.Dir)
	if err := RecordNames(l); err != nil {
		t.Fatal(err)
	}
	wantSame(t, l.Dir, before)
	for _, name := range names {
		want := slices.Sorted(slices.Values(sans(certificate(t, l.Cert(name)))))
		remove(t, l.Cert(name), l.Key(name))
		wantWarning(t, ensure(t, l, testSpec()), name+".pem: made anew", "lb.example.com, *.api.example.com, 192.0.2.9, fd00::9", "names.json")
		if got := slices.Sorted(slices.Values(sans(certificate(t, l.Cert(name))))); !slices.Equal(got, want) {
			t.Errorf("%s: got names %q, want %q", name, got, want)
		}
	}

	remove(t, l.Cert(NameKubernetes), l.Key(NameKubernetes), l.Names())
	ensure(t, l, testSpec())
	if c := certificate(t, l.Cert(NameKubernetes)); slices.Contains(c.DNSNames, "lb.example.com") {
		t.Error("without names.json: the name is still there")
	}

	put(t, l.Names(), "{")
	remove(t, l.Cert(NameKubernetes), l.Key(NameKubernetes))
	_, err := Ensure(l, testSpec())
	wantMisfit(t, l, err, []string{"names.json"}, "cannot be read")
}
