// Package watch records the users of certificates of a CA that a rotation replaces.
//
//	w := &watch.Watch{}
//	w.Of(old)                      // from now on
//	w.Used(cert, user, address)    // for each request
//	use := w.Use(pki.CAID(old))    // what came since
package watch

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kthwd/appliance/pki"
)

// clientsMax bounds the users that are kept.
const clientsMax = 64

// Use is the use of certificates of one CA, and the time since which that is known.
type Use struct {
	Since   time.Time `json:"since"`
	Count   int       `json:"count"` // of requests
	Last    time.Time `json:"last,omitzero"`
	Clients []Client  `json:"clients,omitempty"` // the newest first, one for each user
}

// Client is a user with a certificate of the CA, as the last request showed it.
type Client struct {
	User    string    `json:"user"`
	Address string    `json:"address"` // from which it came the last time
	Last    time.Time `json:"last"`
	Expires time.Time `json:"expires"` // the certificate
}

// Newest names the client that has come last.
func (u *Use) Newest() string {
	if len(u.Clients) == 0 {
		return "nobody"
	}
	said := u.Clients[0].User + " at " + u.Clients[0].Address
	switch n := len(u.Clients) - 1; {
	case n == 1:
		said += ", and another user"
	case n > 1:
		said += fmt.Sprintf(", and %d other users", n)
	}
	return said
}

// Watch records the users of certificates of the CA that a rotation replaces. The zero value
// watches none. Its methods may be called from any goroutine.
type Watch struct {
	watched atomic.Pointer[usage] // nil for none
}

// usage is the use of the watched CA.
type usage struct {
	ca    *x509.Certificate
	id    string
	since time.Time

	mu      sync.Mutex
	count   int
	last    time.Time
	clients map[string]Client
}

// Of watches a CA; nil ends that. The same CA again changes nothing.
func (w *Watch) Of(ca *x509.Certificate) {
	now := w.watched.Load()
	switch {
	case ca == nil:
		w.watched.Store(nil)
	case now == nil || !now.ca.Equal(ca):
		w.watched.Store(&usage{ca: ca, id: pki.CAID(ca), since: time.Now().UTC(), clients: map[string]Client{}})
	}
}

// Use is the use of the CA with that ID since Of was called with it; nil if it is not watched.
func (w *Watch) Use(id string) *Use {
	u := w.watched.Load()
	if u == nil || u.id != id {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	use := &Use{Since: u.since, Count: u.count, Last: u.last, Clients: slices.Collect(maps.Values(u.clients))}
	slices.SortFunc(use.Clients, func(a, b Client) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.User, b.User)) })
	return use
}

// Used counts a request with a certificate that the API server has accepted. It costs nothing while
// no CA is watched. address is the client's, HOST:PORT.
func (w *Watch) Used(cert *x509.Certificate, user, address string) {
	u := w.watched.Load()
	if u == nil || !u.signed(cert) {
		return
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count++
	u.last = time.Now().UTC()
	if _, known := u.clients[user]; !known && len(u.clients) >= clientsMax {
		oldest := slices.MinFunc(slices.Collect(maps.Values(u.clients)), func(a, b Client) int { return a.Last.Compare(b.Last) })
		delete(u.clients, oldest.User)
	}
	u.clients[user] = Client{user, host, u.last, cert.NotAfter.UTC()}
}

// signed reports whether the watched CA has signed a certificate that one of the cluster's CAs has.
// The IDs of keys tell them apart where both have one: a signature takes longer.
func (u *usage) signed(cert *x509.Certificate) bool {
	if len(cert.AuthorityKeyId) > 0 && len(u.ca.SubjectKeyId) > 0 {
		return bytes.Equal(cert.AuthorityKeyId, u.ca.SubjectKeyId)
	}
	return cert.CheckSignatureFrom(u.ca) == nil
}
