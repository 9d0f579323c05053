// Package version tells which Kubernetes, etcd and Go are linked into this binary.
//
// Linked returns the versions as "kthwd version" prints them. Stamped is false for
// a binary that was built without the Makefile's -ldflags; such a binary must not
// serve, because it would report Kubernetes v0.0.0 to its clients. Member returns
// the same versions as another controller compares them when this one joins.
//
// kthwd's own version is not here: main has it and passes it on.
package version

import (
	"runtime"
	"strings"

	etcdversion "go.etcd.io/etcd/api/v3/version"
	"k8s.io/component-base/version"

	"kthwd/appliance/member"
)

func Member(own string) member.Versions {
	v := Linked()
	return member.Versions{Kthwd: own, Kubernetes: v.Kubernetes, Etcd: v.Etcd}
}

// Info is what a binary contains.
type Info struct {
	Kubernetes string `json:"kubernetes"` // as /version says it: v1.36.3
	Etcd       string `json:"etcd"`
	Go         string `json:"go"`
	Stamped    bool   `json:"-"` // false when the binary was linked without the versions that make build sets
}

// Linked reads the versions that were linked in.
func Linked() Info {
	k := version.Get()
	return Info{
		Kubernetes: k.GitVersion,
		Etcd:       etcdversion.Version,
		Go:         runtime.Version(),
		// component-base/version/base.go has this placeholder for a build without -ldflags.
		Stamped: !strings.Contains(k.GitVersion, "$Format") && !strings.HasPrefix(k.GitVersion, "v0.0.0"),
	}
}
