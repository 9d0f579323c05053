package access

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http/httptest"
	"testing"

	authnv1 "k8s.io/api/authentication/v1"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	requestx509 "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
)

// backend is an audit backend that is only told from another.
type backend struct {
	audit.Backend
	name string
}

// The records of a user with credentials are in the log that clients without any cannot rotate,
// whatever the user's name is.
func TestWhoseRecordsAreElsewhere(t *testing.T) {
	nobody, ok, err := anonymous.NewAuthenticator(nil).AuthenticateRequest(httptest.NewRequest("GET", "/api", nil))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	of := func(cn string, groups ...string) *authenticator.Response {
		t.Helper()
		r, ok, err := requestx509.CommonNameUserConversion.User([]*x509.Certificate{{Subject: pkix.Name{CommonName: cn, Organization: groups}, Raw: []byte(cn)}})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return r
	}
	split := splitBackend{known: backend{name: "known"}, unknown: backend{name: "unknown"}}
	for _, c := range []struct {
		name, want string
		user       user.Info
	}{
		{"no credentials", "unknown", nobody.User},
		{"wrong credentials", "unknown", &user.DefaultInfo{}},
		{"a user", "known", of("jane", "developers").User},
		{"a user called system:anonymous", "known", of(user.Anonymous).User},
		{"one in the group of the unauthenticated, too", "known", of(user.Anonymous, user.AllUnauthenticated).User},
		{"one of an issuer of tokens", "known", &user.DefaultInfo{Name: user.Anonymous, Groups: []string{"developers"}}},
	} {
		event := &auditinternal.Event{User: authnv1.UserInfo{Username: c.user.GetName(), UID: c.user.GetUID(), Groups: c.user.GetGroups(), Extra: map[string]authnv1.ExtraValue{}}}
		for key, values := range c.user.GetExtra() {
			event.User.Extra[key] = values
		}
		if got := split.of(event).(backend).name; got != c.want {
			t.Errorf("%s: the records go to the log of %s clients, want %s", c.name, got, c.want)
		}
	}
}
