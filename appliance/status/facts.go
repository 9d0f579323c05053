package status

import (
	"fmt"
	"path/filepath"
	"time"
)

// facts are the lines above everything else: the quorum, the certificates, the backends.
func facts(r Report, now time.Time) (all []fact) {
	if r.Quorum != nil {
		all = append(all, quorumFact(r))
	}
	if r.LB != nil {
		all = append(all, balancerFact(r))
	}
	if len(r.Certificates) > 0 {
		all = append(all, certificatesFact(r.Certificates, now))
	}
	if r.Backup != nil {
		all = append(all, backupFact(*r.Backup, now))
	}
	return all
}

func quorumFact(r Report) fact {
	q := r.Quorum
	f := fact{Name: "etcd quorum", Tone: "good", Word: fmt.Sprintf("%d of %d members", q.Active, q.Members), Text: fmt.Sprintf("%d needed", q.Needed)}
	switch {
	case r.lacksQuorum():
		f.Tone, f.Text = "bad", fmt.Sprintf("no quorum, %d needed", q.Needed)
	case q.Active < q.Members:
		f.Tone = "warn"
	}
	if q.Leader != "" {
		f.Text += ", " + q.Leader + " leads"
	}
	return f
}

// backupFact names the last backup.
func backupFact(b Backup, now time.Time) fact {
	if b.File == "" {
		return fact{"Backup", "warn", "none yet", "one is made every " + Age(b.Every)}
	}
	f := fact{"Backup", "good", "verified " + Age(now.Sub(b.Verified)) + " ago", filepath.Base(b.File) + " on " + b.By}
	if b.Every > 0 && now.Sub(b.Verified) > max(24*time.Hour, b.Every+b.Every/2) {
		f.Tone = "warn"
	}
	return f
}

func balancerFact(r Report) fact {
	ready := 0
	for _, b := range r.LB.Backends {
		if t := tones[b.State]; t == "good" || t == "calm" {
			ready++
		}
	}
	can := balances(r.LB.Backends)
	f := fact{Name: "Backends", Tone: can.Tone, Word: fmt.Sprintf("%d of %d ready", ready, len(r.LB.Backends)), Text: fmt.Sprintf("%d connections are open", r.LB.Connections)}
	if r.HandedOver {
		f.Text = "another process has taken over"
	}
	return f
}

// certificatesFact names the certificate that ends first, or one that cannot be used.
func certificatesFact(all []Certificate, now time.Time) fact {
	var first *Certificate
	for i, c := range all {
		switch {
		case c.Problem != "":
			return fact{"Certificates", "bad", "cannot be read", filepath.Base(c.File)}
		case c.Use == "signing": // only the key in it is used
		case first == nil || c.NotAfter.Before(first.NotAfter):
			first = &all[i]
		}
	}
	if first == nil {
		return fact{Name: "Certificates", Tone: "plain", Word: "none"}
	}
	left := first.left(now)
	if left != "expired" {
		left += " left"
	}
	return fact{"Certificates", first.tone(now), left, "until " + first.NotAfter.UTC().Format(time.DateOnly) + ": " + filepath.Base(first.File)}
}
