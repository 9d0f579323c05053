package workers

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"kthwd/appliance/refused"
)

// newRemovals knows the nodes that were removed. All nodes are refused until it has read them.
func newRemovals() *refused.List {
	return refused.New(refused.Config{
		Prefix:   removedPrefix,
		Read:     removedBefore,
		Unread:   func(*x509.Certificate) error { return errors.New("the removed nodes are not known yet") },
		Concerns: func(cert *x509.Certificate) bool { return NodeOf(cert) != "" },
	})
}

// removedBefore refuses the certificates that removed nodes had.
func removedBefore(records map[string][]byte) refused.Judge {
	all := map[string]time.Time{}
	for name, value := range records {
		var v removal
		if json.Unmarshal(value, &v) != nil {
			v.At = time.Now() // somebody has removed it
		}
		all[name] = v.At
	}
	return func(cert *x509.Certificate) error {
		name := NodeOf(cert)
		at, removed := all[name]
		if removed && !cert.NotBefore.After(at) {
			return fmt.Errorf("the node %s was removed on %s, and this certificate is from before", name, at.UTC().Format(time.RFC3339))
		}
		return nil
	}
}
