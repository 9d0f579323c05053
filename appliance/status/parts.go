package status

import (
	"slices"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/pki"
)

// Member is what the etcd member of this controller knows.
type Member struct {
	ID      string       `json:"id"`
	Name    string       `json:"name"`
	Leader  bool         `json:"leader"` // this one leads
	Learner bool         `json:"learner,omitempty"`
	Term    uint64       `json:"term"`
	Applied uint64       `json:"applied"`          // index of the last entry that is applied
	Size    int64        `json:"sizeBytes"`        // of the database's file
	InUse   int64        `json:"inUseBytes"`       // of that, what holds data
	Quota   int64        `json:"quotaBytes"`       // at which it takes no more writes
	Alarms  []string     `json:"alarms,omitempty"` // NOSPACE, CORRUPT
	Fsync   Latency      `json:"fsync"`
	Members []MemberInfo `json:"members"`
}

// MemberInfo is one member of the cluster, as seen from here.
type MemberInfo struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"` // empty until it has started
	URLs    []string `json:"urls"`
	Learner bool     `json:"learner,omitempty"`
	Local   bool     `json:"local,omitempty"`
	Leader  bool     `json:"leader,omitempty"`
	Active  bool     `json:"active"` // connected
}

// Latency is how long something took lately.
type Latency struct {
	P99    time.Duration `json:"p99Nanoseconds"`
	Count  uint64        `json:"count"` // how many there were
	Window time.Duration `json:"windowNanoseconds"`
}

// Lease is the right of one program to act, of which the cluster has one.
type Lease struct {
	Name     string    `json:"name"`
	Identity string    `json:"identity"`         // of this controller
	Holder   string    `json:"holder,omitempty"` // who has it; empty when not known
	Since    time.Time `json:"since"`            // when this was learned; zero when not known
	Leading  bool      `json:"leading"`          // this controller acts
	Terms    int       `json:"terms"`            // of this process
}

// Certificate is one that is in use.
type Certificate struct {
	File     string    `json:"file"`
	Subject  string    `json:"subject,omitempty"`
	Use      string    `json:"use,omitempty"` // ca, server, client, signing
	NotAfter time.Time `json:"notAfter"`
	Problem  string    `json:"problem,omitempty"` // why it cannot be read
}

// Event is a change that was seen.
type Event struct {
	Time   time.Time `json:"time"`
	Object string    `json:"object"` // a component, or "backend ADDRESS", or "etcd quorum"
	From   string    `json:"from,omitempty"`
	To     string    `json:"to"`
	Reason string    `json:"reason,omitempty"`
	// RestartReason is the kind of failure after which a component starts again,
	// as its supervise.Status has it; empty for every other change.
	RestartReason string `json:"restartReason,omitempty"`
}

// Rate is what happened each second, lately.
type Rate struct {
	Connections float64 `json:"connections"`
	Received    float64 `json:"receivedBytes"`
	Sent        float64 `json:"sentBytes"`
}

// certificatesAge is how old a list of certificates may get before the files are
// read again.
const certificatesAge = 30 * time.Second

// CertificatesOf returns a function that lists the certificates in the files, each
// of which is a certificate file or a kubeconfig. It reads them anew when its
// answer is old, and may be called by several at once.
func CertificatesOf(files func() []string) func() []Certificate {
	var mu sync.Mutex
	var all []Certificate
	var at time.Time
	return func() []Certificate {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) > certificatesAge {
			all, at = readCertificates(files()), time.Now()
		}
		return slices.Clip(all)
	}
}

func readCertificates(files []string) (all []Certificate) {
	for _, file := range files {
		if file == "" {
			continue
		}
		for _, e := range pki.Used(file) {
			c := Certificate{File: e.File, Subject: e.Subject, Use: strings.Join(e.Uses, ","), NotAfter: e.NotAfter, Problem: e.Problem}
			if !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	return all
}

// Files are the certificates that a web configuration names.
func (w Web) Files() []string { return []string{w.CertFile, w.CAFile} }
