// Package explain tells where each flag of the embedded programs comes from, and writes
// their command lines for people, shells, systemd and programs.
//
//	for _, p := range explain.All(lines) {
//		err := explain.Text(w, p)
//	}
//
// The package reads no file and knows no flag: it compares the command lines with the
// guide's (program.GuideFlags) and with the user's. It links neither Kubernetes nor etcd.
package explain

import (
	"slices"

	"kthwd/appliance/program"
)

// The origins of a flag.
const (
	OriginGuide   = "guide"   // the guide's unit has the flag, or the file that it names
	OriginProfile = "profile" // the profile sets it; without the profile it is another one
	OriginKthwd   = "kthwd"   // kthwd sets it by itself
	OriginYours   = "yours"   // a pass-through argument
)

// Names are the embedded programs, in the order of their start.
func Names() []string {
	return []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler}
}

// Input is what is explained.
type Input struct {
	Args      map[string][]program.Arg // the command lines, by program
	Profile   string                   // the profile in force
	Profiled  map[string][]string      // the flags that it sets, by program
	Users     map[string][]program.Arg // the user's flags among them
	Overrides []program.Override       // flags of kthwd's that the user's replaced
	Where     map[string]string        // where the user's flags of a program are set, such as FILE:LINE
}

// Program is the command line of one program.
type Program struct {
	Name    string   `json:"program"`
	Step    string   `json:"guideStep"` // the step of the guide that kthwd replaces
	Flags   []Flag   `json:"flags"`     // in the order of the command line
	LeftOut []Absent `json:"leftOut"`   // flags of the guide's, or of kthwd's own, that are not there
	Besides []string `json:"besides"`   // what kthwd does that no flag shows
}

// Flag is one flag of a command line.
type Flag struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Origin  string `json:"origin"`            // one of the Origin constants
	Where   string `json:"where,omitempty"`   // of a flag of the user's: FILE:LINE or "flag"; else the profile
	Guide   string `json:"guide,omitempty"`   // the guide's flag, as the guide writes it
	Same    bool   `json:"same"`              // the guide's value, whatever its shell variables stand for
	Instead string `json:"instead,omitempty"` // kthwd's own value, which the user's replaces
}

// Absent is a flag that the command line does not have.
type Absent struct {
	Flag string `json:"flag"`
	Of   string `json:"of"`            // OriginGuide or OriginKthwd
	Why  string `json:"why,omitempty"` // of kthwd's own: what took it out
}

// All explains the programs in the order of Names. A program without a command line is
// left out.
func All(in Input) (all []Program) {
	for _, name := range Names() {
		if in.Args[name] != nil {
			all = append(all, in.program(name))
		}
	}
	return all
}

func (in Input) program(name string) Program {
	p := Program{Name: name, Step: program.GuideStep(name), Besides: besides[name], LeftOut: []Absent{}}
	guide := program.GuideFlags(name)
	for _, a := range in.Args[name] {
		p.Flags = append(p.Flags, in.flag(name, a, guide))
	}
	has := func(key string) bool {
		return slices.ContainsFunc(p.Flags, func(f Flag) bool { return f.Key == key })
	}
	for _, g := range guide {
		if !has(g.Key) {
			p.LeftOut = append(p.LeftOut, Absent{Flag: g.Text, Of: OriginGuide})
		}
	}
	for _, o := range in.Overrides {
		if o.Program == name && !has(o.Key) {
			p.LeftOut = append(p.LeftOut, Absent{Flag: "--" + o.Key + "=" + o.Ours, Of: OriginKthwd, Why: o.Users})
		}
	}
	return p
}

// flag finds the origin of one argument.
func (in Input) flag(name string, a program.Arg, guide []program.GuideFlag) Flag {
	f := Flag{Key: a.Key, Value: a.Value, Origin: OriginKthwd}
	if program.InGuideFile(name, a.Key) {
		f.Origin = OriginGuide
	}
	for _, g := range guide {
		if g.Key == a.Key {
			f.Origin, f.Guide, f.Same = OriginGuide, g.Text, g.Same(a.Value)
		}
	}
	if slices.Contains(in.Profiled[name], a.Key) {
		f.Origin, f.Where = OriginProfile, in.Profile
	}
	if slices.Contains(in.Users[name], a) {
		f.Origin, f.Where = OriginYours, in.Where[name]
		for _, o := range in.Overrides {
			if o.Program == name && o.Key == a.Key {
				f.Instead = o.Ours
			}
		}
	}
	return f
}

// besides is what the command lines do not show.
var besides = map[string][]string{
	program.Etcd: {
		"its two ports accept the certificates of controllers only, not all that the CA has signed",
		"a member that is alone has a shorter heartbeat and election timeout",
		"its log is kthwd's: --log-level=etcd=LEVEL",
	},
	program.APIServer: {
		"the start-up hooks rbac/bootstrap-roles and scheduling/bootstrap-system-priority-classes are kthwd's own",
		"the admission plugin KthwdControllerIdentity keeps a controller's name from being signed, and records each certificate that is",
		"certificates of revoked users and of removed nodes are refused",
		"writes of a component whose lease is over are refused",
		"the records of unauthenticated clients go to a file of their own, beside --audit-log-path",
		"its log is kthwd's: --log-level=kube-apiserver=LEVEL",
	},
	program.ControllerManager: {
		"kthwd holds the lease, and a lost one ends a term, not the process",
		"its port is open for the whole life of the process, on a standby too",
		"its log is kthwd's: --log-level=kube-controller-manager=LEVEL",
	},
	program.Scheduler: {
		"kthwd holds the lease, and a lost one ends a term, not the process",
		"its port is open for the whole life of the process, on a standby too",
		"its log is kthwd's: --log-level=kube-scheduler=LEVEL",
	},
}
