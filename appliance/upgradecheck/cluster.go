package upgradecheck

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/agree"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

const (
	certificateSoon = 30 * 24 * time.Hour
	backupOld       = 24 * time.Hour // as of the finding in status
	backupFresh     = time.Hour      // where it is the only way back
	nearlyFull      = 0.8            // share of the quota, as of the finding in status
)

func judgeHealth(in Input) Result {
	r := in.Report
	if r == nil {
		return in.notRunning("health is")
	}
	first, do := r.Reason, "kthwd status"
	if len(r.Findings) > 0 {
		first = r.Findings[0].Text
		do = cmp.Or(r.Findings[0].Do, do)
	}
	switch {
	case r.Health == status.Down || !r.Ready:
		return no(do, "kthwd is not ready here: %s", first)
	case r.Health != status.Healthy:
		return warn(do, "kthwd is %s here: %s", r.Health, first)
	}
	return ok("kthwd is healthy here")
}

// judgeQuorum says whether the others can go on while this controller restarts.
func judgeQuorum(in Input) Result {
	if in.Report == nil || in.Report.Quorum == nil {
		return in.notRunning("the quorum is")
	}
	q := *in.Report.Quorum
	switch {
	case q.Leader == "":
		return no("kthwd status", "etcd has no leader: %d of %d members are active", q.Active, q.Members)
	case q.Members <= 1:
		return ok("this is the only voting member: clients wait while it restarts")
	case q.Active-1 >= q.Needed:
		return ok("%d of %d members are active, and %d are needed: one may restart", q.Active, q.Members, q.Needed)
	case q.Active >= q.Members:
		return warn("kthwd member add NAME makes room for a restart", "all %d members are needed: there is no quorum while one restarts", q.Members)
	}
	return no("start the missing controllers: kthwd member list", "%d of %d members are active: without one more there is no quorum", q.Active, q.Members)
}

func judgeEtcd(in Input) Result {
	switch {
	case in.Report == nil:
		return in.notRunning("etcd's members are")
	case in.Etcd == nil:
		return unknown("kthwd etcd status", "etcd's members are not judged: %s", why(in.EtcdErr))
	case in.Etcd.Leader == "":
		return no("kthwd etcd status", "etcd has no leader")
	}
	all := []Result{}
	for _, m := range in.Etcd.Members {
		all = append(all, judgeMember(m)...)
	}
	if len(all) > 0 {
		return worst(all...)
	}
	return ok("no alarm, and every member is ok; the largest database has %s", text.Bytes(largest(in.Etcd.Members)))
}

func largest(all []etcdspace.Member) (size int64) {
	for _, m := range all {
		size = max(size, m.Size)
	}
	return size
}

// judgeMember returns what is wrong with a member.
func judgeMember(m etcdspace.Member) (all []Result) {
	const look, wait = "kthwd etcd status", "wait for its end: kthwd etcd status"
	switch {
	case m.Corrupt():
		all = append(all, no(look, "%s has the alarm CORRUPT", m.Name))
	case m.Full():
		all = append(all, no("kthwd etcd space --fix", "%s has the alarm NOSPACE", m.Name))
	case m.Quota > 0 && float64(m.Size) >= nearlyFull*float64(m.Quota):
		all = append(all, warn("kthwd etcd space --fix", "the database of %s has %s of %s", m.Name, text.Bytes(m.Size), text.Bytes(m.Quota)))
	}
	switch m.State {
	case etcd.StateDefragmenting:
		all = append(all, no(wait, "%s defragments its database", m.Name))
	case etcdspace.StateBehind:
		all = append(all, no(wait, "%s has not caught up with the others yet", m.Name))
	case etcdspace.StateLeaderless:
		all = append(all, no(look, "%s knows no leader", m.Name))
	case etcdspace.StateLearner:
		all = append(all, warn("wait until it votes: kthwd member list", "%s is a learner: a join is under way", m.Name))
	case etcdspace.StateSilent:
		all = append(all, warn(look, "%s does not answer: %s", m.Name, m.Error))
	}
	return all
}

// judgeDrift warns only: while controllers are upgraded, the flags of a newer one may have to differ.
func judgeDrift(in Input) Result {
	switch {
	case in.Report == nil:
		return in.notRunning("drift is")
	case in.DriftErr != nil:
		return unknown("kthwd config diff", "drift is not judged: %s", why(in.DriftErr))
	}
	var flags []string
	for _, r := range in.Drift {
		if r.Class == agree.Must {
			flags = append(flags, fmt.Sprintf("--%s of %s", r.Key, r.Program))
		}
	}
	if len(flags) == 0 {
		return ok("no flag that must agree differs between controllers")
	}
	slices.Sort(flags)
	return warn("kthwd config diff", "the controllers differ in %s", list(flags))
}

func judgeCertificates(in Input) Result {
	if len(in.Certificates) == 0 {
		return unknown("kthwd pki show", "no certificate was found")
	}
	var all []Result
	earliest := time.Time{}
	for _, c := range in.Certificates {
		left, name := c.NotAfter.Sub(in.Now), filepath.Base(c.File)
		switch {
		case c.Problem != "":
			all = append(all, warn("kthwd pki show", "%s cannot be read: %s", name, c.Problem))
			continue
		case c.Use == "signing": // only the key in it is used
			continue
		case left <= 0:
			all = append(all, no("kthwd pki show", "%s (%s) expired on %s", name, c.Subject, c.NotAfter.UTC().Format(time.DateOnly)))
		case left < certificateSoon:
			all = append(all, warn("kthwd pki show", "%s (%s) ends on %s", name, c.Subject, c.NotAfter.UTC().Format(time.DateOnly)))
		}
		if earliest.IsZero() || c.NotAfter.Before(earliest) {
			earliest = c.NotAfter
		}
	}
	if len(all) > 0 {
		return worst(all...)
	}
	return ok("none ends before %s", earliest.UTC().Format(time.DateOnly))
}

// judgeDisk says whether the copy that the first start of a newer minor makes has room.
func judgeDisk(in Input) Result {
	u := in.upgrade()
	switch {
	case in.BinaryErr != nil:
		return noBinary("room for the copy before the upgrade is")
	case u == nil:
		return ok("no copy of the data is made: no minor of Kubernetes or etcd changes")
	case in.CopyOff:
		return ok("no copy of the data is made: --copy-before-upgrade is false")
	case in.CopyErr != nil:
		do, _ := advice.Of(in.CopyErr)
		return no(cmp.Or(do, "make room"), "no room for the copy before %s: %s", u, why(in.CopyErr))
	}
	return ok("there is room for the copy before %s, twice %s for a moment", u, text.Bytes(in.CopySize))
}

func judgeBackup(in Input) Result {
	const create = "kthwd backup create --dir=DIR"
	if in.Report == nil {
		return in.notRunning("the last backup is")
	}
	b, only := in.Report.Backup, in.CopyOff && in.upgrade() != nil
	switch {
	case b == nil || b.Verified.IsZero():
		if only {
			return no(create, "no verified backup of the cluster is known, and --copy-before-upgrade is false: there would be no way back")
		}
		return warn(create, "no verified backup of the cluster is known")
	case in.Report.Member != nil && !in.Report.Member.Copying.IsZero():
		return warn("wait for its end", "a backup copies the database since %s: a restart would end it", status.Age(in.Now.Sub(in.Report.Member.Copying)))
	case only && in.Now.Sub(b.Verified) > backupFresh:
		return no(create, "the last backup was verified %s ago, and --copy-before-upgrade is false: what came since would be lost on the way back", status.Age(in.Now.Sub(b.Verified)))
	case in.Now.Sub(b.Verified) > backupOld:
		return warn(create, "the last backup was verified %s ago", status.Age(in.Now.Sub(b.Verified)))
	}
	return ok("the last backup was verified %s ago", status.Age(max(in.Now.Sub(b.Verified), 0)))
}
