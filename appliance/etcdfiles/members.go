package etcdfiles

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// StoredMember is a member as etcd's database stores it (etcdserver/api/membership/member.go).
type StoredMember struct {
	ID         string   `json:"-"` // in hexadecimal, as etcd writes it
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner"`
	Name       string   `json:"name"` // empty until it has started
	ClientURLs []string `json:"clientURLs"`
}

// ReadStore reads the members and the store's revision from etcd's database below dir, etcd's
// member directory. The database may lag slightly behind the log. A damaged one is an error.
func ReadStore(dir string) (members []StoredMember, revision int64, err error) {
	path := filepath.Join(dir, "snap", "db")
	// bbolt panics on a page that is not one, and reads beyond the end of a file that was cut short.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if damage := recover(); damage != nil {
			members, revision, err = nil, 0, fmt.Errorf("%s is damaged: %v", path, damage)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		if keys := tx.Bucket([]byte("key")); keys != nil {
			if last, _ := keys.Cursor().Last(); len(last) >= 8 {
				revision = int64(binary.BigEndian.Uint64(last)) // the main revision (storage/mvcc/revision.go)
			}
		}
		bucket := tx.Bucket([]byte("members"))
		if bucket == nil {
			return fmt.Errorf("%s: no members in it", path)
		}
		return bucket.ForEach(func(id, data []byte) error {
			m := StoredMember{ID: string(id)}
			if err := json.Unmarshal(data, &m); err != nil {
				return fmt.Errorf("%s: member %s: %w", path, id, err)
			}
			members = append(members, m)
			return nil
		})
	})
	return members, revision, err
}

// GuardMember refuses a start whose name or peer URL is another member's in the data of this
// directory: two members would answer for one. It only reads, and passes data that cannot be
// read, which other checks report.
func GuardMember(l pki.Layout, name, peerURL string) error {
	r, err := ReadRecord(l)
	if r == nil || err != nil {
		return nil
	}
	members, _, err := ReadStore(filepath.Join(l.Etcd(), "member"))
	if err != nil {
		return nil
	}
	self := StoredMember{}
	for _, m := range members {
		if m.ID == r.Member {
			self = m
		}
	}
	if self.ID == "" {
		return nil // the data are of another cluster, which Guard reports
	}
	for _, m := range members {
		switch {
		case m.ID == r.Member:
		case m.Name == name:
			return advice.With(fmt.Errorf("%s is the name of another member of etcd, at %s", name, strings.Join(m.PeerURLs, ",")), "set --name="+self.Name+", the name of this one")
		case slices.Contains(m.PeerURLs, peerURL):
			return advice.With(fmt.Errorf("%s is the peer URL of another member of etcd, %s", peerURL, m.Name), "set --advertise-address to an address of this machine; the others know it at "+strings.Join(self.PeerURLs, ","))
		}
	}
	return nil
}
