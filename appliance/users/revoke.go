package users

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/refused"
)

// revocation is the record of a serial number or a user that is refused.
type revocation struct {
	User  string    `json:"user,omitempty"` // of the serial number
	At    time.Time `json:"at"`
	Until time.Time `json:"until"` // no certificate that it is about is valid after that
}

// revocations are those that there are.
type revocations struct {
	serials, users map[string]revocation
}

func readRevocations(ctx context.Context, etcd *clientv3.Client) (r revocations, err error) {
	answer, err := etcd.Get(ctx, revokedPrefix, clientv3.WithPrefix())
	if err != nil {
		return r, err
	}
	records := map[string][]byte{}
	for _, kv := range answer.Kvs {
		records[strings.TrimPrefix(string(kv.Key), revokedPrefix)] = kv.Value
	}
	return parseRevocations(records), nil
}

// parseRevocations reads records by their keys without revokedPrefix. A record that cannot be
// read counts as one of now: it was made to refuse.
func parseRevocations(records map[string][]byte) revocations {
	r := revocations{map[string]revocation{}, map[string]revocation{}}
	for key, value := range records {
		var v revocation
		if json.Unmarshal(value, &v) != nil || v.At.IsZero() {
			v = revocation{At: time.Now()}
		}
		if serial, ok := strings.CutPrefix(key, "serial/"); ok {
			r.serials[serial] = v
		} else if user, ok := strings.CutPrefix(key, "user/"); ok {
			r.users[user] = v
		}
	}
	return r
}

// of returns when a certificate was revoked.
func (r revocations) of(serial, user string, notBefore time.Time) (at time.Time, is bool) {
	if v, ok := r.serials[serial]; ok {
		return v.At, true
	}
	if v, ok := r.users[user]; ok && !notBefore.After(v.At) {
		return v.At, true
	}
	return at, false
}

// newRevoked refuses revoked certificates, and those of all users until it has read which are.
func newRevoked() *refused.List {
	return refused.New(refused.Config{
		Prefix:   revokedPrefix,
		Read:     func(records map[string][]byte) refused.Judge { return parseRevocations(records).judge },
		Unread:   func(*x509.Certificate) error { return errors.New("the revoked certificates are not known yet") },
		Concerns: func(cert *x509.Certificate) bool { return revocable(cert.Subject.CommonName) },
	})
}

var errRevoked = errors.New("revoked")

func (r revocations) judge(cert *x509.Certificate) error {
	if len(r.serials)+len(r.users) == 0 {
		return nil
	}
	at, is := r.of(Serial(cert), cert.Subject.CommonName, cert.NotBefore)
	if !is {
		return nil
	}
	return fmt.Errorf("%s of %s was %w on %s", Serial(cert), cert.Subject.CommonName, errRevoked, at.UTC().Format(time.RFC3339))
}

// Begin returns the time at which a new certificate of the user has to begin at the earliest, so
// that a revocation is not about it.
func Begin(ctx context.Context, etcd *clientv3.Client, user string) (from time.Time, err error) {
	all, err := read[revocation](ctx, etcd, usersPrefix)
	if v, ok := all[user]; err == nil && ok {
		from = v.At.Truncate(time.Second).Add(time.Second) // a certificate knows whole seconds
	}
	return from, err
}

// serialNumber is how a serial number is written; one of kthwd's has up to 32 digits.
var serialNumber = regexp.MustCompile(`^[0-9a-f]{8,40}$`)

// Target is what a revocation is about: the certificate with the serial number, or all of the user
// if there is none. Without Certificates, that which has both is about both.
type Target struct {
	User, Serial string
	Certificates []Certificate // of the ledger, that have not expired
}

// OfUser reports whether a revocation is about all certificates of the user.
func (t Target) OfUser() bool { return t.Serial == "" || len(t.Certificates) == 0 }

// Find returns what a name or a serial number means: a serial number of the ledger, or else all
// certificates of a user. It fails with ErrUnlisted if the ledger has neither; the Target is then
// whatever can be meant.
func Find(ctx context.Context, etcd *clientv3.Client, what string) (Target, error) {
	all, err := List(ctx, etcd, true)
	if err != nil {
		return Target{}, err
	}
	serial := Normal(what)
	t := Target{User: what}
	for _, e := range all {
		switch {
		case e.Serial == serial:
			return Target{User: e.User, Serial: serial, Certificates: []Certificate{e.Certificate}}, nil
		case e.User == what && e.State != Expired:
			t.Certificates = append(t.Certificates, e.Certificate)
		}
	}
	if len(t.Certificates) > 0 {
		return t, nil
	}
	if serialNumber.MatchString(serial) {
		t.Serial = serial // or it is a user's name: nobody knows
	}
	return t, ErrUnlisted
}

// Normal returns a serial number as the ledger has it, from the forms of other programs.
func Normal(serial string) string {
	s := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(serial))
	s = strings.TrimLeft(strings.TrimPrefix(s, "0x"), "0")
	return s
}

// Revoke refuses what a Target is about from now on, on each controller. until is the end of the
// longest certificate that there can be: that of the CA.
func Revoke(ctx context.Context, etcd *clientv3.Client, t Target, until time.Time) error {
	now := time.Now().UTC()
	records := map[string]revocation{}
	if t.Serial != "" {
		v := revocation{At: now, Until: until.UTC()}
		if len(t.Certificates) == 1 {
			v.User, v.Until = t.User, t.Certificates[0].NotAfter
		}
		records[serialsPrefix+t.Serial] = v
	}
	if t.OfUser() {
		v := revocation{At: now, Until: until.UTC()}
		before, err := read[revocation](ctx, etcd, usersPrefix)
		if err != nil {
			return err
		}
		if b := before[t.User]; b.At.After(now) {
			v.At = b.At // the clock of another controller; what was refused stays refused
		}
		records[usersPrefix+t.User] = v
		for _, c := range t.Certificates {
			if c.NotBefore.After(v.At) { // another clock again
				records[serialsPrefix+c.Serial] = revocation{User: t.User, At: now, Until: c.NotAfter}
			}
		}
	}
	return put(ctx, etcd, records)
}

// put writes records, those of the users last: with them the revocation is complete.
func put(ctx context.Context, etcd *clientv3.Client, records map[string]revocation) error {
	for _, key := range slices.Sorted(maps.Keys(records)) {
		value, err := json.Marshal(records[key])
		if err != nil {
			return err
		}
		if _, err := etcd.Put(ctx, key, string(value)); err != nil {
			return err
		}
	}
	return nil
}
