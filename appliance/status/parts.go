package status

import (
	"slices"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/pki"
)

// Member is the state of this controller's etcd member, as the member reports it.
type Member struct {
	ID      string       `json:"id"`
	Name    string       `json:"name"`
	Leader  bool         `json:"leader"` // this one leads
	Learner bool         `json:"learner,omitempty"`
	Term    uint64       `json:"term"`
	Applied uint64       `json:"applied"`          // index of the last applied entry
	Size    int64        `json:"sizeBytes"`        // size of the database's file
	InUse   int64        `json:"inUseBytes"`       // part of Size that holds data
	Quota   int64        `json:"quotaBytes"`       // size at which it accepts no more writes
	Alarms  []string     `json:"alarms,omitempty"` // NOSPACE, CORRUPT
	Fsync   Latency      `json:"fsync"`
	Members []MemberInfo `json:"members"`

	Defragmenting time.Time `json:"defragmentingSince,omitzero"` // since when it rewrites its database; zero if it does not
	Copying       time.Time `json:"copyingSince,omitzero"`       // since when a backup copies its database; zero if none does
}

// MemberInfo is one member of the cluster, as this controller's member sees it.
type MemberInfo struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"` // empty until it has started
	URLs    []string  `json:"urls"`
	Learner bool      `json:"learner,omitempty"`
	Local   bool      `json:"local,omitempty"`
	Leader  bool      `json:"leader,omitempty"`
	Active  bool      `json:"active"`                // takes part in the quorum, as the leader sees it; without a leader: connected
	Unheard time.Time `json:"unheardSince,omitzero"` // since when it takes part without a connection to this controller
}

// Latency is how long an operation has taken recently.
type Latency struct {
	P99    time.Duration `json:"p99Nanoseconds"`
	Count  uint64        `json:"count"` // number of operations in Window
	Window time.Duration `json:"windowNanoseconds"`
	Spent  time.Duration `json:"spentNanoseconds"` // sum of the durations of all operations in Window
	Slow   uint64        `json:"slow"`             // number of operations in Window that took half a second or longer
}

// Lease is the lease of one program. Only its holder in the cluster acts.
type Lease struct {
	Name     string    `json:"name"`
	Identity string    `json:"identity"`         // the identity of this controller
	Holder   string    `json:"holder,omitempty"` // identity of the holder; empty when not known
	Since    time.Time `json:"since"`            // when the holder was learned; zero when not known
	Leading  bool      `json:"leading"`          // this controller holds it and acts
	Terms    int       `json:"terms"`            // terms of this process
	Leaked   int       `json:"leaked,omitempty"` // terms of this process that could not be stopped
}

// Certificate is a certificate in use.
type Certificate struct {
	File     string    `json:"file"`
	Subject  string    `json:"subject,omitempty"`
	Use      string    `json:"use,omitempty"` // ca, server, client, signing, discovery
	NotAfter time.Time `json:"notAfter"`
	Problem  string    `json:"problem,omitempty"` // why it cannot be read
}

// UseDiscovery is the use of a certificate that the load balancer's discovery renews by itself.
const UseDiscovery = "discovery"

// Event is an observed change.
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

// Rate is a backend's recent traffic, per second.
type Rate struct {
	Connections float64 `json:"connections"`
	Received    float64 `json:"receivedBytes"`
	Sent        float64 `json:"sentBytes"`
}

// certificatesAge is how long a list of certificates is used before the files are
// read again.
const certificatesAge = 30 * time.Second

// CertificatesOf returns a function that lists the certificates in the files, each
// of which is a certificate file or a kubeconfig. The function reads them again when
// its last answer is older than certificatesAge. It is safe for concurrent use.
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

// Files lists the certificate files that a web configuration names.
func (w Web) Files() []string { return []string{w.CertFile, w.CAFile} }
