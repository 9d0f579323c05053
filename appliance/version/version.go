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
