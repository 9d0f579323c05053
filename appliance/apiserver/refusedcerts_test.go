package apiserver

import (
	"crypto/x509"
	"errors"
	"net/http/httptest"
	"testing"

	"kthwd/appliance/refused"
)

// An API server that would refuse every user is not ready.
func TestNotReadyBeforeRefusedAreKnown(t *testing.T) {
	if err := (&Server{}).knowsRefused().Check(httptest.NewRequest("GET", "/readyz", nil)); err != nil {
		t.Errorf("without lists: got %v", err)
	}
	unread := refused.New(refused.Config{Unread: func(*x509.Certificate) error { return errors.New("not read") }})
	if err := (&Server{lists: []*refused.List{unread}}).knowsRefused().Check(httptest.NewRequest("GET", "/readyz", nil)); err == nil {
		t.Error("before the list is read: got ready")
	}
}
