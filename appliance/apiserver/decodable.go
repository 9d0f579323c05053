package apiserver

import (
	"reflect"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apiserver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// Decodable returns the kinds of objects that the API server in this binary can read from
// etcd, by API version as an object has it ("v1", "apps/v1"). Whether a version is also
// served depends on flags. Custom resources are not among them.
func Decodable() map[string][]string {
	all := map[string][]string{}
	for _, s := range []*runtime.Scheme{legacyscheme.Scheme, apiserver.Scheme, aggregator.Scheme} {
		for gvk, t := range s.AllKnownTypes() {
			_, object := reflect.New(t).Interface().(metav1.Object) // and neither a list nor options
			if version := gvk.GroupVersion().String(); object && gvk.Version != runtime.APIVersionInternal && !slices.Contains(all[version], gvk.Kind) {
				all[version] = append(all[version], gvk.Kind)
			}
		}
	}
	for _, kinds := range all {
		slices.Sort(kinds)
	}
	return all
}
