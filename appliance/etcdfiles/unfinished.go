package etcdfiles

import (
	"fmt"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// Ran are the versions that ran last.
type Ran struct {
	Kthwd      string `json:"kthwd"`
	Kubernetes string `json:"kubernetes"`
	Etcd       string `json:"etcd"`
}

// Latest returns the record with the versions that ran last. Kthwd, Kubernetes and Etcd of a record
// are the oldest ones that may run: an older kthwd reads those, and knows no others.
func (r Record) Latest() Record {
	if r.Last != (Ran{}) {
		r.Kthwd, r.Kubernetes, r.Etcd = r.Last.Kthwd, r.Last.Kubernetes, r.Last.Etcd
	}
	return r
}

// Unfinished reports whether the last start was of a newer minor of Kubernetes that still
// emulates the one before.
func (r Record) Unfinished() bool { return older(r.Kubernetes, r.Latest().Kubernetes) }

// Emulates returns the minor of Kubernetes that a start with the versions now emulates, such as
// 1.36, or "". A nil r is that of a directory without a record, which emulates nothing.
func (r *Record) Emulates(now Record) string {
	if r == nil {
		return ""
	}
	if steps, known := Steps(r.Kubernetes, now.Kubernetes); !known || steps != 1 {
		return ""
	}
	return MinorOf(r.Kubernetes)
}

// Emulates returns the minor of Kubernetes that a start of this binary on the directory
// emulates. It returns "" for a record that cannot be read: Guard reports that.
func Emulates(l pki.Layout) string {
	r, err := ReadRecord(l)
	if err != nil {
		return ""
	}
	return r.Emulates(Versions(""))
}

// base are the versions from before the upgrade.
func (r Record) base() Ran {
	if r.Before != (Ran{}) {
		return r.Before
	}
	return Ran{r.Kthwd, r.Kubernetes, r.Etcd}
}

// Base returns the versions from before the upgrade that a start with the versions now begins or
// goes on with; ok is false if there is none.
func (r *Record) Base(now Record) (base Ran, ok bool) {
	if r == nil {
		return Ran{}, false
	}
	base = r.base()
	return base, older(base.Kubernetes, now.Kubernetes) || older(base.Etcd, now.Etcd)
}

// Emulating returns a record of now that lets the Kubernetes of before run again. r has the
// identity of the member, and the oldest etcd that may run.
func (r Record) Emulating(before Ran, now Record) Record {
	r.Kthwd, r.Kubernetes = before.Kthwd, before.Kubernetes
	if older(before.Etcd, r.Etcd) { // it would be refused because of etcd, with the advice to run this one
		r.Kthwd = now.Kthwd
	}
	if older(before.Kubernetes, now.Kubernetes) {
		r.Emulated = MinorOf(before.Kubernetes)
	}
	r.Before, r.Last = before, Ran{now.Kthwd, now.Kubernetes, now.Etcd}
	return r
}

// refuseSkip refuses a newer minor than that of an upgrade which is not finished.
func (r Record) refuseSkip(now Record, place string) error {
	last := r.Latest()
	if !r.Unfinished() || !older(last.Kubernetes, now.Kubernetes) {
		return nil
	}
	return advice.With(fmt.Errorf("%s is in the middle of the upgrade from Kubernetes %s to %s, and this kthwd has %s: a minor must not be skipped", place, MinorOf(r.Kubernetes), MinorOf(last.Kubernetes), now.Kubernetes),
		fmt.Sprintf("run kthwd %s again, on every controller, and kthwd upgrade finish", last.Kthwd))
}
