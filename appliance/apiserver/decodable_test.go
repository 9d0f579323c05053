package apiserver

import (
	"slices"
	"testing"
)

// The kinds that every cluster has stored are among those that can be read: built-in ones, also
// those that are not served, and those of the two servers beside kube-apiserver's own.
func TestDecodable(t *testing.T) {
	all := Decodable()
	for version, kinds := range map[string][]string{
		"v1": {"ConfigMap", "Endpoints", "RangeAllocation", "Secret"}, "apps/v1": {"Deployment"}, "coordination.k8s.io/v1": {"Lease"},
		"apiextensions.k8s.io/v1": {"CustomResourceDefinition"}, "apiregistration.k8s.io/v1": {"APIService"},
	} {
		for _, kind := range kinds {
			if !slices.Contains(all[version], kind) {
				t.Errorf("%s %s is not among %v", version, kind, all[version])
			}
		}
	}
	for version, kinds := range all {
		for _, kind := range []string{"List", "DeleteOptions", "WatchEvent", "ConfigMapList", "Status"} {
			if slices.Contains(kinds, kind) {
				t.Errorf("%s has %s, which is never stored", version, kind)
			}
		}
	}
}
