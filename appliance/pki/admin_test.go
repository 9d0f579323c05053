package pki

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// The administrator's file lasts a year and has its rights from a binding; the one that needs
// no binding is made beside it, once.
func TestAdministrators(t *testing.T) {
	l, s := Layout{Dir: t.TempDir()}, testSpec()
	ensure(t, l, s)
	for name, want := range map[string]struct {
		org  string
		life time.Duration
	}{NameAdmin: {AdminsGroup, adminLife}, NameSuperAdmin: {"system:masters", lifetime}} {
		client := Used(l.Kubeconfig(name))[0]
		if !strings.Contains(client.Subject, want.org) {
			t.Errorf("%s.kubeconfig is for %s, want the group %s", name, client.Subject, want.org)
		}
		if left := client.NotAfter.Sub(s.now()); left > want.life || left < want.life-time.Hour {
			t.Errorf("%s.kubeconfig lasts %v, want %v", name, left, want.life)
		}
	}
	remove(t, l.Kubeconfig(NameSuperAdmin), l.Cert(NameSuperAdmin), l.Key(NameSuperAdmin)) // kept elsewhere from now on
	if r := ensure(t, l, s); len(r.Created) > 0 {
		t.Errorf("made again, although it was taken away on purpose: %q", r.Created)
	}
	remove(t, l.Kubeconfig(NameAdmin), l.Cert(NameAdmin), l.Key(NameAdmin))
	if r := ensure(t, l, s); !slices.Contains(r.Created, l.Kubeconfig(NameSuperAdmin)) {
		t.Errorf("made with a new administrator's: %q, want super-admin.kubeconfig among them", r.Created)
	}
}

// Nothing that runs uses the administrator's file, so its end stops nothing.
func TestExpiredAdministrator(t *testing.T) {
	l, s := Layout{Dir: t.TempDir()}, testSpec()
	ensure(t, l, s)
	later := s.now().Add(adminLife + time.Hour)
	s.Now, s.RenewExpired = at(later), true // the others
	r, err := Ensure(l, s)
	if err != nil || len(r.Created) > 0 {
		t.Errorf("Ensure = %q, %v", r.Created, err)
	}
	if !slices.ContainsFunc(r.Warnings, func(w string) bool {
		return strings.Contains(w, "admin.kubeconfig: its client certificate expired on ")
	}) {
		t.Errorf("warnings %q, want one about admin.kubeconfig", r.Warnings)
	}
}
