package refused

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"testing"
)

func cert(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}}
}

// A record ends the requests that it is about, and no other.
func TestList(t *testing.T) {
	refused := errors.New("refused")
	unread := errors.New("not read yet")
	l := New(Config{
		Unread:   func(*x509.Certificate) error { return unread },
		Concerns: func(c *x509.Certificate) bool { return c.Subject.CommonName != "other" },
		Read: func(records map[string][]byte) Judge {
			return func(c *x509.Certificate) error {
				if records[c.Subject.CommonName] != nil {
					return refused
				}
				return nil
			}
		},
	})
	for name, want := range map[string]error{"a": unread, "other": nil} {
		if err := l.Refuses(cert(name)); !errors.Is(err, want) {
			t.Errorf("%s before the records are read: got %v, want %v", name, err, want)
		}
	}
	if l.Known() {
		t.Error("before the records are read: they are known")
	}
	a, done := l.During(t.Context(), cert("a"))
	defer done()
	b, doneB := l.During(t.Context(), cert("b"))
	other, doneOther := l.During(t.Context(), cert("other"))
	defer doneOther()
	l.use(map[string][]byte{}, 1)
	if !l.Known() || a.Err() != nil || l.Refuses(cert("a")) != nil {
		t.Errorf("without a record: got %v and %v", a.Err(), l.Refuses(cert("a")))
	}
	l.use(map[string][]byte{"a": {}, "other": {}}, 2)
	if a.Err() == nil || b.Err() != nil || other.Err() != nil || l.Len() != 2 {
		t.Errorf("got %v, %v, %v and %d records; want the first request to have ended", a.Err(), b.Err(), other.Err(), l.Len())
	}
	if err := l.Refuses(cert("a")); !errors.Is(err, refused) {
		t.Errorf("got %v, want %v", err, refused)
	}
	l.use(map[string][]byte{}, 1) // an answer of etcd that was overtaken
	if err := l.Refuses(cert("a")); !errors.Is(err, refused) || l.Len() != 2 {
		t.Errorf("after older records: got %v and %d records, want those of before", err, l.Len())
	}
	doneB()
	if len(l.open) != 1 {
		t.Errorf("got %d open requests, want that of a", len(l.open))
	}
}
