package upgradecheck

import (
	"fmt"
	"strings"

	utilversion "k8s.io/apimachinery/pkg/util/version"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/status"
)

// was returns the versions that the data directory was run with last.
func (in Input) was() (etcdfiles.Record, bool) {
	switch {
	case in.Record != nil:
		return in.Record.Latest(), true
	case in.Report != nil && in.Report.Kubernetes != "":
		return etcdfiles.Record{Kthwd: in.Report.Version, Kubernetes: in.Report.Kubernetes, Etcd: in.Report.Etcd}, true
	}
	return etcdfiles.Record{}, false
}

// upgrade returns the upgrade to a newer minor, or nil if it is none or nothing is known.
func (in Input) upgrade() *etcdfiles.Upgrade {
	was, known := in.was()
	if !known || in.BinaryErr != nil {
		return nil
	}
	return was.Upgrade(in.Binary.Record())
}

// step is the move of one program.
type step struct {
	program, was, is string
	skips            bool // may skip a minor
}

func steps(was, is etcdfiles.Record) []step {
	return []step{{"kthwd", was.Kthwd, is.Kthwd, true}, {"Kubernetes", was.Kubernetes, is.Kubernetes, false}, {"etcd", was.Etcd, is.Etcd, false}}
}

// release reports whether v has a place in the order of kthwd's versions: a developer's build has none.
func release(v string) bool { return !strings.ContainsAny(v, "-+") }

// judgeVersions tells what a start of the new binary would say of the directory's record.
func judgeVersions(in Input) Result {
	was, known := in.was()
	switch {
	case in.BinaryErr != nil:
		return noBinary("versions")
	case in.RecordErr != nil:
		return of(No, in.RecordErr, "")
	case !known:
		return unknown(start, "the data directory has no member.json yet: nothing says which versions ran on it")
	}
	if r, unfinished := in.judgeUnfinished(was); unfinished {
		return r
	}
	var all []Result
	moves, same := []string{}, true
	for _, s := range steps(was, in.Binary.Record()) {
		all = append(all, s.judge()...)
		same = same && s.was == s.is
		if s.was != s.is {
			moves = append(moves, fmt.Sprintf("%s %s to %s", s.program, s.was, s.is))
		}
	}
	if same {
		return warn("name the new kthwd with --binary", "the same versions as ran here last: there is nothing to upgrade")
	}
	return worst(append(all, ok("%s", strings.Join(moves, ", ")))...)
}

// judgeUnfinished judges a binary that is to follow on an upgrade which is not finished: the one
// of before, or one that is newer still.
func (in Input) judgeUnfinished(was etcdfiles.Record) (r Result, judged bool) {
	if in.Record == nil || !in.Record.Unfinished() {
		return r, false
	}
	is := in.Binary.Record()
	minors, _ := etcdfiles.Steps(was.Kubernetes, is.Kubernetes)
	from, to := etcdfiles.MinorOf(in.Record.Kubernetes), etcdfiles.MinorOf(was.Kubernetes)
	switch {
	case minors > 0:
		return no("kthwd upgrade finish", "the upgrade from Kubernetes %s to %s is not finished", from, to), true
	case minors == 0:
		return r, false
	case in.Record.Follows(is, "this directory", "") != nil:
		return no("kthwd upgrade back", "the way back from Kubernetes %s to %s is not ready on this controller", to, from), true
	}
	return warn("kthwd upgrade status", "the way back from Kubernetes %s to %s", to, from), true
}

// judge returns what is wrong with a step.
func (s step) judge() []Result {
	if s.program == "kthwd" && (!release(s.was) || !release(s.is)) {
		return nil
	}
	minors, known := etcdfiles.Steps(s.was, s.is)
	switch {
	case !known:
		return []Result{unknown("", "%s %s and %s cannot be compared", s.program, s.was, s.is)}
	case minors < 0:
		return []Result{no("name a kthwd with "+s.program+" "+s.was+" or newer", "the new binary has %s %s, older than %s that ran here last: there is no way back to an older minor", s.program, s.is, s.was)}
	case minors > 1 && !s.skips:
		return []Result{no("upgrade every controller to a kthwd with "+s.program+" "+etcdfiles.NextMinor(s.was)+" first", "%s %s to %s skips a minor", s.program, s.was, s.is)}
	case minors == 0 && olderPatch(s.is, s.was):
		return []Result{warn("", "%s goes back from %s to the older patch %s", s.program, s.was, s.is)}
	}
	return nil
}

func olderPatch(a, b string) bool {
	va, errA := utilversion.ParseGeneric(a)
	vb, errB := utilversion.ParseGeneric(b)
	return errA == nil && errB == nil && va.LessThan(vb)
}

// judgeControllers judges the skew between the new binary and the other controllers.
func judgeControllers(in Input) Result {
	switch {
	case in.BinaryErr != nil:
		return noBinary("the other controllers' versions are")
	case in.Cluster == nil:
		return in.notRunning("the other controllers' versions are")
	case in.members() < 2 && len(in.Cluster.Controllers) < 2:
		return ok("there is no other one")
	}
	var here status.Controller
	for _, c := range in.Cluster.Controllers {
		if c.Here {
			here = c
		}
	}
	var all []Result
	var versions []string
	for _, c := range in.Cluster.Controllers {
		if !c.Here {
			all = append(all, in.skew(here, c)...)
			versions = append(versions, fmt.Sprintf("%s has Kubernetes %s", c.Name, c.Kubernetes))
		}
	}
	if missing := in.members() - len(in.Cluster.Controllers); missing > 0 {
		all = append(all, unknown("kthwd status --cluster", "controllers that have not answered yet: %d of %d", missing, in.members()))
	}
	if len(all) > 0 {
		return worst(all...)
	}
	return ok("%s", list(versions))
}

// members is the number of etcd's members; 0 if that is not known.
func (in Input) members() int {
	if in.Report == nil || in.Report.Quorum == nil {
		return 0
	}
	return in.Report.Quorum.Members
}

// skew judges one other controller.
func (in Input) skew(here, c status.Controller) (all []Result) {
	is := in.Binary.Record()
	for _, p := range []struct{ program, was, here, is string }{{"Kubernetes", c.Kubernetes, here.Kubernetes, is.Kubernetes}, {"etcd", c.Etcd, here.Etcd, is.Etcd}} {
		far, known := etcdfiles.Steps(p.was, p.is)
		behind, _ := etcdfiles.Steps(p.was, p.here)
		newer, _ := etcdfiles.Steps(p.here, p.is)
		switch {
		case !known:
		case far > 1:
			all = append(all, no("upgrade "+c.Name+" first", "%s is on %s %s, more than one minor older than %s", c.Name, p.program, p.was, p.is))
		case behind > 0 && newer > 0:
			all = append(all, no("upgrade "+c.Name+" first", "%s is still on %s %s: the upgrade before is not finished", c.Name, p.program, p.was))
		}
	}
	switch {
	case c.Health == "" && c.Error == "":
		all = append(all, unknown("kthwd status --cluster", "%s has not been asked yet", c.Name))
	case c.Error != "" && c.Kubernetes == "":
		all = append(all, warn("kthwd status --cluster; upgrade it as soon as it is back", "%s is away, and its version is not known", c.Name))
	case c.Error != "":
		all = append(all, warn("kthwd status --cluster; upgrade it as soon as it is back", "%s is away; it was last on Kubernetes %s", c.Name, c.Kubernetes))
	}
	return all
}
