package upgrade

import (
	"context"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/status"
)

// Controller is what is known of one controller.
type Controller struct {
	Name       string `json:"name"`
	Here       bool   `json:"here,omitempty"`
	Kthwd      string `json:"kthwd"`
	Kubernetes string `json:"kubernetes"`
	Emulated   string `json:"emulated,omitempty"` // minor of Kubernetes; "" for its own
	Etcd       string `json:"etcd"`
	Storage    string `json:"storageVersion"`      // of etcd's database
	Restart    bool   `json:"restart,omitempty"`   // a restart changes what it emulates
	Old        bool   `json:"old,omitempty"`       // it runs the versions from before the upgrade
	MayGoBack  bool   `json:"mayGoBack,omitempty"` // the versions from before may run on its data
	Away       string `json:"away,omitempty"`      // why it does not answer
	Unwell     string `json:"unwell,omitempty"`    // why it is not ready
	Unwritten  string `json:"unwritten,omitempty"` // why it cannot write member.json

	noted bool // its next start does not emulate the minor from before
}

// Stage is the place of a cluster in the life of an upgrade.
type Stage string

// The stages.
const (
	StageNone      Stage = "none"      // no upgrade is under way
	StageRolling   Stage = "rolling"   // some controllers have the versions from before
	StageReached   Stage = "reached"   // all have the newer ones, and the way back is open
	StageBack      Stage = "back"      // etcd is told to go back, and nobody has gone yet
	StageReturning Stage = "returning" // some have gone back
	StageFinishing Stage = "finishing" // finished, and some controllers emulate until their restart, or are still old
)

// View is the cluster at one moment.
type View struct {
	State       *State       `json:"upgrade,omitempty"` // the last one; nil for none
	Target      string       `json:"etcdDowngrade,omitempty"`
	Controllers []Controller `json:"controllers"` // by name
	Leaderless  bool         `json:"leaderless,omitempty"`

	etcdMinors bool // the upgrade changes etcd's minor
}

// Look looks at the whole cluster through the member here. all is what the running kthwd knows of
// the controllers.
func Look(ctx context.Context, c *etcdspace.Cluster, all status.Cluster) (v View, err error) {
	members, err := c.Status(ctx)
	if err != nil {
		return v, err
	}
	var o []clientv3.OpOption
	if members.Leader == "" {
		o = append(o, clientv3.WithSerializable())
	}
	s, err := ReadState(ctx, c.Local(), members.Cluster, o...)
	if err != nil {
		return v, err
	}
	return viewOf(s, members, all), nil
}

func viewOf(s State, members etcdspace.Status, all status.Cluster) (v View) {
	v.Leaderless = members.Leader == ""
	if s.there() {
		v.State, v.etcdMinors = &s, s.fromEtcd() != s.toEtcd()
	}
	for _, m := range members.Members {
		c := Controller{Name: m.Name, Here: m.Here, Etcd: m.Version, Storage: m.Storage, Away: m.Error}
		if m.Target != "" {
			v.Target = m.Target
		}
		i := slices.IndexFunc(all.Controllers, func(o status.Controller) bool { return o.Name == m.Name || o.Member == m.ID })
		if i < 0 {
			if c.Away == "" {
				c.Away = "its kthwd has not told its state yet"
			}
		} else {
			c.complete(all.Controllers[i], v.State)
		}
		c.Old = v.State != nil && (behind(c.Kubernetes, s.To.Kubernetes) || behind(c.Etcd, s.To.Etcd))
		if v.etcdMinors && behind(s.From.Etcd, c.Storage) { // it tells within seconds
			c.MayGoBack = false
		}
		v.Controllers = append(v.Controllers, c)
	}
	return v
}

// complete adds what the controller's kthwd has told.
func (c *Controller) complete(o status.Controller, s *State) {
	c.Kthwd, c.Kubernetes = o.Version, o.Kubernetes
	if c.Etcd == "" {
		c.Etcd = o.Etcd
	}
	switch {
	case o.Error != "":
		c.Away = o.Error
	case o.Health == "":
		c.Away = "it has not been asked yet"
	case !o.Ready:
		c.Unwell = o.Reason
	}
	u := o.Upgrade
	if u == nil { // an older kthwd
		return
	}
	c.Unwritten = u.Unwritten
	c.Emulated, c.Restart = u.Emulated, u.Kube != "" && u.Emulated != u.Next
	c.noted = s != nil && !behind(u.Kube, s.To.Kubernetes)
	c.MayGoBack = s != nil && s.open() && u.Kube != "" && !behind(s.From.Kubernetes, u.Kube) && !behind(s.From.Etcd, u.Etcd)
}

// behind reports whether a is of an older minor than b.
func behind(a, b string) bool {
	steps, known := etcdfiles.Steps(a, b)
	return known && steps > 0
}

// Judge returns the stage of the upgrade.
func (v View) Judge() Stage {
	old := len(v.names(func(c Controller) bool { return c.Old }))
	restart := len(v.names(func(c Controller) bool { return c.Restart }))
	switch {
	case v.Target != "" && old > 0:
		return StageReturning
	case v.Target != "":
		return StageBack
	case v.State == nil || v.State.open() && old == len(v.Controllers): // taken back
		return StageNone
	case v.State.Finished && old+restart > 0:
		return StageFinishing
	case v.State.Finished:
		return StageNone
	case old > 0:
		return StageRolling
	}
	return StageReached
}

// names lists the controllers of a kind.
func (v View) names(is func(Controller) bool) (all []string) {
	for _, c := range v.Controllers {
		if is(c) {
			all = append(all, c.Name)
		}
	}
	return all
}

func (v View) old() []string { return v.names(func(c Controller) bool { return c.Old }) }
func (v View) new() []string { return v.names(func(c Controller) bool { return !c.Old }) }

// troubles says which controllers are away or not ready.
func (v View) troubles() (all []string) {
	if v.Leaderless {
		all = append(all, "etcd has no leader")
	}
	for _, c := range v.Controllers {
		switch {
		case c.Away != "":
			all = append(all, c.Name+" does not answer: "+c.Away)
		case c.Unwell != "":
			all = append(all, c.Name+" is not ready: "+c.Unwell)
		}
	}
	return all
}

// unwritten says which controllers could not write their record when they tried last.
func (v View) unwritten() (all []string) {
	for _, c := range v.Controllers {
		if c.Away == "" && c.Unwritten != "" {
			all = append(all, c.Name+" cannot write member.json: "+c.Unwritten)
		}
	}
	return all
}

// and joins names: c0, c1 and c2.
func and(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// inTurn joins names in the order of work: c0, then c1, then c2.
func inTurn(names []string) string { return strings.Join(names, ", then ") }

// Next says what there is to do, one line for each way on; none when there is nothing.
func (v View) Next() (all []string) {
	all = v.away()
	for _, u := range v.unwritten() {
		all = append(all, u+": free room on its disk, or give kthwd's user the file, then go on")
	}
	switch v.Judge() {
	case StageRolling:
		all = append(all,
			"to go on: upgrade "+inTurn(v.old())+", each when the one before is ready",
			fmt.Sprintf("to go back: kthwd upgrade back, then run the old kthwd again on %s", inTurn(v.new())))
	case StageReached:
		all = append(all,
			"to go on: kthwd upgrade finish, once you no longer need the way back",
			"to go back: kthwd upgrade back")
	case StageBack:
		if waiting := v.names(func(c Controller) bool { return !c.MayGoBack }); len(waiting) > 0 {
			all = append(all, "to go back: kthwd upgrade back, which waits for "+and(waiting))
		} else {
			all = append(all, "to go back: run the old kthwd again on "+inTurn(v.new())+", each when the one before is ready")
		}
		all = append(all, "to go on with the upgrade: kthwd upgrade back --cancel")
	case StageReturning:
		all = append(all,
			"to go back: run the old kthwd again on "+inTurn(v.new())+", each when the one before is ready",
			"to go on with the upgrade: kthwd upgrade back --cancel, then upgrade "+inTurn(v.old())+" again")
	case StageFinishing:
		if old := v.old(); len(old) > 0 {
			all = append(all, fmt.Sprintf("the upgrade was finished without %s: run the new kthwd there (Kubernetes %s, etcd %s)", and(old), v.State.To.Kubernetes, v.State.To.Etcd))
		}
		if restart := v.names(func(c Controller) bool { return c.Restart }); len(restart) > 0 {
			all = append(all, "restart "+inTurn(restart)+", each when the one before is ready: until then Kubernetes "+v.State.fromKube()+" is emulated")
		}
	}
	return all
}

// away says what to do about the controllers that do not answer.
func (v View) away() (all []string) {
	names := v.names(func(c Controller) bool { return c.Away != "" })
	switch {
	case v.Leaderless && len(names) > 0:
		return []string{"etcd has no leader: start " + and(names) + " again, then " + look}
	case v.Leaderless:
		return []string{"etcd has no leader: wait for the election; kthwd status names the members that are missing"}
	case len(names) == 0:
		return nil
	}
	if v.State != nil && v.State.Finished {
		return []string{fmt.Sprintf("%s: start the new kthwd there (Kubernetes %s); an older one can no longer run", and(names), etcdfiles.MinorOf(v.State.To.Kubernetes))}
	}
	return []string{"start " + and(names) + " again, or remove what will not come back: kthwd member remove NAME"}
}
