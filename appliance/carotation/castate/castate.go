// Package castate is the state of a CA's rotation as etcd has it, and the meaning of its stages.
package castate

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// Stage is a step of a rotation.
type Stage string

// The stages, in their order.
const (
	StageTrust      Stage = "trust"      // all controllers trust the new CA, too
	StageDistribute Stage = "distribute" // a person brings ca.pem to all others
	StageRestart    Stage = "restart"    // of etcd's CA, in the place of distribute: a person restarts every controller
	StageSign       Stage = "sign"       // all controllers sign with the new CA
	StageWatch      Stage = "watch"      // certificates of the old CA are accepted, and their users named, until it is dropped
	StageDrop       Stage = "drop"       // all controllers forget the old CA
	StageForget     Stage = "forget"     // of etcd's CA: a person restarts every controller, and etcd forgets the old one, too
	StageDone       Stage = "done"
)

var order = []Stage{StageTrust, StageDistribute, StageSign, StageWatch, StageDrop, StageForget}

// Number counts the stages from 1.
func (s Stage) Number() int {
	if s == StageRestart {
		s = StageDistribute
	}
	return slices.Index(order, s) + 1
}

// State is a rotation, as etcd has it. It holds no key.
type State struct {
	ID          string    `json:"id"`
	By          string    `json:"by"`     // the controller that acted last
	Origin      string    `json:"origin"` // the one that has made the new CA, and keeps its key in any case
	Began       time.Time `json:"began"`
	Since       time.Time `json:"since"` // of the stage
	Stage       Stage     `json:"stage"`
	Back        bool      `json:"back,omitempty"` // the rotation is aborted: the new CA is the one to drop
	Old         string    `json:"old"`            // ID of the CA, see pki.CAID
	New         string    `json:"new"`
	Certificate []byte    `json:"certificate"` // of the new CA, DER
	Before      []byte    `json:"before"`      // that of the old one

	// Seals has an HMAC over the rest for each key of service account tokens that the writer had,
	// by its ID: only a controller can make one.
	Seals stages.Seals `json:"seals"`

	Revision int64 `json:"-"` // of the key in etcd; 0 if it is not there
}

// Running reports whether a rotation is under way.
func (s State) Running() bool { return s.ID != "" && s.Stage != StageDone }

// Waits reports whether the rotation waits for a person.
func (s State) Waits() bool {
	return s.OldSigns() && s.Stage != StageTrust || s.Stage == StageWatch || s.Stage == StageForget
}

// OldSigns reports whether the rotation is in a stage in which the old CA signs.
func (s State) OldSigns() bool {
	return s.Stage == StageTrust || s.Stage == StageDistribute || s.Stage == StageRestart
}

// Again is the last thing that a person does for another CA of etcd.
func (s State) Again() string {
	return "restart kthwd on every controller, one after the other, so that etcd refuses certificates of " + Short(s.Dropped())
}

// Drops reports whether a controller has the files without the CA that is dropped.
func (s State) Drops() bool { return s.Stage == StageDrop || s.Stage == StageForget }

// SignsNew reports whether others may sign with the new CA.
func (s State) SignsNew() bool {
	return s.Running() && (s.Stage == StageSign || s.Stage == StageWatch || s.Drops() && !s.Back)
}

// Dropped is the CA that the rotation drops in the end.
func (s State) Dropped() string {
	if s.Back {
		return s.New
	}
	return s.Old
}

// DroppedCertificate is that of the CA which is dropped, DER.
func (s State) DroppedCertificate() []byte {
	if s.Back {
		return s.Certificate
	}
	return s.Before
}

// CA is the certificate of the new CA.
func (s State) CA() (*x509.Certificate, error) {
	ca, err := x509.ParseCertificate(s.Certificate)
	if err == nil && pki.CAID(ca) != s.New {
		err = errors.New("it is not the CA of the rotation")
	}
	return ca, err
}

// String is the rotation for people.
func (s State) String() string {
	if s.Back {
		return fmt.Sprintf("%s → %s (aborted)", Short(s.New), Short(s.Old))
	}
	return fmt.Sprintf("%s → %s", Short(s.Old), Short(s.New))
}

// Short is the beginning of a CA's ID, which tells the few CAs of a cluster apart.
func Short(id string) string { return id[:min(len(id), 8)] }

// NeedsNext reports whether a controller may have the new key beside the old one.
func (s State) NeedsNext() bool {
	return s.Running() && (s.OldSigns() || s.Stage == StageSign)
}
