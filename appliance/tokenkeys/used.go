package tokenkeys

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"
)

// headersMax bounds the headers of tokens that are remembered. All tokens of a key have the same.
const headersMax = 64

// Use is the use of tokens of one key, and the time since which that is known.
type Use struct {
	First   time.Time `json:"first"` // when an earlier process began to watch; Since without one
	Since   time.Time `json:"since"` // when this process did: nobody has watched while none ran
	Count   int       `json:"count"`
	Last    time.Time `json:"last,omitzero"`
	Clients []Client  `json:"clients,omitempty"` // the newest first, one for each account
}

// Client is an account that has used a token.
type Client struct {
	Account string    `json:"account"` // "system:serviceaccount:…"
	Address string    `json:"address"` // from which it came the last time
	Last    time.Time `json:"last"`
}

// Newest names the client that has used one last.
func (u *Use) Newest() string {
	if len(u.Clients) == 0 {
		return "nobody"
	}
	said := u.Clients[0].Account + " at " + u.Clients[0].Address
	switch n := len(u.Clients) - 1; {
	case n == 1:
		said += ", and another account"
	case n > 1:
		said += fmt.Sprintf(", and %d other accounts", n)
	}
	return said
}

// usage is the use of the watched key.
type usage struct {
	kid     string
	first   time.Time
	since   time.Time
	count   int
	last    time.Time
	clients map[string]Client
}

// WatchUse makes Accepted remember the accounts that use tokens of a key; an empty one ends that. The
// same key again changes nothing.
func (w *Watch) WatchUse(kid string) {
	w.useMu.Lock()
	defer w.useMu.Unlock()
	if w.watched.kid != kid {
		now := time.Now().UTC()
		w.watched = usage{kid: kid, first: now, since: now, clients: map[string]Client{}}
	}
}

// Resume adds the use of the watched key that an earlier process has seen. The time since which the use is
// known without a break stays.
func (w *Watch) Resume(kid string, before Use) {
	w.useMu.Lock()
	defer w.useMu.Unlock()
	u := &w.watched
	if kid == "" || u.kid != kid {
		return
	}
	u.count += before.Count
	if !before.First.IsZero() && before.First.Before(u.first) {
		u.first = before.First
	}
	if before.Last.After(u.last) {
		u.last = before.Last
	}
	for _, c := range before.Clients {
		if now, known := u.clients[c.Account]; (!known && len(u.clients) < clientsMax) || known && c.Last.After(now.Last) {
			u.clients[c.Account] = c
		}
	}
}

// UseOf is the use of the key since WatchUse was called with it, with the use that Resume has added; nil if it is
// not watched.
func (w *Watch) UseOf(kid string) *Use {
	w.useMu.Lock()
	defer w.useMu.Unlock()
	if kid == "" || w.watched.kid != kid {
		return nil
	}
	u := &Use{First: w.watched.first, Since: w.watched.since, Count: w.watched.count, Last: w.watched.last, Clients: slices.Collect(maps.Values(w.watched.clients))}
	slices.SortFunc(u.Clients, func(a, b Client) int { return b.Last.Compare(a.Last) })
	return u
}

// Accepted counts a token that the API server has just accepted, by its key. account is the user
// that it stands for, address the client's, HOST:PORT, or empty for a TokenReview.
func (w *Watch) Accepted(token, account, address string) {
	if !strings.HasPrefix(account, "system:serviceaccount:") {
		return
	}
	header, _, _ := strings.Cut(token, ".")
	now := time.Now().UTC()
	w.useMu.Lock()
	defer w.useMu.Unlock()
	kid, known := w.headers[header]
	if !known {
		if kid = kidOf(header); kid != "" && len(w.headers) < headersMax {
			w.headers[header] = kid
		}
	}
	if kid == "" {
		return
	}
	w.accepted.WithLabelValues(kid).Inc()
	if kid != w.watched.kid {
		return
	}
	w.watched.count++
	w.watched.last = now
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = cmp.Or(address, "a TokenReview")
	}
	if _, known := w.watched.clients[account]; !known && len(w.watched.clients) >= clientsMax {
		oldest := slices.MinFunc(slices.Collect(maps.Values(w.watched.clients)), func(a, b Client) int { return a.Last.Compare(b.Last) })
		delete(w.watched.clients, oldest.Account)
	}
	w.watched.clients[account] = Client{account, host, now}
}

// kidOf reads the key ID in the first part of a token. The API server has verified the token with a
// key of this ID.
func kidOf(header string) string {
	data, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		return ""
	}
	var h struct {
		KeyID string `json:"kid"`
	}
	if json.Unmarshal(data, &h) != nil {
		return ""
	}
	return h.KeyID
}
