// Package version reports the Kubernetes, etcd and Go versions in this binary.
//
// Linked returns the versions as "kthwd version" prints them. Stamped is false for
// a binary that was built without the Makefile's -ldflags; such a binary must not
// serve, because it would report Kubernetes v0.0.0 to its clients. Member returns
// the same versions as another controller compares them when this one joins.
//
// It does not hold kthwd's own version: main has that and passes it on.
package version

import (
	"runtime"
	"strings"

	etcdversion "go.etcd.io/etcd/api/v3/version"
	"k8s.io/component-base/version"

	"kthwd/appliance/member"
)

// Member returns the versions as controllers compare them; own is kthwd's.
func Member(own string) member.Versions {
	v := Linked()
	return member.Versions{Kthwd: own, Kubernetes: v.Kubernetes, Etcd: v.Etcd}
}

// Info lists the versions in a binary.
type Info struct {
	Kubernetes string `json:"kubernetes"` // as /version returns it: v1.36.3
	Etcd       string `json:"etcd"`
	Go         string `json:"go"`
	Stamped    bool   `json:"-"` // false if the binary was linked without the versions that make build sets
}

// Linked returns the linked versions.
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
